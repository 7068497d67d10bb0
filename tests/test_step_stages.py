"""Stages of a step: every value is made once, what crosses is sent, together they are the step."""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import numpy as np
import pytest

from hpc_alpa.ir import evaluate, verify
from hpc_alpa.models import AdamW, GPTConfig, MLPConfig, adamw, gpt, mlp
from hpc_alpa.step import APPLY, BACKWARD, FORWARD, PREPARE, StageGraph, StepGraph, anchors
from hpc_alpa.step.stages import movable, split_stages
from tests.helpers.loop import Loop
from tests.helpers.random_losses import Case, random_case, traced_case


def run_stages(
    step: StepGraph, stages: tuple[StageGraph, ...], values: tuple[Any, ...]
) -> list[Loop]:
    """Run all stages; a stage has its inputs, what it makes, and what was sent to it."""
    loops = [Loop(step, s.graph) for s in stages]
    given = dict(zip(step.graph.inputs, values, strict=True))
    received = [{t.value: t for t in s.received} for s in stages]
    for stage, loop, arrivals in zip(stages, loops, received, strict=True):
        loop.once.update({v: given[v] for v in stage.graph.inputs if v not in arrivals})
    made = [set(s.graph.producer) for s in stages]

    def arrive(s: int, v: Any, m: int | None) -> None:
        t = received[s].get(v)
        if t is not None:
            source = loops[t.source]
            if m is not None and v in source.slots[m]:
                loops[s].slots[m][v] = source.slots[m][v]
            else:
                loops[s].once[v] = source.once[v]

    slots = range(step.num_microbatches)
    loop_phases = [(phase, m) for phase in (FORWARD, BACKWARD) for m in slots]
    for phase, m in ((PREPARE, None), *loop_phases, (APPLY, None)):
        for e in step.graph.eqns:
            for s in (s for s in range(len(stages)) if e.phase == phase and e.output in made[s]):
                for v in e.inputs:
                    arrive(s, v, m)
                loops[s].run([e], m)
    return loops


def require_whole(case: Case, step: StepGraph, cuts: tuple[int, ...]) -> None:
    stages = split_stages(step, cuts)
    free = movable(step)
    made = Counter(v for s in stages for v in s.graph.producer)
    assert all(n == 1 or v in free or not v.type.shape for v, n in made.items())
    for s in stages:
        verify(s.graph)
        for t in s.received:
            assert t.target == s.index != t.source
            assert t in stages[t.source].sent
            assert t.value in stages[t.source].graph.outputs
            assert t.value in s.graph.inputs
            if t.phase == FORWARD:
                assert t.source < t.target, "forward values flow forward"
        for t in s.sent:
            assert t in stages[t.target].received
    wanted = evaluate(case.graph, case.values)
    loops = run_stages(step, stages, case.values)
    found = set()
    for s, loop in zip(stages, loops, strict=True):
        for k, v in s.results:
            found.add(k)
            np.testing.assert_allclose(loop.once[v], wanted[k], rtol=1e-8, atol=1e-8)
    assert found == set(range(len(wanted)))


@functools.cache
def model(name: str) -> Case:
    optimizer = adamw(AdamW())
    rng = np.random.default_rng(0)
    if name == "mlp":
        config = MLPConfig(3, 8, dtype="float64")
        x, y = (rng.normal(size=(8, 8)) for _ in range(2))
        step, init = mlp.train_step(optimizer), mlp.init(config, optimizer)
        return traced_case(step, init(0), {"x": x, "y": y})
    size = GPTConfig(
        layers=2, hidden=8, heads=2, sequence=4, vocabulary=8, dtype="float64", dropout=0.2
    )
    tokens = rng.integers(0, 8, (4, 5)).astype("int32")
    batch = {"tokens": tokens[:, :-1].copy(), "targets": tokens[:, 1:].copy()}
    return traced_case(gpt.train_step(size, optimizer), gpt.init(size, optimizer)(0), batch)


@pytest.mark.parametrize("name", ["mlp", "gpt"])
def test_every_cut(name: str) -> None:
    case = model(name)
    step = case.split(2)
    count = len(anchors(step))
    assert count > 6
    for cut in range(count + 1):
        require_whole(case, step, (cut,))


@pytest.mark.parametrize("seed", range(12))
def test_random_steps_at_every_third_cut(seed: int) -> None:
    case = random_case(seed)
    step = case.split(2)
    count = len(anchors(step))
    for cut in range(0, count + 1, 3):
        require_whole(case, step, (cut,))
        require_whole(case, step, (cut // 2, cut))


def test_the_parameters_of_a_layer_stay_with_it() -> None:
    """Nothing of a parameter, its gradient or its optimizer state crosses a cut between layers."""
    case = model("mlp")
    step = case.split(4)
    chain = anchors(step)
    products = [k for k, e in enumerate(chain) if e.op.name == "dot_general"]
    stages = split_stages(step, tuple(products[1:]))
    for s in stages:
        crossing = [t for t in (*s.received, *s.sent) if t.value.type.shape]
        assert {t.phase for t in crossing} <= {FORWARD, BACKWARD}
        weights = [v for v in s.graph.inputs if v.type.shape == (8, 8) and v not in step.batch]
        assert len([v for v in weights if not any(t.value == v for t in s.received)]) == 3


def test_a_cut_sends_one_activation_and_one_gradient() -> None:
    case = model("mlp")
    step = case.split(4)
    products = [k for k, e in enumerate(anchors(step)) if e.op.name == "dot_general"]
    first, second = split_stages(step, (products[1],))
    arrays = [t for t in first.sent if t.value.type.shape]
    gradients = [t for t in second.sent if t.value.type.shape]
    assert [(t.phase, t.value.type.shape) for t in arrays] == [(FORWARD, (2, 8))]
    assert [(t.phase, t.value.type.shape) for t in gradients] == [(BACKWARD, (2, 8))]
