"""[Plan] -> [Simulation]: a plan's step in modelled time, as the search asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hpc_alpa.cost import Cost
from hpc_alpa.lower.lower import Lowering, lowering_of
from hpc_alpa.plan.plan import Plan
from hpc_alpa.simulate import Simulation, simulate_many
from hpc_alpa.step import StageGraph, StepGraph, split_stages


def simulated(
    step: StepGraph, plan: Plan, cost: Cost, stages: Sequence[StageGraph] | None = None
) -> Simulation:
    """Seconds and bytes, without a timeline; a long step from short ones.

    Args:
        step: as the plan divides it; `stages` are those of its cuts, where they are known.

    Raises:
        as `simulate.simulate_plan`.
    """
    stages = split_stages(step, plan.cuts) if stages is None else stages

    def first(count: int) -> Lowering:
        return lowering_of(step, stages, replace(plan, num_microbatches=count))

    return simulate_many(first, plan.num_microbatches, len(plan.submeshes), cost)
