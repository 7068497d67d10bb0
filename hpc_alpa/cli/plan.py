"""`hpc-alpa plan gpt-39B | --script train.py --cluster cluster.toml -- ARGUMENTS`."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click

from hpc_alpa.api.explain import explain
from hpc_alpa.api.frontier import Frontier, frontier
from hpc_alpa.api.machine import find_cluster
from hpc_alpa.api.outlook import facts, operations, outline
from hpc_alpa.api.planning import Planned, Target
from hpc_alpa.cli import options
from hpc_alpa.cli.paper import keep_plan, kept_plan, plan_file, planned_model
from hpc_alpa.cli.script import planned
from hpc_alpa.cluster import Cluster
from hpc_alpa.errors import PlanError
from hpc_alpa.models import paper_model
from hpc_alpa.plan.methods import parse_method
from hpc_alpa.plan.plan import Plan
from hpc_alpa.report.frontier import frontier_table
from hpc_alpa.report.plots import frontier_plot
from hpc_alpa.report.tables import show
from hpc_alpa.report.units import nbytes_text
from hpc_alpa.schedule import SCHEDULES
from hpc_alpa.search import Request

MOST_COMPILED = 64  # devices whose programs are written to count what they communicate


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
@click.argument("arguments", nargs=-1, metavar="[MODEL | -- ARGUMENT OF THE SCRIPT ...]")
@click.option("--script", "path", type=options.READ, help="Training script, in MODEL's place.")
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
    path: Path | None,
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
    """Plan a MODEL by its name (gpt-39B), or the first step of a training script.

    Nothing runs, and no MPI starts. A script runs in this process up to the step; what it is given
    there says what is planned. A cluster without --costs is priced by its description. With --json
    the plan itself is printed, with what it promises.

    With --frontier: the fastest plans under falling limits of memory. The plan for the limit that
    is asked for is written, where one fits.
    """
    priced = options.costs_of(cluster, costs, analytic)
    wanted = {name: value for name, value in given.items() if value is not None}
    wanted["known"] = not no_cache
    target = Target(cluster, priced, devices, options=wanted)
    asked = _Asked.of(path, arguments)
    if along:
        _frontier(asked, target, points, out, as_json)
        return
    made = _script(asked, target) if path is not None else _model(asked, target, no_cache)
    if out is not None:
        made.plan.save(out)
    if as_json:
        options.print_json(facts(made.plan, made.cluster, made.flops, made.seconds))
    else:
        click.echo(made.text)


@dataclass(frozen=True)
class _Made:
    """A plan to be printed: `flops` without and with recomputation, `seconds` by phase."""

    plan: Plan
    cluster: Cluster
    flops: tuple[float, float]
    seconds: Mapping[str, float]
    text: str


def _script(asked: _Asked, target: Target) -> _Made:
    with _progress():
        found = asked.planned(target)
    if found.plan.num_devices <= MOST_COMPILED:
        plan = found.compiled.plan
        text = explain(plan, found.compiled.programs, found.compiled.names)
    else:
        plan = outline(found.plan, found.step, found.divided)
        text = explain(plan)
    seconds = {"trace": found.trace_seconds, **plan.solver.get("phases", {})}
    return _Made(plan, found.request.cluster, operations(found.divided), seconds, text)


def _model(asked: _Asked, target: Target, no_cache: bool) -> _Made:
    begin = time.perf_counter()
    model = paper_model(asked.arguments[0])
    file = plan_file(model.name, target)
    plan = None if no_cache else kept_plan(file)
    cluster = find_cluster(target.cluster, target.size)
    if plan is not None and cluster is not None:
        click.echo(f"plan known from before: {file}", err=True)
        plan = replace(plan, solver={**plan.solver, "known": True})
        seconds: Mapping[str, float] = {"known": time.perf_counter() - begin}
    else:
        with _progress():
            found = asked.planned(target)
        plan, cluster = outline(found.plan, found.step, found.divided), found.request.cluster
        keep_plan(plan, file)
        seconds = {"trace": found.trace_seconds, **plan.solver.get("phases", {})}
    flops = model.flops(), model.flops(recomputation=True)
    return _Made(plan, cluster, flops, seconds, explain(plan))


@dataclass(frozen=True)
class _Asked:
    """Whose step is planned: that of a script with arguments, or of a model of the paper."""

    path: Path | None
    arguments: tuple[str, ...]

    @classmethod
    def of(cls, path: Path | None, arguments: tuple[str, ...]) -> _Asked:
        if path is None and len(arguments) != 1:
            raise click.UsageError("whose step is planned? Give one MODEL (gpt-39B), or --script")
        return cls(path, arguments)

    def planned(self, target: Target) -> Planned:
        if self.path is not None:
            return planned(self.path, self.arguments, target)
        return planned_model(self.arguments[0], target)


def _frontier(
    asked: _Asked,
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
        found = asked.planned(replace(target, search=search))
    [along] = made
    if out is not None:
        frontier_plot(out.with_suffix(".png"), along.points, along.limit)
        if along.fits:
            found.compiled.plan.save(out)
    if as_json:
        options.print_json(
            {
                "limit": along.limit,
                "fits": along.fits,
                "points": list(map(asdict, along.points)),
            }
        )
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
