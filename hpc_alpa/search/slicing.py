"""[StepGraph, Cluster] -> [Slices]: where a step is cut, and which devices each stage gets."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from hpc_alpa.cluster import DeviceMesh
from hpc_alpa.errors import HpcAlpaError
from hpc_alpa.plan.restrictions import Restrictions
from hpc_alpa.plan.solve.stages import Pipeline, slice_with_separators
from hpc_alpa.schedule import SCHEDULES, peak_in_flight
from hpc_alpa.search.layers import find_layers
from hpc_alpa.search.request import Request
from hpc_alpa.search.tables import Tables
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
MOST_LAYERS = 8  # that stages are made of, unless the request says otherwise
RulesOn = Callable[[tuple[int, ...]], Restrictions]
SMALL = 4  # devices of a host that get one mesh axis


@dataclass(frozen=True)
class Slices:
    """Stages and their meshes.

    Attributes:
        cuts: where stages but the first start among the forward equations (`step.anchors`).
        axes: names of each mesh's axes.
    """

    cuts: tuple[int, ...]
    meshes: tuple[DeviceMesh, ...]
    axes: tuple[tuple[str, ...], ...]


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


def _pipelines(
    request: Request, step: StepGraph, rules: RulesOn, again: tuple[int, ...]
) -> Iterator[Slices]:
    most = min(MOST_LAYERS, len(anchors(step)))
    if most < 2 and request.layers is None:
        return
    layers = find_layers(step, request.cost, request.layers or most)
    step = recompute(step, again, layers.starts[1:])
    stages = split_stages(step, layers.starts[1:])
    meshes = [
        DeviceMesh(shape, tuple(range(n))) for n in _sizes(request) for shape in _shapes(request, n)
    ]
    tables = Tables(step, stages, meshes, request.cost, rules)
    costs = {}
    for m in range(len(meshes)):
        try:
            runs = tables.runs(m)
        except HpcAlpaError as error:
            log.info("no stage on mesh %s: %s", meshes[m].shape, error)
            continue
        costs.update({(i, j, m, 0): t for (i, j), t in runs.items() if np.isfinite(t).any()})
    if not costs:
        return
    room = _room(request, stages, meshes)
    for count in range(2, min(request.num_devices, len(stages)) + 1):
        schedule = SCHEDULES["1f1b"](count, step.num_microbatches)
        try:
            found = slice_with_separators(
                costs,
                tables.transfer,
                [m.num_devices for m in meshes],
                request.num_devices,
                Pipeline(step.num_microbatches),
                room={k: room[k[0], k[1], k[2]] for k in costs},
                in_flight=tuple(reversed(peak_in_flight(schedule))),
                num_stages=count,
            )
        except HpcAlpaError as error:
            log.info("no slicing into %d stages: %s", count, error)
            continue
        shapes = [meshes[s.submesh].shape for s in found.stages]
        placed = place(request, shapes)
        if placed is not None:
            cuts = tuple(layers.starts[s.first] for s in found.stages[1:])
            yield Slices(cuts, placed, tuple(AXES[: len(s)] for s in shapes))


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


def _room(
    request: Request, stages: tuple[StageGraph, ...], meshes: list[DeviceMesh]
) -> dict[tuple[int, int, int], int]:
    """Microbatches in flight that may fit, were everything split evenly: never too few.

    Returns:
        (first layer, last layer, number of the mesh) -> microbatches.
    """
    state = [_state_bytes(s) for s in stages]
    kept = [_kept_bytes(s) for s in stages]
    limit = request.memory_limit
    room = {}
    for i in range(len(stages)):
        for j in range(i, len(stages)):
            for m, mesh in enumerate(meshes):
                left = limit - sum(state[i : j + 1]) / mesh.num_devices
                each = max(1.0, sum(kept[i : j + 1]) / mesh.num_devices)
                room[i, j, m] = max(0, int(left / each)) if left > 0 else 0
    return room


def _state_bytes(stage: StageGraph) -> float:
    received = {t.value for t in stage.received}
    return float(sum(v.type.nbytes for v in stage.graph.inputs if v not in received))


def _kept_bytes(stage: StageGraph) -> float:
    """Bytes of one microbatch that forward makes and backward reads."""
    forward = {e.output for e in stage.graph.eqns if e.phase == FORWARD and not e.op.view}
    read = {v for e in stage.graph.eqns if e.phase == BACKWARD for v in e.inputs}
    return float(sum(v.type.nbytes for v in forward & read))
