"""[Candidate] -> [Scored]: the choice program of every stage, solved, and the plan simulated."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hpc_alpa.cluster import DeviceMesh
from hpc_alpa.errors import InfeasibleError
from hpc_alpa.plan.intra_op import IntraOp
from hpc_alpa.plan.methods import Method, parse_method, restrictions, split_products
from hpc_alpa.plan.plan import Plan, StagePlan, placement
from hpc_alpa.plan.pricing import Pricing
from hpc_alpa.plan.restrictions import Restrictions
from hpc_alpa.plan.solve.options import Clock, Options
from hpc_alpa.plan.solve.solution import Solution
from hpc_alpa.schedule import SCHEDULES, peak_in_flight
from hpc_alpa.search.candidates import Candidate
from hpc_alpa.search.pins import pinned
from hpc_alpa.search.placement import place_plan
from hpc_alpa.search.request import Request
from hpc_alpa.search.tables import structure
from hpc_alpa.search.timing import simulated
from hpc_alpa.simulate import Simulation
from hpc_alpa.step import StageGraph, StepGraph, split_stages

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


def score(
    request: Request,
    method: Method | None,
    step: StepGraph,
    candidate: Candidate,
    clock: Clock,
    options: Options,
) -> Scored:
    """Plan the stages; when the simulator finds more bytes than fit, plan them tighter.

    Args:
        options: of each stage's choice program.
    """
    limit = request.memory_limit
    allowed = limit
    least = math.inf
    stages = split_stages(step, candidate.cuts)
    clock.lap("layers")
    for _ in range(TRIES):
        programs = list(stage_programs(request, step, candidate, allowed, method, stages))
        try:
            made = _solved(request, candidate, programs, options)
        except InfeasibleError:
            if math.isinf(least):
                raise
            break  # tighter than this it cannot be planned
        plan = _plan(request, candidate, made)
        clock.lap("strategies")
        result = simulated(step, plan, request.cost, stages)
        clock.lap("simulation")
        peak = max(result.peak_bytes, default=0)
        least = min(least, peak)
        counted = max(m.held_bytes for m in made)
        if peak <= limit:
            facts = {**_solver([m.solution for m in made], counted), "allowed_bytes": allowed}
            done = replace(plan, predicted=_predicted(result), solver=facts)
            binds = any(m.solution.limited for m in made) or allowed < limit
            return Scored(done, result.step_seconds, binds)
        # Had the rows counted all that runs, this plan would not have met them.
        allowed = min(allowed, counted) * 0.98 * limit / peak
    raise InfeasibleError(
        f"the memory of a device is {limit:,.0f} bytes, the nearest fit found for "
        f"{candidate} needs {least:,.0f} bytes, {least - limit:,.0f} bytes too many. "
        "Give memory of at least that, use more devices, or a smaller batch",
        missing=least - limit,
    )


@dataclass(frozen=True)
class _Made:
    """A stage with its strategies; `held_bytes` are those that its memory rows count."""

    stage: StagePlan
    solution: Solution
    held_bytes: float
    in_flight: int


def _solved(
    request: Request, candidate: Candidate, programs: Sequence[IntraOp], options: Options
) -> tuple[_Made, ...]:
    """Every stage's strategies.

    A stage that equals one that holds more microbatches at once takes over its strategies, where
    memory has not changed these, or it holds more than half as many.
    """
    made: dict[int, _Made] = {}
    known: dict[Hashable, _Made] = {}
    alone = request.method != "auto" or request.pins  # restrictions can tell equal stages apart
    for k in sorted(range(len(programs)), key=lambda k: -programs[k].in_flight):
        program, axes = programs[k], candidate.axes[k]
        key = k if alone else (structure(program.stage), _placed(request, program.pricing.mesh))
        like = known.get(key)
        if like is not None and _serves(like, program.in_flight):
            devices = program.pricing.mesh.devices
            made[k] = replace(like, stage=replace(like.stage, devices=devices))
            continue
        solution = program.solve(options, request.solutions)
        stage = program.decode(solution, axes)
        made[k] = _Made(stage, solution, program.held_bytes(solution), program.in_flight)
        known[key] = made[k]
    return tuple(made[k] for k in range(len(programs)))


def _serves(like: _Made, in_flight: int) -> bool:
    return not like.solution.limited or 2 * in_flight > like.in_flight


def _placed(request: Request, mesh: DeviceMesh) -> Hashable:
    """Meshes that lie alike on the cluster have equal keys."""
    hosts = [request.cluster.host_of(d) for d in mesh.devices]
    number = {h: k for k, h in enumerate(dict.fromkeys(hosts))}
    kinds = tuple(request.cluster.hosts[h] for h in number)
    return mesh.shape, tuple(number[h] for h in hosts), kinds


def on_close_devices(request: Request, step: StepGraph, scored: Scored) -> Scored:
    """A plan whose heavy groups are close on the cluster, and what that gains; or as it is.

    Args:
        step: as the plan divides it.
    """
    plan, placement = place_plan(step, scored.plan, request.cost)
    facts = {"placement": placement.facts}
    if plan is scored.plan:
        return replace(scored, plan=replace(plan, predicted={**plan.predicted, **facts}))
    result = simulated(step, plan, request.cost)
    made = replace(plan, predicted={**plan.predicted, **_predicted(result), **facts})
    return replace(scored, plan=made, seconds=result.step_seconds)


def least_objective(
    request: Request, method: Method | None, step: StepGraph, candidate: Candidate
) -> float:
    """Seconds that no plan of a candidate is below, with any memory: a bound of its programs."""
    programs = stage_programs(request, step, candidate, None, method)
    options = Options(seconds=request.seconds)
    return sum(program.solve(options, request.solutions).bound for program in programs)


def _plan(request: Request, candidate: Candidate, made: Sequence[_Made]) -> Plan:
    return Plan(
        request.method,
        candidate.schedule,
        candidate.num_microbatches,
        candidate.cuts,
        tuple(m.stage for m in made),
        request.graph.digest,
        request.cluster.digest,
        (request.cost.name, request.cost.digest),
        request.resharding,
        recompute=candidate.recompute,
    )


def stage_programs(
    request: Request,
    step: StepGraph,
    candidate: Candidate,
    memory: float | None,
    method: Method | None = None,
    stages: Sequence[StageGraph] | None = None,
) -> Iterator[IntraOp]:
    """The choice program of each stage of a layout, not solved yet.

    Args:
        memory: bytes of a device that the rows allow.
        method: a manual method on all devices, or None.
        stages: of the step, where they are known.
    """
    manual = Restrictions() if method is None else restrictions(method, step)
    family = SCHEDULES[candidate.schedule]
    schedule = family.on(placement(candidate.meshes), candidate.num_microbatches)
    in_flight = peak_in_flight(schedule)
    stages = split_stages(step, candidate.cuts) if stages is None else stages
    for stage, mesh in zip(stages, candidate.meshes, strict=True):
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
