"""Layers that backward makes again: the same numbers bit for bit, and less that is kept."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hpc_alpa.errors import PlanError
from hpc_alpa.ir import Eqn, Var, verify
from hpc_alpa.models import (
    SGD,
    AdamW,
    BERTConfig,
    GPTConfig,
    MoEConfig,
    WideResNetConfig,
    adamw,
    bert,
    gpt,
    moe,
    sgd,
    wide_resnet,
)
from hpc_alpa.step import (
    BACKWARD,
    FORWARD,
    StepGraph,
    anchors,
    marked_layers,
    recompute,
    split_stages,
)
from tests.helpers.loop import run_loop
from tests.helpers.random_losses import Case, marked_at_random, random_case, traced_case

SIZES: dict[str, Any] = {"hidden": 8, "heads": 2, "sequence": 4, "vocabulary": 8}
GPT = GPTConfig(layers=4, **SIZES, dtype="float64", dropout=0.2)


def _tokens(rows: int) -> dict[str, np.ndarray]:
    found = np.random.default_rng(0).integers(0, 8, (rows, SIZES["sequence"] + 1)).astype("int32")
    return {"tokens": found[:, :-1].copy(), "targets": found[:, 1:].copy()}


def _gpt() -> Case:
    optimizer = adamw(AdamW())
    return traced_case(gpt.train_step(GPT, optimizer), gpt.init(GPT, optimizer)(0), _tokens(4))


def _bert() -> Case:
    config, optimizer = BERTConfig(layers=2, **SIZES, dtype="float64"), adamw(AdamW())
    tokens = _tokens(4)
    zero = np.zeros_like(tokens["tokens"])
    batch = {**tokens, "segments": zero, "masked": zero == 0}
    return traced_case(bert.train_step(config, optimizer), bert.init(config, optimizer)(0), batch)


def _moe() -> Case:
    config = MoEConfig(layers=2, **SIZES, dtype="float64", experts=2, group=4, feed_forward=2)
    optimizer = adamw(AdamW())
    return traced_case(
        moe.train_step(config, optimizer), moe.init(config, optimizer)(0), _tokens(4)
    )


def _wide_resnet() -> Case:
    config = WideResNetConfig(
        blocks=(1, 1), base_channels=4, width_factor=2, classes=4, dtype="float64"
    )
    optimizer = sgd(SGD(0.1, 0.9, nesterov=True))
    rng = np.random.default_rng(0)
    batch = {
        "images": rng.normal(size=(4, 16, 16, config.channels)),
        "labels": rng.integers(0, 4, 4).astype("int32"),
    }
    state = wide_resnet.init(config, optimizer)(0)
    return traced_case(wide_resnet.train_step(config, optimizer), state, batch)


MODELS: dict[str, Callable[[], Case]] = {
    "bert": _bert, "gpt": _gpt, "moe": _moe, "wide_resnet": _wide_resnet,
}  # fmt: skip


@functools.cache
def model(name: str) -> Case:
    return MODELS[name]()


def kept(step: StepGraph) -> dict[Var, Eqn]:
    """What forward makes, and is held until backward."""
    made = {e.output: e for e in step.graph.eqns if e.phase == FORWARD and e.output.type.shape}
    graph = step.graph
    read: set[Var] = set()
    for e in reversed(graph.eqns):
        if e.phase == BACKWARD or (e.op.view and e.output in read):
            read.update(e.inputs)
    return {v: e for v, e in made.items() if v in read and not e.op.view}


def kept_bytes(step: StepGraph) -> int:
    return sum(v.type.nbytes for v in kept(step))


def require_same(case: Case, step: StepGraph, again: StepGraph) -> None:
    verify(again.graph)
    assert again.graph.outputs == step.graph.outputs
    assert [e for e in again.graph.eqns if e.phase != BACKWARD] == [
        e for e in step.graph.eqns if e.phase != BACKWARD
    ], "only backward differs"
    for got, want in zip(run_loop(again, case.values), run_loop(step, case.values), strict=True):
        np.testing.assert_array_equal(got, want)


def repeated(step: StepGraph, again: StepGraph) -> list[Eqn]:
    before = {e.output for e in step.graph.eqns}
    return [e for e in again.graph.eqns if e.output not in before]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("slots", [1, 2])
def test_models_compute_the_same_and_keep_less(name: str, slots: int) -> None:
    case = model(name)
    if name == "wide_resnet":
        slots = 1  # batch norm: their number is part of its meaning
    step = case.split(slots)
    layers = marked_layers(step.graph)
    nbytes = kept_bytes(step)
    for count in range(1, len(layers) + 1):
        again = recompute(step, layers[:count])
        assert again.recomputed == layers[:count]
        require_same(case, step, again)
        assert kept_bytes(again) < nbytes, f"{count} layers"
        nbytes = kept_bytes(again)


@pytest.mark.parametrize("seed", range(40))
def test_random_steps_with_random_layers(seed: int) -> None:
    case = marked_at_random(random_case(seed), seed)
    rng = random.Random(seed)
    for slots in (1, 2):
        step = case.split(slots)
        layers = marked_layers(step.graph)
        some = rng.sample(layers, rng.randint(1, len(layers)))
        cuts = sorted(rng.choices(range(len(anchors(step)) + 1), k=rng.randint(0, 2)))
        again = recompute(step, some, cuts)
        require_same(case, step, again)
        require_stages(step, again, cuts)


def require_stages(step: StepGraph, again: StepGraph, cuts: Collection[int]) -> None:
    """What is made again is read on its own stage; no stage waits for another more often."""
    before, after = split_stages(step, tuple(cuts)), split_stages(again, tuple(cuts))
    new = {e.output for e in repeated(step, again)}
    for old, stage in zip(before, after, strict=True):
        assert not new.intersection(t.value for t in (*stage.received, *stage.sent))
        assert {t for t in stage.sent if t.phase == BACKWARD} == {
            t for t in old.sent if t.phase == BACKWARD
        }


@pytest.mark.parametrize("name", MODELS)
def test_every_cut_leaves_what_crosses_it_to_be_kept(name: str) -> None:
    case = model(name)
    step = case.split(1)
    layers = marked_layers(step.graph)
    for cut in range(0, len(anchors(step)) + 1, 5):
        require_stages(step, recompute(step, layers, (cut,)), (cut,))


def test_a_gpt_keeps_what_enters_its_layers() -> None:
    """Chen et al. 2016, Sec. 4.1: one value for each layer, and what none of them makes."""
    step = model("gpt").split(2)
    again = recompute(step, range(4))
    inside = [e for e in kept(again).values() if e.layer is not None]
    assert len(inside) == 4 and {e.op.name for e in inside} == {"add"}, "the residual's sums"
    assert len([e for e in kept(step).values() if e.layer is not None]) > 40


def test_a_layer_is_made_again_just_before_its_backward() -> None:
    step = model("gpt").split(2)
    again = recompute(step, range(4))
    new = {e.output: e for e in repeated(step, again)}
    assert {e.phase for e in new.values()} == {BACKWARD}
    order = [e for e in again.graph.eqns if e.phase == BACKWARD and e.layer is not None]
    for layer in range(4):
        first = next(k for k, e in enumerate(order) if e.output in new and e.layer == layer)
        earlier = {e.layer for e in order[:first]}
        assert earlier == set(range(layer + 1, 4)), "the layers behind it are done"
    for e in new.values():
        readers = again.graph.readers[e.output]
        assert readers and {r.phase for r in readers} == {BACKWARD}
        assert e.source and again.roles[e.output] is not None


def test_what_backward_does_not_need_is_not_made_again() -> None:
    """The last product of a block goes into the residual's sum only: without dropout it is once."""
    optimizer = adamw(AdamW())
    config = replace(GPT, dropout=0.0)
    made = traced_case(
        gpt.train_step(config, optimizer), gpt.init(config, optimizer)(0), _tokens(4)
    )
    step = made.split(1)
    again = recompute(step, [1])

    def products(step: StepGraph, phase: str) -> int:
        return sum(
            e.op.name == "dot_general" and e.phase == phase and e.layer == 1
            for e in step.graph.eqns
        )

    new = products(again, BACKWARD) - products(step, BACKWARD)
    assert new == products(step, FORWARD) - 1


def test_no_layers_leave_the_step_as_it_is() -> None:
    step = model("gpt").split(2)
    assert recompute(step, ()) is step


def test_unmarked_and_unknown_layers_are_named() -> None:
    with pytest.raises(PlanError, match=r"hpc_alpa\.layer"):
        recompute(random_case(0).split(1), [0])
    with pytest.raises(PlanError, match=r"layers \[7\] .* marked layers 0, 1, 2, 3"):
        recompute(model("gpt").split(1), [1, 7])
