"""`hpc-alpa simulate plan.json gpt-39B | --script train.py --cluster cluster.toml -- ARGUMENTS`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from hpc_alpa.api.planning import Target
from hpc_alpa.cli import options
from hpc_alpa.cli.paper import planned_model
from hpc_alpa.cli.script import planned
from hpc_alpa.lower import lowering
from hpc_alpa.plan.plan import Plan
from hpc_alpa.report.tables import show, table
from hpc_alpa.report.units import nbytes_text, seconds_text
from hpc_alpa.simulate import Simulation, simulate_plan
from hpc_alpa.simulate.timeline import save

FEW = 4  # ranks that are listed


@click.command()
@click.argument("plan", type=click.Path(path_type=Path))
@click.argument("arguments", nargs=-1, metavar="[MODEL | -- ARGUMENT OF THE SCRIPT ...]")
@click.option("--script", "path", type=options.READ, help="Training script, in MODEL's place.")
@options.machine
@click.option("--out", type=options.WRITE, help="Write the timeline here, for Perfetto.")
@options.as_json
def command(
    plan: Path,
    path: Path | None,
    arguments: tuple[str, ...],
    cluster: str | None,
    costs: Path | None,
    analytic: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Run a plan in modelled time: of a MODEL by its name (gpt-39B), or of a script's step.

    Ranks that do the same are run once. A cluster without --costs is priced by its description.
    """
    priced = options.costs_of(cluster, costs, analytic)
    target = Target(cluster, priced, plan=Plan.load(plan))
    if path is not None:
        found = planned(path, arguments, target)
    elif len(arguments) == 1:
        found = planned_model(arguments[0], target)
    else:
        raise click.UsageError("whose step is simulated? Give one MODEL (gpt-39B), or --script")
    asked = found.request
    divided = found.plan.divide(asked.graph, asked.batch, asked.renewed)
    result = simulate_plan(lowering(divided, found.plan), found.cost, timeline=out is not None)
    if out is not None:
        save(out, [result.timeline])
    if as_json:
        options.print_json(facts(result))
    else:
        show(_table(result))


def facts(result: Simulation) -> dict[str, Any]:
    """Where the seconds of a step go; those of a rank add up to the step's.

    `bubble` is the share of the ranks' time in which they wait and nothing moves,
    `exposed_communication` that in which they communicate and do not compute. `classes` are the
    ranks that do the same; the timeline has the first of each.
    """
    step, waits = result.step_seconds, result.waiting_seconds
    ranks: list[dict[str, Any]] = []
    for rank, busy in enumerate(result.compute_seconds):
        exposed = result.exposed_communication[rank]
        ranks.append(
            {
                "rank": rank,
                "compute_seconds": busy,
                "communication_seconds": exposed - waits[rank],
                # also when the rank has ended and others have not
                "waiting_seconds": step - busy - exposed + waits[rank],
                "peak_bytes": result.peak_bytes[rank],
            }
        )
    return {
        "step_seconds": step,
        "bubble": result.bubble,
        "exposed_communication": result.communication,
        "ranks": ranks,
        "classes": [list(there) for there in result.classes],
    }


def _table(result: Simulation) -> Any:
    found = facts(result)
    rows = [
        (
            _ranks(there),
            seconds_text(r["compute_seconds"]),
            seconds_text(r["communication_seconds"]),
            seconds_text(r["waiting_seconds"]),
            nbytes_text(r["peak_bytes"]),
        )
        for there in found["classes"]
        for r in [found["ranks"][there[0]]]
    ]
    made = table(
        f"one step: {seconds_text(found['step_seconds'])}",
        {
            "ranks": "left",
            "computes": "right",
            "communicates": "right",
            "waits": "right",
            "memory": "right",
        },
        rows,
        f"waiting {100 * found['bubble']:.1f} % of the ranks' time, communication that is not "
        f"hidden {100 * found['exposed_communication']:.1f} %",
    )
    made.show_lines = False
    return made


def _ranks(alike: Sequence[int]) -> str:
    """`3`, `1 2 3`, or `16 and 31 like it`."""
    if len(alike) <= FEW:
        return " ".join(map(str, alike))
    return f"{alike[0]} and {len(alike) - 1} like it"
