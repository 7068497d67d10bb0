"""`hpc-alpa simulate plan.json --script train.py --cluster cluster.toml -- ARGUMENTS`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hpc_alpa.api.planning import Target
from hpc_alpa.cli import options
from hpc_alpa.cli.script import planned
from hpc_alpa.plan.plan import Plan
from hpc_alpa.report.tables import show, table
from hpc_alpa.report.units import nbytes_text, seconds_text
from hpc_alpa.simulate import Simulation, simulate
from hpc_alpa.simulate.timeline import save


@click.command()
@click.argument("plan", type=click.Path(path_type=Path))
@options.script
@options.machine
@click.option("--out", type=options.WRITE, help="Write the timeline here, for Perfetto.")
@options.as_json
def command(
    plan: Path,
    path: Path,
    arguments: tuple[str, ...],
    cluster: str | None,
    costs: Path | None,
    analytic: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Run a plan in modelled time: the programs of all ranks, which the script's step is made of.

    A cluster without --costs is priced by its description.
    """
    priced = options.costs_of(cluster, costs, analytic)
    found = planned(path, arguments, Target(cluster, priced, plan=Plan.load(plan)))
    result = simulate(found.compiled.programs, found.cost)
    if out is not None:
        save(out, [result.timeline])
    if as_json:
        options.print_json(facts(result))
    else:
        show(_table(result))


def facts(result: Simulation) -> dict[str, Any]:
    """Where the seconds of a step go; those of a rank add up to the step's.

    `bubble` is the share of the ranks' time in which they wait and nothing moves,
    `exposed_communication` that in which they communicate and do not compute.
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
            str(r["rank"]),
            seconds_text(r["compute_seconds"]),
            seconds_text(r["communication_seconds"]),
            seconds_text(r["waiting_seconds"]),
            nbytes_text(r["peak_bytes"]),
        )
        for r in found["ranks"]
    ]
    made = table(
        f"one step: {seconds_text(found['step_seconds'])}",
        {
            "rank": "right",
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
