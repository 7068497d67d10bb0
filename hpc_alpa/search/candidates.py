"""[Request] -> [Candidate]: microbatches, schedule, stages, meshes, layers that are made again."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field

from hpc_alpa.cluster import DeviceMesh
from hpc_alpa.errors import PlanError
from hpc_alpa.plan.methods import Method
from hpc_alpa.plan.solve.options import Clock
from hpc_alpa.schedule import SCHEDULES
from hpc_alpa.search.layers import find_layers
from hpc_alpa.search.pins import pinned
from hpc_alpa.search.request import Request
from hpc_alpa.search.slicing import Slices, slice_stages
from hpc_alpa.step import (
    BACKWARD,
    FORWARD,
    NeedsMicrobatches,
    StepGraph,
    marked_layers,
    split_batch,
)

ENOUGH = 0.25  # of the memory, that all forward values of a microbatch may take
MANY = 16  # devices, from which on more numbers of microbatches are tried
Layers = tuple[int, ...]  # numbers of marked layers


@dataclass(frozen=True)
class Candidate:
    """A way to lay the step out, before its equations have strategies.

    Attributes:
        cuts: where stages start among the forward equations.
        meshes: one per stage, on devices in order.
        recompute: numbers of the marked layers that backward makes again.
        estimate: seconds of a step before it is planned, mostly too few; None where not known.
        bound: seconds that no plan of its number of microbatches is below; None where not known.
    """

    num_microbatches: int
    schedule: str
    cuts: tuple[int, ...]
    meshes: tuple[DeviceMesh, ...]
    axes: tuple[tuple[str, ...], ...]
    recompute: tuple[int, ...] = ()
    estimate: float | None = field(default=None, compare=False)
    bound: float | None = field(default=None, compare=False)

    def __str__(self) -> str:
        meshes = " ".join("x".join(map(str, m.shape)) for m in self.meshes)
        again = f" recompute={list(self.recompute)}" if self.recompute else ""
        cuts = list(self.cuts)
        return f"B={self.num_microbatches} {self.schedule} cuts={cuts} meshes {meshes}{again}"


def steps(request: Request, method: Method | None) -> tuple[StepGraph, ...]:
    """The step in each number of microbatches to try, nothing recomputed.

    All at once: where their number is part of the model's meaning, this raises before the search.
    Where the model allows some numbers (its norms are of runs of rows), the next smaller one is
    tried in the place of another.

    Raises:
        NeedsMicrobatches: the model allows none but one microbatch.
    """
    made: dict[int, StepGraph] = {}
    refused: NeedsMicrobatches | None = None
    for most in _microbatches(request, method):
        fewer = (n for n in range(most, 0, -1) if _rows(request) % n == 0)
        for n in fewer if request.num_microbatches is None else (most,):
            if n in made:
                break
            try:
                made[n] = split_batch(request.graph, request.batch, n, request.renewed)
                break
            except NeedsMicrobatches as error:
                refused = error
    if refused is not None and not made.keys() - {1}:
        raise refused
    return tuple(made[n] for n in sorted(made))


def candidates(
    request: Request, method: Method | None, step: StepGraph, again: Layers, clock: Clock
) -> Iterator[Candidate]:
    """Ways to lay a step out.

    Args:
        again: layers that backward makes again in each of them.
        clock: is told the phases.
    """
    for s in _slices(request, method, step, again, clock):
        for schedule in _schedules(request):
            n = step.num_microbatches
            yield Candidate(n, schedule, s.cuts, s.meshes, s.axes, again, s.seconds, s.bound)


def recomputed(request: Request, method: Method | None, step: StepGraph) -> tuple[Layers, Layers]:
    """Layers that every candidate makes again, and those that one may where memory is short.

    Raises:
        PlanError: the request names none of the choices, or asks for all of no marked layers.
    """
    asked = request.recompute
    if not isinstance(asked, str):
        return tuple(sorted(set(asked))), ()
    known = marked_layers(step.graph)
    if asked == "auto":
        trains = any(e.phase == BACKWARD for e in step.graph.eqns)
        return (), known if method is None and trains else ()
    if asked == "all":
        if not known:
            raise PlanError(
                "recompute='all' has no layers: no layer of the model is marked. Write `with "
                "hpc_alpa.layer(k):` around each layer of its forward pass"
            )
        return known, ()
    if asked != "none":
        raise PlanError(
            f"recompute={asked!r} is no choice; there are 'auto', 'none', 'all', or the numbers of "
            "marked layers"
        )
    return (), ()


def _rows(request: Request) -> int:
    """Rows of the whole batch."""
    return min((v.type.shape[0] for v in request.batch if v.type.shape), default=1)


def _microbatches(request: Request, method: Method | None) -> list[int]:
    """The numbers of microbatches to try, rising."""
    if request.num_microbatches is not None:
        return [request.num_microbatches]
    rows = _rows(request)

    def divisor(most: int) -> int:
        """The largest number of microbatches that the batch divides into, up to `most`."""
        return max(b for b in range(1, most + 1) if rows % b == 0)

    if not request.cost.in_seconds:
        return [1]
    if method is not None:
        # Enough microbatches to fill the pipeline, where the batch allows it.
        return [divisor(1 if method.stages == 1 else 4 * method.stages)]
    # A pipeline over all devices is 50 to 80 % full with as many microbatches, or twice as many;
    # more of them hold less at once.
    n, limit = request.num_devices, request.memory_limit
    times = (1, 2, 4, 8) if n < MANY else (1, 2, 4, 8, 16)
    found = sorted({1, *(divisor(k * n) for k in times)})
    made = [e.output.type.nbytes for e in request.graph.eqns if e.phase == FORWARD]
    while sum(made) / (n * found[-1]) > ENOUGH * limit and found[-1] < rows:
        found.append(divisor(2 * found[-1]))
        if found[-1] == found[-2]:
            return found
    # In few microbatches the largest value alone is too large, were it split over all devices.
    return [b for b in found if max(made, default=0) / (n * b) <= limit] or found[-1:]


def _schedules(request: Request) -> list[str]:
    if request.schedule != "auto":
        if request.schedule not in SCHEDULES:
            raise PlanError(
                f"there is no schedule {request.schedule!r}; there are {', '.join(SCHEDULES)}"
            )
        return [request.schedule]
    # With one stage all schedules are the same; with more, 1F1B holds less and takes as long.
    return ["1f1b"]


def _slices(
    request: Request, method: Method | None, step: StepGraph, again: Layers, clock: Clock
) -> Iterator[Slices]:
    if method is None:
        rules = functools.partial(pinned, step.graph, request.pins)
        yield from slice_stages(request, step, rules, again, clock)
        return
    family = SCHEDULES[_schedules(request)[0]]
    placement = family.placement(method.stages, None if method.stages > 1 else 1)
    layers = find_layers(step, request.cost, len(placement))
    each = method.num_devices // method.stages
    meshes = tuple(
        DeviceMesh(method.mesh_shape, tuple(range(s * each, (s + 1) * each))) for s in placement
    )
    yield Slices(layers.starts[1:], meshes, (method.axis_names,) * len(meshes))
