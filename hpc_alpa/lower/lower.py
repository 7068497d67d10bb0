"""[StepGraph, Plan] -> [Program], one for each rank.

stage code      what each stage does in each phase, with conversions         spmd
buckets         collectives of the once-a-step phases fused                  bucket
submeshes       stages that share devices, with values handed over           submesh
channels        transfers between submeshes, and the order of messages       channels
instances       this device's tiles and groups                               instantiate
actions         phases in the order of the schedule, with their messages     rank
frees           after the last reader of a buffer                            liveness
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpc_alpa.errors import PlanError
from hpc_alpa.lower.bucket import bucket
from hpc_alpa.lower.channels import Traffic, traffic
from hpc_alpa.lower.program import Program
from hpc_alpa.lower.rank import Alike, Counts, write, write_thin
from hpc_alpa.lower.spmd import StageCode, stage_code
from hpc_alpa.lower.submesh import Submesh, shared_over, submeshes
from hpc_alpa.plan.plan import Plan
from hpc_alpa.schedule import SCHEDULES, Pass, Schedule
from hpc_alpa.step import APPLY, BACKWARD, PREPARE, StageGraph, StepGraph, split_stages
from hpc_alpa.step.rows import Rows


def lower(step: StepGraph, plan: Plan) -> tuple[Program, ...]:
    """The program of every rank.

    Raises:
        PlanError: the plan was made for another graph, number of microbatches or choice of layers
            to make again; `Plan.divide` makes the step. Its schedule does not exist, or runs no
            backward pass where the step has one.
        ScheduleError: its schedule puts the stages on other submeshes.
    """
    return lowering(step, plan).programs()


def lowering(step: StepGraph, plan: Plan) -> Lowering:
    """What all ranks share; raises as `lower` does."""
    if plan.num_microbatches != step.num_microbatches:
        raise PlanError(
            f"the plan has {plan.num_microbatches} microbatches, the step {step.num_microbatches}"
        )
    if plan.recompute != step.recomputed:
        raise PlanError(
            f"the plan recomputes layers {list(plan.recompute)}, the step {list(step.recomputed)}"
        )
    return lowering_of(step, split_stages(step, plan.cuts), plan)


def lower_stages(step: StepGraph, stages: Sequence[StageGraph], plan: Plan) -> tuple[Program, ...]:
    """The program of every rank, for stages that are already split."""
    return lowering_of(step, stages, plan).programs()


def lowering_of(step: StepGraph, stages: Sequence[StageGraph], plan: Plan) -> Lowering:
    """What all ranks share, for stages that are already split."""
    shared = {k for k, p in enumerate(plan.placement) if plan.placement.count(p) > 1}
    codes = [
        stage_code(
            stage,
            stage_plan,
            Rows.of(stage.graph, step.batch, step.num_microbatches),
            f"s{k}." if k in shared else "",
        )
        for k, (stage, stage_plan) in enumerate(zip(stages, plan.stages, strict=True))
    ]
    for code in codes:
        for phase in (PREPARE, APPLY):
            code.items[phase] = bucket(code.items[phase])
    schedule = _schedule(plan, codes)
    parts = submeshes(codes, plan, Pass.WEIGHT in schedule.passes)
    return Lowering(step, plan, parts, schedule, traffic(parts, schedule, plan.resharding))


@dataclass(frozen=True)
class Lowering:
    """What the programs of all ranks are written from; each is written when it is asked for.

    Attributes:
        submeshes: the work of each submesh, the same on all of its devices.
        schedule: a row of actions for each submesh.
        traffic: every transfer between submeshes.
    """

    step: StepGraph
    plan: Plan
    submeshes: tuple[Submesh, ...]
    schedule: Schedule
    traffic: Traffic

    @property
    def ranks(self) -> tuple[int, ...]:
        """All ranks that have a program, ascending."""
        return tuple(sorted(d for s in self.submeshes for d in s.mesh.devices))

    @property
    def shared(self) -> tuple[tuple[tuple[int, ...], int], ...]:
        """Group, its root first, and bytes of each broadcast at the end of a step, in order."""
        scalars = [(k, v) for k, v in enumerate(self.step.graph.outputs) if not v.type.shape]
        found = ((shared_over(self.submeshes, k), v.type.nbytes) for k, v in scalars)
        return tuple((group, nbytes) for group, nbytes in found if len(group) > 1)

    def programs(self) -> tuple[Program, ...]:
        """The program of every rank."""
        return tuple(map(self.program, self.ranks))

    def program(self, rank: int) -> Program:
        """The program of one rank."""
        mine = next(s for s in self.submeshes if rank in s.mesh.devices)
        row = self.schedule[mine.index]
        return write(self.step, self.submeshes, mine, row, self.traffic, rank)

    def thin(self, rank: int, alike: Alike) -> tuple[Program, Counts]:
        """The program of one rank without pieces that are alike (`rank.write_thin`)."""
        mine = next(s for s in self.submeshes if rank in s.mesh.devices)
        row = self.schedule[mine.index]
        return write_thin(self.step, self.submeshes, mine, row, self.traffic, rank, alike)


def _schedule(plan: Plan, codes: Sequence[StageCode]) -> Schedule:
    """The plan's schedule, without backward passes for a step that has none."""
    family = SCHEDULES.get(plan.schedule)
    if family is None:
        raise PlanError(f"there is no schedule {plan.schedule!r}; there are {', '.join(SCHEDULES)}")
    schedule = family.on(plan.placement, plan.num_microbatches)
    if not any(code.items[BACKWARD] for code in codes):
        return schedule.only(lambda action: action.kind == Pass.FORWARD)
    if not family.trains:
        trains = ", ".join(name for name, f in SCHEDULES.items() if f.trains)
        raise PlanError(
            f"schedule {plan.schedule!r} runs no backward pass, and the step has one; there are "
            f"{trains}"
        )
    return schedule
