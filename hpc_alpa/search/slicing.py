"""[StepGraph, Cluster] -> [Slices]: where a step is cut, and which devices each stage gets."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress

from hpc_alpa.cluster import DeviceMesh
from hpc_alpa.errors import HpcAlpaError
from hpc_alpa.plan.restrictions import Restrictions
from hpc_alpa.plan.solve.stages import Pipeline, Slicer, Slicing
from hpc_alpa.schedule import SCHEDULES, peak_in_flight
from hpc_alpa.search.layers import find_layers, seconds_alone
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
RulesOn = Callable[[tuple[int, ...]], Restrictions]
DIVIDED = 0.8  # of the seconds that an axis of a mesh must be able to divide
FAR = 4.0  # times the seconds of a stage, were all stages alike
SMALL = 4  # devices of a host that get one mesh axis


@dataclass(frozen=True)
class Slices:
    """Stages and their meshes.

    Attributes:
        cuts: where stages but the first start among the forward equations (`step.anchors`).
        axes: names of each mesh's axes.
        seconds: of a step, as the slicing counts; None where nothing was sliced.
    """

    cuts: tuple[int, ...]
    meshes: tuple[DeviceMesh, ...]
    axes: tuple[tuple[str, ...], ...]
    seconds: float | None = None


def slice_stages(
    request: Request, step: StepGraph, rules: RulesOn, again: tuple[int, ...] = ()
) -> Iterator[Slices]:
    """Ways to slice the step: one stage on each logical shape; the best of each number of stages.

    Args:
        rules: mesh shape -> what the user's pins leave to choose from.
        again: numbers of the marked layers that backward makes again.
    """
    devices = tuple(range(request.num_devices))
    # Costs that are no seconds speak of one stage alone.
    alone = step.num_microbatches == 1 or request.num_microbatches is not None
    if alone or request.memory is not None:
        whole = request.num_devices
        for shape in (*_shapes(request, whole), *_three_axes(request, whole)):
            yield Slices((), (DeviceMesh(shape, devices),), (AXES[: len(shape)],))
    if request.num_devices > 1 and step.num_microbatches > 1 and request.cost.in_seconds:
        yield from _pipelines(request, step, rules, again)


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


def _pipelines(
    request: Request, step: StepGraph, rules: RulesOn, again: tuple[int, ...]
) -> Iterator[Slices]:
    """The best slicing of each number of stages, the best of them first."""
    if len(anchors(step)) < 2:
        return
    layers = find_layers(step, request.cost, request.layers)
    if len(layers) < 2:
        return
    step = recompute(step, again, layers.starts[1:])
    stages = split_stages(step, layers.starts[1:])
    meshes = _meshes(request, step)
    slots, n = step.num_microbatches, request.num_devices
    in_flight = [max(1, min(slots, n // (2 * m.num_devices))) for m in meshes]
    limit = request.memory_limit
    limited = _short(stages, n, slots, limit)
    tables = Tables(step, stages, meshes, request.cost, rules, in_flight, limited)
    most = min(n, len(stages))
    modes = dict(_modes(tables, limit, min(most, slots)))
    if not modes:
        return
    slicer = Slicer.of(
        {key: mode.seconds for key, mode in modes.items()},
        tables.transfer,
        [m.num_devices for m in meshes],
        {key: min(mode.room(limit), slots) for key, mode in modes.items()},
    )
    held = tuple(reversed(peak_in_flight(SCHEDULES["1f1b"](most, slots))))
    found: dict[int, Slicing] = {}
    for count in (None, *(2**k for k in range(1, most.bit_length()))):
        if count in found:
            continue
        try:
            slicing = slicer.slice(n, Pipeline(slots), in_flight=held, num_stages=count)
        except HpcAlpaError as error:
            log.info("no slicing into %s stages: %s", count or "any number of", error)
            continue
        found[len(slicing.stages)] = slicing
    for slicing in sorted(found.values(), key=lambda s: s.total):
        shapes = [meshes[s.submesh].shape for s in slicing.stages]
        placed = place(request, shapes)
        if placed is not None:
            cuts = tuple(layers.starts[s.first] for s in slicing.stages[1:])
            axes = tuple(AXES[: len(s)] for s in shapes)
            yield Slices(cuts, placed, axes, slicing.total)


def _modes(
    tables: Tables, limit: float, enough: int
) -> Iterator[tuple[tuple[int, int, int, int], Mode]]:
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
    fair = min(whole, default=0.0) / tables.cost.cluster.num_devices
    for m, of_mesh in runs.items():
        for (i, j, c), mode in of_mesh.items():
            room = mode.room(limit)
            before = of_mesh[i, j, c - 1].room(limit) if c else -1
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
