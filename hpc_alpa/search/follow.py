"""A plan for another step (an evaluation) on the placement that a plan gave to the state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hpc_alpa.cost import Cost
from hpc_alpa.ir.graph import Var
from hpc_alpa.plan.intra_op import IntraOp
from hpc_alpa.plan.plan import Plan
from hpc_alpa.plan.pricing import Pricing
from hpc_alpa.plan.restrictions import Restrictions
from hpc_alpa.plan.solve.solver import solve
from hpc_alpa.sharding import ShardingSpec
from hpc_alpa.step import StepGraph, anchors, split_stages

Held = Mapping[Var, ShardingSpec]


def follow_plan(step: StepGraph, plan: Plan, held: Sequence[Held], cost: Cost) -> Plan:
    """Plan a step whose state lies where `plan` put it.

    Args:
        held: for each stage of `plan`, the inputs of `step` that it holds, and their specs.

    Raises:
        ShardingError: an equation has no strategy on the placement.
    """
    on = zip(plan.placement, held, strict=True)
    where = {v: submesh for submesh, found in on for v in found if v.type.shape}
    cuts = _cuts(step, where, plan.placement)
    stages = []
    for stage, base in zip(split_stages(step, cuts), plan.stages, strict=True):
        mine = held[stage.index]

        def allowed(v: Var, spec: ShardingSpec, mine: Held = mine) -> bool:
            return v not in mine or mine[v] == spec

        program = IntraOp(step, stage, Pricing.on(base.mesh, cost), Restrictions(input=allowed))
        stages.append(program.decode(solve(program.problem()), base.axes))
    return Plan(
        "follow", plan.schedule, step.num_microbatches, cuts, tuple(stages), "", plan.cluster,
        (cost.name, cost.digest), plan.resharding,
    )  # fmt: skip


def _cuts(step: StepGraph, where: Mapping[Var, int], placement: Sequence[int]) -> tuple[int, ...]:
    """Every forward equation runs where the parameters are that it, or one before it, reads.

    Args:
        where: the submesh of each parameter.
        placement: the submesh of each stage; of several stages on one, an equation's is the next.
    """
    graph = step.graph
    source = dict(where)
    for e in graph.eqns:
        if e.op.name in ("cast", "enter") and e.inputs[0] in source:
            source[e.output] = source[e.inputs[0]]
    cuts: list[int] = []
    chain = anchors(step)
    for k, e in enumerate(chain):
        for submesh in {source[v] for v in e.inputs if v in source}:
            stage = len(cuts)
            while stage < len(placement) and placement[stage] != submesh:
                stage += 1
            if stage < len(placement):
                cuts += [k] * (stage - len(cuts))
    return (*cuts, *[len(chain)] * (len(placement) - 1 - len(cuts)))
