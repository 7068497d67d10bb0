"""The whole search: a step and a machine in, a `Plan` out.

candidates    [Request] -> [Candidate]           microbatches, schedule, stages, meshes
plan stages   [Candidate] -> [Plan]              the integer program of every stage
score         [Plan] -> seconds and bytes        the simulator runs the plan's own programs
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hpc_alpa.cluster import DeviceMesh
from hpc_alpa.errors import HpcAlpaError, InfeasibleError, PlanError
from hpc_alpa.lower import lower
from hpc_alpa.plan.intra_op import IntraOp
from hpc_alpa.plan.methods import Method, parse_method, restrictions, split_products
from hpc_alpa.plan.plan import Plan, StagePlan
from hpc_alpa.plan.pricing import Pricing
from hpc_alpa.plan.restrictions import Restrictions
from hpc_alpa.plan.solve.options import Options
from hpc_alpa.plan.solve.solution import Solution
from hpc_alpa.schedule import SCHEDULES, peak_in_flight
from hpc_alpa.search.layers import find_layers
from hpc_alpa.search.pins import pinned
from hpc_alpa.search.request import Request
from hpc_alpa.search.slicing import Slices, slice_stages
from hpc_alpa.simulate import Simulation, simulate
from hpc_alpa.step import StepGraph, split_batch, split_stages

log = logging.getLogger(__name__)
TRIES = 4  # tightenings of the memory row when the simulator finds more bytes than it counts


@dataclass(frozen=True)
class Candidate:
    """A way to lay the step out, before its equations have strategies.

    Attributes:
        cuts: where stages start among the forward equations.
        meshes: one per stage, on devices in order.
    """

    num_microbatches: int
    schedule: str
    cuts: tuple[int, ...]
    meshes: tuple[DeviceMesh, ...]
    axes: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Scored:
    """A plan, and the seconds of a step by the simulator."""

    plan: Plan
    seconds: float


def search(request: Request) -> Plan:
    """The best plan found, with its predictions and what is proven of it.

    Raises:
        InfeasibleError: no plan fits the memory; says by how much, and the nearest fit.
        NeedsMicrobatches: their number is part of the model's meaning, and was not given.
        PlanError: the method does not fit the number of devices, or nothing can be planned.
    """
    start = time.perf_counter()
    method = None
    if request.method != "auto":
        method = parse_method(request.method).over(request.num_devices)
    best: Scored | None = None
    failures: list[HpcAlpaError] = []
    tried = 0
    for step, candidate in _candidates(request, method):
        tried += 1
        try:
            scored = _score(request, method, step, candidate)
        except HpcAlpaError as error:
            log.info("candidate %s: %s", _describe(candidate), error)
            failures.append(error)
            continue
        log.info("candidate %s: %.6f s", _describe(candidate), scored.seconds)
        if best is None or scored.seconds < best.seconds * (1 - 1e-9):
            best = scored
    if best is None:
        raise _reason(failures, request)
    solver = {
        **best.plan.solver,
        "candidates": tried,
        "planning_seconds": time.perf_counter() - start,
    }
    return replace(best.plan, solver=solver)


def _describe(c: Candidate) -> str:
    meshes = " ".join("x".join(map(str, m.shape)) for m in c.meshes)
    return f"B={c.num_microbatches} {c.schedule} cuts={list(c.cuts)} meshes {meshes}"


def _reason(failures: Sequence[HpcAlpaError], request: Request) -> HpcAlpaError:
    """The error that says most: the nearest fit of all candidates, or the first one's reason."""
    memory = [e for e in failures if isinstance(e, InfeasibleError)]
    if memory:
        return min(memory, key=lambda e: e.missing)
    if failures:
        return failures[0]
    return PlanError(
        f"there is no way to lay the step out over {request.num_devices} devices with "
        f"num_microbatches={request.num_microbatches} and schedule={request.schedule!r}"
    )


# ----------------------------------------------------------------------------------- candidates
def _candidates(request: Request, method: Method | None) -> Iterator[tuple[StepGraph, Candidate]]:
    # All at once: where their number is part of the model's meaning, this raises before the search.
    steps = [
        split_batch(request.graph, request.batch, n, request.renewed)
        for n in _microbatches(request, method)
    ]
    for step in steps:
        for s in _slices(request, method, step):
            for schedule in _schedules(request):
                layout = Candidate(step.num_microbatches, schedule, s.cuts, s.meshes, s.axes)
                yield step, layout


def _microbatches(request: Request, method: Method | None) -> list[int]:
    """The numbers of microbatches to try, rising."""
    if request.num_microbatches is not None:
        return [request.num_microbatches]
    rows = min((v.type.shape[0] for v in request.batch if v.type.shape), default=1)

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
    times = (1, 2) if request.memory is None else (1, 2, 4, 8)
    return sorted({1, *(divisor(k * request.num_devices) for k in times)})


def _schedules(request: Request) -> list[str]:
    if request.schedule != "auto":
        if request.schedule not in SCHEDULES:
            raise PlanError(
                f"there is no schedule {request.schedule!r}; there are {', '.join(SCHEDULES)}"
            )
        return [request.schedule]
    # With one stage all schedules are the same; with more, 1F1B holds less and takes as long.
    return ["1f1b"]


def _slices(request: Request, method: Method | None, step: StepGraph) -> Iterator[Slices]:
    if method is None:
        yield from slice_stages(request, step, lambda mesh: pinned(step.graph, request.pins, mesh))
        return
    layers = find_layers(step, request.cost, method.stages)
    per_stage = method.num_devices // method.stages
    meshes = tuple(
        DeviceMesh(method.mesh_shape, tuple(range(s * per_stage, (s + 1) * per_stage)))
        for s in range(method.stages)
    )
    yield Slices(layers.starts[1:], meshes, (method.axis_names,) * method.stages)


# --------------------------------------------------------------------------------------- scoring
def _score(
    request: Request, method: Method | None, step: StepGraph, candidate: Candidate
) -> Scored:
    """Plan the stages; when the simulator finds more bytes than fit, plan them tighter."""
    limit = request.memory_limit
    allowed = limit
    least = math.inf
    for _ in range(TRIES):
        try:
            plan, solutions, counted = _plan(request, method, step, candidate, allowed)
        except InfeasibleError:
            if math.isinf(least):
                raise
            break  # tighter than this it cannot be planned
        programs = lower(step, plan)
        result = simulate(programs, request.cost)
        peak = max(result.peak_bytes, default=0)
        least = min(least, peak)
        if peak <= limit:
            solver = {**_solver(solutions, counted), "allowed_bytes": allowed}
            done = replace(plan, predicted=_predicted(result), solver=solver)
            return Scored(done, result.step_seconds)
        # Had the rows counted all that runs, this plan would not have met them.
        allowed = min(allowed, counted) * 0.98 * limit / peak
    raise InfeasibleError(
        f"the memory of a device is {limit:,.0f} bytes, the nearest fit found for "
        f"{_describe(candidate)} needs {least:,.0f} bytes, {least - limit:,.0f} bytes too many. "
        "Give memory of at least that, use more devices, or a smaller batch",
        missing=least - limit,
    )


def _plan(
    request: Request,
    method: Method | None,
    step: StepGraph,
    candidate: Candidate,
    memory: float,
) -> tuple[Plan, list[Solution], float]:
    """The plan, its stages' solutions, and the bytes that the memory rows count of the largest."""
    stages: list[StagePlan] = []
    solutions: list[Solution] = []
    counted = 0.0
    made = stage_programs(request, step, candidate, memory, method)
    for program, axes in zip(made, candidate.axes, strict=True):
        solution = program.solve(Options(seconds=request.seconds))
        solutions.append(solution)
        counted = max(counted, program.held_bytes(solution))
        stages.append(program.decode(solution, axes))
    plan = Plan(
        request.method,
        candidate.schedule,
        candidate.num_microbatches,
        candidate.cuts,
        tuple(stages),
        request.graph.digest,
        request.cluster.digest,
        (request.cost.name, request.cost.digest),
        request.resharding,
    )
    return plan, solutions, counted


def stage_programs(
    request: Request,
    step: StepGraph,
    candidate: Candidate,
    memory: float | None,
    method: Method | None = None,
) -> Iterator[IntraOp]:
    """The choice program of each stage of a layout, not solved yet.

    Args:
        memory: bytes of a device that the rows allow.
        method: a manual method on all devices, or None.
    """
    manual = Restrictions() if method is None else restrictions(method, step)
    schedule = SCHEDULES[candidate.schedule](len(candidate.meshes), candidate.num_microbatches)
    in_flight = peak_in_flight(schedule)
    for stage, mesh in zip(split_stages(step, candidate.cuts), candidate.meshes, strict=True):
        rules = manual & pinned(step.graph, request.pins, mesh.shape)
        if method is None and not request.cost.in_seconds:
            rules = rules & split_products(mesh.shape)
        pricing = Pricing.on(mesh, request.cost)
        yield IntraOp(step, stage, pricing, rules, in_flight[stage.index], memory)


def programs_of(request: Request, plan: Plan) -> tuple[StepGraph, tuple[IntraOp, ...]]:
    """The step that a plan divides, and the choice program that each of its stages comes from.

    Args:
        request: what the plan was made for; its method and number of microbatches do not count.
    """
    method = None
    if plan.method != "auto":
        method = parse_method(plan.method).over(plan.num_devices)
    step = plan.divide(request.graph, request.batch, request.renewed)
    layout = Candidate(
        plan.num_microbatches,
        plan.schedule,
        plan.cuts,
        tuple(s.mesh for s in plan.stages),
        tuple(s.axes for s in plan.stages),
    )
    memory = plan.solver.get("allowed_bytes", request.memory_limit)
    return step, tuple(stage_programs(request, step, layout, memory, method))


def _predicted(result: Simulation) -> dict[str, Any]:
    return {
        "step_seconds": result.step_seconds,
        "busy_seconds": list(result.compute_seconds),
        "peak_bytes": [int(p) for p in result.peak_bytes],
    }


def _solver(solutions: Sequence[Solution], held_bytes: float) -> Mapping[str, Any]:
    objective = sum(s.objective for s in solutions)
    bound = sum(s.bound for s in solutions)
    return {
        "objective": objective,
        "bound": bound,
        "held_bytes": held_bytes,
        "gap": (objective - bound) / objective if objective else 0.0,
        "status": "optimal" if all(s.status == "optimal" for s in solutions) else "feasible",
    }
