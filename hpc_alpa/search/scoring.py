"""[Candidate] -> [Scored]: the choice program of every stage, solved, and the plan simulated."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hpc_alpa.errors import InfeasibleError
from hpc_alpa.lower import lower
from hpc_alpa.plan.intra_op import IntraOp
from hpc_alpa.plan.methods import Method, parse_method, restrictions, split_products
from hpc_alpa.plan.plan import Plan, StagePlan, placement
from hpc_alpa.plan.pricing import Pricing
from hpc_alpa.plan.restrictions import Restrictions
from hpc_alpa.plan.solve.options import Options
from hpc_alpa.plan.solve.solution import Solution
from hpc_alpa.schedule import SCHEDULES, peak_in_flight
from hpc_alpa.search.candidates import Candidate
from hpc_alpa.search.pins import pinned
from hpc_alpa.search.request import Request
from hpc_alpa.simulate import Simulation, simulate
from hpc_alpa.step import StepGraph, split_stages

TRIES = 4  # tightenings of the memory row when the simulator finds more bytes than it counts


@dataclass(frozen=True)
class Scored:
    """A plan of a candidate.

    Attributes:
        seconds: of a step, by the simulator.
        binds: whether the limit on memory has changed the plan.
    """

    plan: Plan
    seconds: float
    binds: bool


def score(request: Request, method: Method | None, step: StepGraph, candidate: Candidate) -> Scored:
    """Plan the stages; when the simulator finds more bytes than fit, plan them tighter."""
    limit = request.memory_limit
    allowed = limit
    least = math.inf
    for _ in range(TRIES):
        try:
            plan, solutions, counted, limited = _plan(request, method, step, candidate, allowed)
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
            return Scored(done, result.step_seconds, limited or allowed < limit)
        # Had the rows counted all that runs, this plan would not have met them.
        allowed = min(allowed, counted) * 0.98 * limit / peak
    raise InfeasibleError(
        f"the memory of a device is {limit:,.0f} bytes, the nearest fit found for "
        f"{candidate} needs {least:,.0f} bytes, {least - limit:,.0f} bytes too many. "
        "Give memory of at least that, use more devices, or a smaller batch",
        missing=least - limit,
    )


def least_objective(
    request: Request, method: Method | None, step: StepGraph, candidate: Candidate
) -> float:
    """Seconds that no plan of a candidate is below, with any memory: a bound of its programs."""
    programs = stage_programs(request, step, candidate, None, method)
    options = Options(seconds=request.seconds)
    return sum(program.solve(options, request.solutions).bound for program in programs)


def _plan(
    request: Request,
    method: Method | None,
    step: StepGraph,
    candidate: Candidate,
    memory: float,
) -> tuple[Plan, list[Solution], float, bool]:
    """The plan, its stages' solutions, the bytes that the memory rows count of the largest, and
    whether any were needed."""
    stages: list[StagePlan] = []
    solutions: list[Solution] = []
    counted, limited = 0.0, False
    made = stage_programs(request, step, candidate, memory, method)
    for program, axes in zip(made, candidate.axes, strict=True):
        solution = program.solve(Options(seconds=request.seconds), request.solutions)
        solutions.append(solution)
        counted = max(counted, program.held_bytes(solution))
        limited |= solution.limited
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
        recompute=candidate.recompute,
    )
    return plan, solutions, counted, limited


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
    family = SCHEDULES[candidate.schedule]
    schedule = family.on(placement(candidate.meshes), candidate.num_microbatches)
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
        plan.recompute,
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
