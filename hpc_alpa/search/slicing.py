"""[StepGraph, Cluster] -> [Slices]: where a step is cut, and which devices each stage gets."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress

from hpc_alpa.cluster import DeviceMesh
from hpc_alpa.errors import HpcAlpaError
from hpc_alpa.plan.restrictions import Restrictions
from hpc_alpa.plan.solve.options import Clock
from hpc_alpa.plan.solve.stages import Pipeline, Slicer, Slicing
from hpc_alpa.schedule import SCHEDULES, peak_in_flight
from hpc_alpa.search.layers import Layers, find_layers, seconds_alone
from hpc_alpa.search.request import Request
from hpc_alpa.search.tables import Mode, Tables
from hpc_alpa.sharding import rule_of
from hpc_alpa.step import (
    BACKWARD,
    FORWARD,
    StageGraph,
    StepGraph,
    anchors,
    recompute,
    split_stages,
)

log = logging.getLogger(__name__)
AXES = ("x", "y", "z")  # names of mesh axes that the search has laid out
Run = tuple[int, int, int, int]  # first layer, last layer, mesh, number of the mode
RulesOn = Callable[[tuple[int, ...]], Restrictions]
DIVIDED = 0.8  # of the seconds that an axis of a mesh must be able to divide
ROUGHLY = 1.5  # of the memory, that one stage may seem to need
FEW = 4  # meshes of all devices that are planned without an estimate
FAR = 4.0  # times the seconds of a stage, were all stages alike
SMALL = 4  # devices of a host that get one mesh axis


@dataclass(frozen=True)
class Slices:
    """Stages and their meshes.

    Attributes:
        cuts: where stages but the first start among the forward equations (`step.anchors`).
        axes: names of each mesh's axes.
        seconds: of a step, as the slicing counts; None where nothing was sliced.
        bound: seconds of a step that no slicing is below, None where not known.
    """

    cuts: tuple[int, ...]
    meshes: tuple[DeviceMesh, ...]
    axes: tuple[tuple[str, ...], ...]
    seconds: float | None = None
    bound: float | None = None


def slice_stages(
    request: Request,
    step: StepGraph,
    rules: RulesOn,
    again: tuple[int, ...] = (),
    clock: Clock | None = None,
) -> Iterator[Slices]:
    """Ways to slice the step: one stage on each logical shape; the best of each number of stages.

    Args:
        rules: mesh shape -> what the user's pins leave to choose from.
        again: numbers of the marked layers that backward makes again.
        clock: is told the phases.
    """
    clock = Clock(math.inf) if clock is None else clock
    n = request.num_devices
    shapes = (*_shapes(request, n), *_three_axes(request, n))
    whole = [DeviceMesh(shape, tuple(range(n))) for shape in shapes]
    layers = None
    # Costs that are no seconds speak of one stage alone, and so does one microbatch.
    several = step.num_microbatches > 1 or len(whole) > FEW
    if request.cost.in_seconds and n > 1 and several and len(anchors(step)) > 1:
        layers = find_layers(step, request.cost, request.layers)
    if layers is None or len(layers) < 2:
        for mesh in whole:
            yield Slices((), (mesh,), (AXES[: len(mesh.shape)],))
        return
    yield from _estimated(request, step, rules, again, layers, whole, clock)


def _shapes(request: Request, n: int) -> list[tuple[int, ...]]:
    """Logical shapes of n devices: one axis, and two where they can pay.

    Two axes pay where links differ, hosts along the first; on one host, whose links are alike, only
    where a dim is too short for all devices, which four seldom are.
    """
    pairs = [(a, n // a) for a in range(2, n) if n % a == 0]
    if len({request.cluster.host_of(d) for d in range(n)}) == 1:
        pairs = [(a, b) for a, b in pairs if a <= b and n > SMALL]
    return [(n,), *pairs]


def _three_axes(request: Request, n: int) -> list[tuple[int, ...]]:
    """Logical shapes of three axes: whole hosts along the first, two within a host."""
    hosts = len({request.cluster.host_of(d) for d in range(n)})
    width = n // hosts
    if hosts == 1 or width * hosts != n or width <= SMALL:
        return []
    inside = [(a, width // a) for a in range(2, width) if width % a == 0]
    return [(hosts, a, b) for a, b in inside if a <= b]


def _sizes(request: Request) -> list[int]:
    """Numbers of devices of a stage: part of a host, or whole hosts."""
    hosts = request.cluster.hosts
    width = min(h.devices for h in hosts)
    n = request.num_devices
    inside = [k for k in range(1, min(width, n) + 1)]
    return [k for k in inside + list(range(2 * width, n, width)) if k < n]


def _meshes(request: Request, step: StepGraph) -> list[DeviceMesh]:
    """Meshes that a stage may lie on: each axis divides what most of the seconds go into."""
    chain = anchors(step)
    seconds = seconds_alone(step, request.cost)
    extents = [set(rule_of(e).sizes.values()) for e in chain]

    @functools.cache
    def divides(n: int) -> bool:
        split = [any(d % n == 0 for d in of) for of in extents]
        return sum(compress(seconds, split)) >= DIVIDED * sum(seconds)

    return [
        DeviceMesh(shape, tuple(range(n)))
        for n in _sizes(request)
        for shape in _shapes(request, n)
        if all(map(divides, shape))
    ]


def _estimated(
    request: Request,
    step: StepGraph,
    rules: RulesOn,
    again: tuple[int, ...],
    layers: Layers,
    whole: Sequence[DeviceMesh],
    clock: Clock,
) -> Iterator[Slices]:
    """One stage on each mesh of all devices, and the best pipeline of each number of stages."""
    step = recompute(step, again, layers.starts[1:])
    clock.lap("microbatches")
    stages = split_stages(step, layers.starts[1:])
    clock.lap("layers")
    slots, n, limit = step.num_microbatches, request.num_devices, request.memory_limit
    meshes = [*(_meshes(request, step) if slots > 1 else ()), *whole]
    in_flight = [max(1, min(slots, n // (2 * m.num_devices))) for m in meshes]
    limited = _short(stages, n, slots, limit)
    tables = Tables(step, stages, meshes, request.cost, rules, n, in_flight, limited)
    most = min(n, len(stages))
    modes = dict(_modes(tables, limit, min(most, slots)))
    bound = tables.least_seconds()
    clock.lap("tables of layers")
    log.info("%d microbatches, %d layers: %d runs of layers fit", slots, len(stages), len(modes))
    alone = {m: math.inf for m, mesh in enumerate(meshes) if mesh.num_devices == n}
    for (i, j, m, _), mode in modes.items():
        if m in alone and (i, j) == (0, len(stages) - 1):
            alone[m] = min(alone[m], slots * float(mode.seconds.min()))
    asked = request.num_stages
    for m, seconds in alone.items() if asked in (None, 1) else ():
        # One that does not seem to fit is tried where nothing else does.
        yield Slices((), (meshes[m],), (AXES[: len(meshes[m].shape)],), seconds, bound)
    parts = {key: mode for key, mode in modes.items() if meshes[key[2]].num_devices < n}
    if parts and asked != 1:
        for found in _pipelines(request, layers, tables, parts, most):
            yield replace(found, bound=bound)
        clock.lap("stages")


def _pipelines(
    request: Request, layers: Layers, tables: Tables, modes: Mapping[Run, Mode], most: int
) -> Iterator[Slices]:
    """The best slicing of any number of stages, and of some numbers."""
    slots, n, limit = tables.step.num_microbatches, request.num_devices, request.memory_limit
    meshes = tables.meshes
    slicer = Slicer.of(
        {key: mode.seconds for key, mode in modes.items()},
        tables.transfer,
        [m.num_devices for m in meshes],
        {key: min(mode.room(limit), slots) for key, mode in modes.items()},
    )
    held = tuple(reversed(peak_in_flight(SCHEDULES["1f1b"](most, slots))))
    found: dict[int, Slicing] = {}
    tried: Iterable[int | None] = (None, *(2**k for k in range(1, most.bit_length())))
    for count in tried if request.num_stages is None else [request.num_stages]:
        if count in found:
            continue
        try:
            slicing = slicer.slice(n, Pipeline(slots), in_flight=held, num_stages=count)
        except HpcAlpaError as error:
            log.info("no slicing into %s stages: %s", count or "any number of", error)
            continue
        found[len(slicing.stages)] = slicing
    for slicing in found.values():
        shapes = [meshes[s.submesh].shape for s in slicing.stages]
        placed = place(request, shapes)
        if placed is not None:
            cuts = tuple(layers.starts[s.first] for s in slicing.stages[1:])
            yield Slices(cuts, placed, tuple(AXES[: len(s)] for s in shapes), slicing.total)


def _modes(tables: Tables, limit: float, enough: int) -> Iterator[tuple[Run, Mode]]:
    """(first layer, last layer, mesh, number of the mode) -> runs of layers that fit somewhere.

    Left out is what a mode before it does as well, and what takes so long that a pipeline of such
    stages is far from the best one whose stages were all alike.

    Args:
        enough: microbatches in flight beyond which room is worth nothing.
    """
    runs: dict[int, dict[tuple[int, int, int], Mode]] = {}
    for m, mesh in enumerate(tables.meshes):
        try:
            runs[m] = tables.runs(m)
        except HpcAlpaError as error:
            log.info("no stage on mesh %s: %s", mesh.shape, error)
    last = len(tables.layers) - 1
    whole = [
        mesh.num_devices * float(mode.seconds.min())
        for m, mesh in enumerate(tables.meshes)
        for (i, j, _), mode in runs.get(m, {}).items()
        if i == 0 and j == last
    ]
    fair = min(whole, default=0.0) / tables.num_devices
    for m, of_mesh in runs.items():
        # What one stage holds is known when it is planned; a slicing needs to know before.
        at_most = (ROUGHLY if tables.meshes[m].num_devices == tables.num_devices else 1.0) * limit
        for (i, j, c), mode in of_mesh.items():
            room = mode.room(at_most)
            before = of_mesh[i, j, c - 1].room(at_most) if c else -1
            useful = room > 0 and (not c or min(before, enough) < room)
            if useful and mode.seconds.min() <= FAR * fair:
                yield (i, j, m, c), mode


def place(request: Request, shapes: list[tuple[int, ...]]) -> tuple[DeviceMesh, ...] | None:
    """Stages on devices in order; None where a stage smaller than a host would straddle two."""
    placed, at = [], 0
    for shape in shapes:
        n = math.prod(shape)
        devices = tuple(range(at, at + n))
        hosts = {request.cluster.host_of(d) for d in devices}
        width = min(request.cluster.hosts[h].devices for h in hosts)
        if len(hosts) > 1 and n <= width:
            return None
        placed.append(DeviceMesh(shape, devices))
        at += n
    return tuple(placed)


def _short(
    stages: Sequence[StageGraph], num_devices: int, num_microbatches: int, limit: float
) -> bool:
    """Whether what is held may not fit, were all state whole on each device of its stage."""
    state = sum(map(_state_bytes, stages))
    kept = num_microbatches * sum(map(_kept_bytes, stages)) / num_devices
    return state + kept > limit


def _state_bytes(stage: StageGraph) -> float:
    received = {t.value for t in stage.received}
    return float(sum(v.type.nbytes for v in stage.graph.inputs if v not in received))


def _kept_bytes(stage: StageGraph) -> float:
    """Bytes of one microbatch that forward makes and backward reads."""
    forward = {e.output for e in stage.graph.eqns if e.phase == FORWARD and not e.op.view}
    read = {v for e in stage.graph.eqns if e.phase == BACKWARD for v in e.inputs}
    return float(sum(v.type.nbytes for v in forward & read))
