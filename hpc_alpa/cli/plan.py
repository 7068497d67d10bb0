"""`hpc-alpa plan --script train.py --cluster cluster.toml -- ARGUMENTS`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from hpc_alpa.api.explain import explain
from hpc_alpa.api.frontier import Frontier, frontier
from hpc_alpa.api.planning import Target
from hpc_alpa.cli import options
from hpc_alpa.cli.script import planned
from hpc_alpa.errors import PlanError
from hpc_alpa.plan.methods import parse_method
from hpc_alpa.plan.plan import Plan
from hpc_alpa.report.frontier import frontier_table
from hpc_alpa.report.plots import frontier_plot
from hpc_alpa.report.tables import show
from hpc_alpa.report.units import nbytes_text
from hpc_alpa.schedule import SCHEDULES
from hpc_alpa.search import Request


def _method(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    if value is not None and value != "auto":
        try:
            parse_method(value)
        except PlanError as error:
            raise click.BadParameter(str(error)) from error
    return value


def _layers(
    context: click.Context, option: click.Parameter, value: str | None
) -> str | tuple[int, ...] | None:
    """`0,2-4` as (0, 2, 3, 4); words stay."""
    if value is None or value in ("auto", "none", "all"):
        return value
    found: set[int] = set()
    for part in value.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise click.BadParameter(f"{value!r} is none of auto, none, all, and names no layers")
        found.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(found))


@click.command()
@options.script
@options.machine
@click.option("--devices", type=click.IntRange(min=1), help="Use the cluster's first N devices.")
@click.option(
    "--method", callback=_method, help="auto, dp2tp2pp2, zero2, tp2sp, shard_largest, ..."
)
@click.option("--num-microbatches", type=click.IntRange(min=1), help="Default: searched.")
@click.option("--schedule", type=click.Choice(["auto", *SCHEDULES]), help="Order of microbatches.")
@click.option("--recompute", callback=_layers, help="auto, none, all, or layers: 0,1 or 0-3.")
@click.option("--memory", type=click.FloatRange(min=0, min_open=True), help="Bytes of a device.")
@click.option("--no-cache", is_flag=True, help="Search, even where the plan is known from before.")
@click.option("--out", type=options.WRITE, help="Write the plan here.")
@click.option("--frontier", "along", is_flag=True, help="Time against memory; a PNG beside --out.")
@click.option(
    "--points", type=click.IntRange(min=2), default=8, show_default=True, help="Of --frontier."
)
@options.as_json
def command(
    path: Path,
    arguments: tuple[str, ...],
    cluster: str | None,
    costs: Path | None,
    analytic: bool,
    devices: int | None,
    out: Path | None,
    along: bool,
    points: int,
    no_cache: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Plan the first step of a training script, without running it and without MPI.

    The script runs in this process up to the step; what it is given there says what is planned. A
    cluster without --costs is priced by its description. With --json the plan itself is printed.

    With --frontier: the fastest plans under falling limits of memory. The plan for the limit that
    is asked for is written, where one fits.
    """
    priced = options.costs_of(cluster, costs, analytic)
    wanted = {name: value for name, value in given.items() if value is not None}
    wanted["known"] = not no_cache
    target = Target(cluster, priced, devices, options=wanted)
    if along:
        _frontier(path, arguments, target, points, out, as_json)
        return
    with _progress():
        found = planned(path, arguments, target)
    plan = found.compiled.plan
    if out is not None:
        plan.save(out)
    if as_json:
        click.echo(plan.to_json(), nl=False)
    else:
        click.echo(explain(plan, found.compiled.programs, found.compiled.names))


def _frontier(
    path: Path,
    arguments: tuple[str, ...],
    target: Target,
    num_points: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Print time against memory, draw it, and write the plan that fits."""
    made: list[Frontier] = []

    def search(request: Request) -> Plan:
        made.append(frontier(request, num_points))
        return made[0].plan

    with _progress():
        found = planned(path, arguments, replace(target, search=search))
    [along] = made
    if out is not None:
        frontier_plot(out.with_suffix(".png"), along.points, along.limit)
        if along.fits:
            found.compiled.plan.save(out)
    if as_json:
        facts = {
            "limit": along.limit,
            "fits": along.fits,
            "points": list(map(asdict, along.points)),
        }
        options.print_json(facts)
    else:
        show(frontier_table(along.points, along.limit))
    if not along.fits:
        click.echo(f"no plan fits {nbytes_text(along.limit)}: none is written", err=True)


@contextmanager
def _progress() -> Iterator[None]:
    """What the search tries, on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    logger = logging.getLogger("hpc_alpa.search")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
