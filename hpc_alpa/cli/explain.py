"""`hpc-alpa explain plan.json`."""

from __future__ import annotations

from pathlib import Path

import click

from hpc_alpa.api.explain import explain, facts, rows_of
from hpc_alpa.cli import options
from hpc_alpa.plan.plan import Plan


@click.command()
@click.argument("plan", type=click.Path(path_type=Path))
@options.as_json
def command(plan: Path, as_json: bool) -> None:
    """Say what a plan does: stages, ranks, specs, collectives, what is predicted and proven."""
    found = Plan.load(plan)
    if as_json:
        options.print_json(facts(found, rows_of(found)))
    else:
        click.echo(explain(found))
