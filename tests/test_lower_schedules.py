"""Programs of random steps under every schedule, stages on submeshes of their own and shared ones.

`HPC_ALPA_FUZZ_SECONDS=600 python -m pytest tests/test_lower_schedules.py` runs as long as it is
told, from the seed in `HPC_ALPA_FUZZ_SEED` on; without it the seeds are fixed.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import pytest

from hpc_alpa.errors import PlanError
from hpc_alpa.ir import Var, evaluate
from hpc_alpa.lower import Program, lower, lowering
from hpc_alpa.lower.check import check
from hpc_alpa.lower.program import KIND, Send
from hpc_alpa.lower.spmd import Compute
from hpc_alpa.plan.plan import Plan
from hpc_alpa.schedule import SCHEDULES
from hpc_alpa.sharding import ShardingSpec
from hpc_alpa.step import BACKWARD, WEIGHT, StepGraph, anchors, split_stages, weight_half
from tests.helpers.random_losses import Case, random_case
from tests.helpers.random_plans import MeshShape, Scramble, require_outputs, run
from tests.test_lower_lowering import SECONDS, seeds

PER_SUBMESH: dict[str, list[int | None]] = {"interleaved_1f1b": [2, 3]}
MESHES: list[MeshShape] = [(1,), (2,), (2, 2)]
TRAINING = [name for name, family in SCHEDULES.items() if family.trains]


@dataclass(frozen=True)
class Drawn:
    """A random step, and a random plan of it."""

    case: Case
    step: StepGraph
    plan: Plan


def drawn(seed: int) -> Drawn:
    """Stages on one to three submeshes; each submesh's stages under specs of their own."""
    rng = random.Random(f"schedules {seed}")
    schedule = TRAINING[seed % len(TRAINING)]
    case = random_case(seed)
    step = case.split(rng.choice([1, 2, 4]))
    family = SCHEDULES[schedule]
    placement = family.placement(
        rng.choice([1, 2, 3]), rng.choice(PER_SUBMESH.get(schedule, [None]))
    )
    cuts = tuple(sorted(rng.randint(0, len(anchors(step))) for _ in placement[1:]))
    meshes: list[MeshShape] = [rng.choice(MESHES) for _ in range(max(placement) + 1)]
    starts = [0, *accumulate(map(math.prod, meshes))]
    plans = []
    alike: dict[int, dict[Var, ShardingSpec]] = {}
    for stage, k in zip(split_stages(step, cuts), placement, strict=True):
        fixed = alike.setdefault(k, {})
        ranks = range(starts[k], starts[k + 1])
        made = Scramble(rng, step, meshes[k]).plan(stage, ranks, fixed)
        plans.append(made)
        if rng.random() < 0.7:
            # Rows in slots do not convert to every spec, so stages mostly read their inputs alike.
            received = {t.value for t in stage.received}
            for v, text in zip(stage.graph.inputs, made.inputs, strict=True):
                if v not in received:
                    fixed.setdefault(v, ShardingSpec.parse(text))
    plan = Plan(
        "random", schedule, step.num_microbatches, cuts, tuple(plans), "", "", ("", ""),
        rng.choice(["broadcast", "send_recv"]),
    )  # fmt: skip
    return Drawn(case, step, plan)


def test_random_steps_under_every_schedule() -> None:
    met: Counter[str] = Counter()
    for seed in seeds(36):
        d = drawn(seed)
        assert Plan.from_json(d.plan.to_json()) == d.plan
        at = f"seed {seed}, {d.plan.schedule}, {d.step.num_microbatches} microbatches"
        try:
            programs = lower(d.step, d.plan)
        except PlanError as error:
            assert "give all the same spec" in str(error), at
            met["refused"] += 1
            continue
        try:
            check(programs)
            check(programs, in_order=True)
            engine, outputs, records = run(programs, d.case.graph, d.case.values)
            require_outputs(engine, outputs, evaluate(d.case.graph, d.case.values), 1e-8)
        except Exception as error:
            raise AssertionError(f"{at}, cuts {d.plan.cuts}: {error}") from error
        met[d.plan.schedule] += 1
        met["shared"] += len(d.plan.stages) - len(d.plan.submeshes)
        for p in programs:
            counted = Counter(KIND[type(i)] for i in p.instructions if type(i) in KIND)
            assert records[p.rank].collectives == counted
            met["sends"] += sum(isinstance(i, Send) for i in p.instructions)
        met["handed over"] += handed_over(programs)
    if not SECONDS:
        assert all(met[name] > 3 for name in (*TRAINING, "shared")), met
        assert met["sends"] > 100 and met["handed over"] > 8 and met["refused"] < 10, met


def handed_over(programs: Sequence[Program]) -> int:
    """How many bodies of a stage read what another stage of the submesh has made."""
    return sum(
        any(not n.startswith(stage) and n.endswith("@") for k in body.kernels for n in k.inputs)
        for p in programs
        for name, body in p.bodies.items()
        if (stage := name.partition(".")[0]).startswith("s")
    )


def test_the_weight_half_is_what_nobody_waits_for() -> None:
    """The equations of both halves in programs are those that the step names."""
    halves: Counter[bool] = Counter()
    for seed in seeds(40):
        d = drawn(seed)
        if not d.plan.schedule.startswith("zb"):
            continue
        try:
            made = lowering(d.step, d.plan)
        except PlanError:
            continue
        for stage, k in zip(split_stages(d.step, d.plan.cuts), d.plan.placement, strict=True):
            late = weight_half(stage)
            sent = {t.value for t in stage.sent if t.phase == BACKWARD}
            assert not sent & late
            own = [e for e in stage.graph.eqns if e.phase == BACKWARD]
            found = {}
            for phase in (BACKWARD, WEIGHT):
                items = made.submeshes[k].looped[stage.index, phase]
                names = [i.output for i in items if isinstance(i, Compute)]
                assert len(names) == len(set(names))
                # `v12.S0R@`, and `v12.i3@` of a fused operator's phase: both are of value 12.
                found[phase] = {int(n.partition("v")[2].partition(".")[0]) for n in names}
            assert found[WEIGHT] == {v.id for v in late}
            assert found[BACKWARD] == {e.output.id for e in own if e.output not in late}
            halves.update(e.output in late for e in own)
    assert SECONDS or min(halves.values()) > 30, halves


def test_inputs_that_do_not_convert_are_named() -> None:
    """Rows that lie in slots can only be gathered: of two splits neither comes from the other."""
    step = random_case(3).split(2)
    stages = split_stages(step, (len(anchors(step)) // 2,))
    [v, *_] = [v for v in stages[0].graph.inputs if v in step.batch and v in stages[1].graph.inputs]
    plans = tuple(
        Scramble(random.Random(0), step, (2, 2)).plan(
            stage, range(4), {v: ShardingSpec.parse(first + "R" * (v.type.ndim - 1))}
        )
        for stage, first in zip(stages, ("S0", "S1"), strict=True)
    )
    plan = Plan("random", "zb_v", 2, (len(anchors(step)) // 2,), plans, "", "", ("", ""))
    with pytest.raises(PlanError, match=r"stages \[0, 1\] lie on the same devices.* as S0"):
        lower(step, plan)
