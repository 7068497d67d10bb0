"""`hpc-alpa explain plan.json`, and of one value: `--value NAME --script train.py`."""

from __future__ import annotations

from pathlib import Path

import click

from hpc_alpa.api.explain import explain, facts, rows_of
from hpc_alpa.api.planning import Target
from hpc_alpa.api.why import explain_value
from hpc_alpa.cli import options
from hpc_alpa.cli.script import planned
from hpc_alpa.plan.plan import Plan


@click.command()
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--value", metavar="NAME", help="Why this value lies so: params/w1, gpt.py:88, ...")
@click.option("--script", "path", type=options.READ, help="The plan's training script.")
@options.machine
@click.option(
    "--seconds", type=click.FloatRange(min=0, min_open=True), default=60.0, show_default=True,
    help="To solve alternatives in, for each value.",
)  # fmt: skip
@click.argument("arguments", nargs=-1, metavar="[-- ARGUMENT OF THE SCRIPT ...]")
@options.as_json
def command(
    plan: Path,
    value: str | None,
    path: Path | None,
    arguments: tuple[str, ...],
    cluster: str | None,
    costs: Path | None,
    analytic: bool,
    seconds: float,
    as_json: bool,
) -> None:
    """Say what a plan does: stages, ranks, specs, collectives, what is predicted and proven.

    With --value: why one value of the script's step lies as it does, what every other choice would
    cost and change, which limit of memory binds, and which choices there were not.
    """
    found = Plan.load(plan)
    if value is not None:
        if path is None:
            raise click.UsageError("--value needs the script that the plan is for: give --script")
        priced = options.costs_of(cluster, costs, analytic)
        step = planned(path, arguments, Target(cluster, priced, plan=found))
        answers = explain_value(found, step.request, value, seconds)
        if as_json:
            options.print_json([answer.to_json() for answer in answers])
        else:
            click.echo("\n\n".join(map(str, answers)))
    elif as_json:
        options.print_json(facts(found, rows_of(found)))
    else:
        click.echo(explain(found))
