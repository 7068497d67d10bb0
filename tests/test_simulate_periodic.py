"""Long steps from short ones: what is extrapolated is what a whole simulation finds."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from hpc_alpa.lower import Lowering
from hpc_alpa.lower.lower import lowering_of
from hpc_alpa.plan.plan import Plan
from hpc_alpa.simulate import periodic, simulate_many, simulate_plan
from hpc_alpa.step import anchors, split_stages
from tests.helpers.random_losses import random_case
from tests.helpers.random_plans import Scramble
from tests.test_simulate_classes import machine


@pytest.mark.parametrize("schedule", ["1f1b", "eager_1f1b", "zb_h1", "gpipe"])
def test_a_long_step_is_rounds_of_the_same(schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    run = periodic.simulate_plan

    def counted(lowering: Lowering, *args: object, **options: bool) -> object:
        counts.append(max(p.num_microbatches for p in [lowering.plan]))
        return run(lowering, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(periodic, "simulate_plan", counted)
    short = 0
    for seed in range(4):
        rng = random.Random(f"long {seed}")
        step = random_case(seed).split(4)
        size, many = rng.choice([2, 3]), rng.choice([61, 64])
        starts = range(1, len(anchors(step)))
        cuts = tuple(sorted(rng.sample(starts, min(len(starts), size - 1))))
        stages = split_stages(step, cuts)
        plans = tuple(
            Scramble(rng, step, (2,)).plan(s, [2 * k, 2 * k + 1]) for k, s in enumerate(stages)
        )
        plan = Plan("random", schedule, many, cuts, plans, "", "", ("", ""))
        cost = machine(rng, 2 * len(stages))

        def first(count: int, plan: Plan = plan, step=step, stages=stages) -> Lowering:  # type: ignore[no-untyped-def]
            return lowering_of(step, stages, replace(plan, num_microbatches=count))

        counts.clear()
        got = simulate_many(first, many, len(stages), cost)
        short += max(counts) < many
        want = simulate_plan(first(many), cost, timeline=False)
        assert got.step_seconds == pytest.approx(want.step_seconds, rel=1e-8)
        assert got.peak_bytes == want.peak_bytes
        for name in ("compute_seconds", "exposed_communication", "waiting_seconds"):
            assert getattr(got, name) == pytest.approx(getattr(want, name), rel=1e-6, abs=1e-12)
    # What GPipe holds grows with every microbatch.
    assert short >= 3 if schedule != "gpipe" else short < 4
