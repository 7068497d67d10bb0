"""Steps split over time compute what they compute unsplit, or say why they cannot."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpc_alpa import nn
from hpc_alpa.errors import TracingError
from hpc_alpa.ir import evaluate, verify
from hpc_alpa.sharding.strategies import IDLE, rule_of
from hpc_alpa.step import LOOP, PREPARE, NeedsMicrobatches
from hpc_alpa.trace import value_and_grad
from tests.helpers.loop import run_loop
from tests.helpers.random_losses import (
    LAYERS,
    LOSSES,
    Case,
    random_batch,
    random_case,
    random_state,
    traced_case,
)

SLOTS = (1, 2, 4)


def require_same(case: Case, slots: int) -> None:
    step = case.split(slots)
    verify(step.graph)
    wanted = evaluate(case.graph, case.values)
    for k, (got, want) in enumerate(zip(run_loop(step, case.values), wanted, strict=True)):
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9, err_msg=f"output {k}")


@pytest.mark.parametrize("seed", range(60))
def test_random_steps_keep_their_meaning(seed: int) -> None:
    case = random_case(seed)
    for slots in SLOTS:
        require_same(case, slots)


def test_the_random_steps_have_every_layer_and_loss() -> None:
    drawn = set()
    for seed in range(60):
        rng = random.Random(seed)
        drawn.update(rng.choices(sorted(LAYERS), k=rng.randint(1, 4)))
    assert drawn == set(LAYERS) and len(LOSSES) == 5


def one_loss(
    loss: Callable[[Any, Any], Any], metric: Callable[[Any, Any], Any] | None = None
) -> Case:
    """A step of one loss, and a metric that is computed outside what is differentiated."""

    def step(state: Any, batch: Any) -> Any:
        value, g = value_and_grad(loss)(state["w"][0], batch)
        extra = metric(state["w"][0], batch) if metric else 0.0
        return {**state, "w": [state["w"][0] - g, *state["w"][1:]]}, value, extra

    return traced_case(step, random_state(1), random_batch(1))


def _batch_norm(w: Any, batch: Any) -> Any:
    h = batch["x"] @ w
    centred = h - h.mean(axis=0)
    return np.mean(centred / np.sqrt((centred**2).mean(axis=0) + 0.1) * batch["y"])


def _rows_meet(w: Any, batch: Any) -> Any:
    h = batch["x"] @ w
    return np.mean(np.tanh(h @ h.T))


PART_OF_THE_MEANING: dict[str, Callable[[Any, Any], Any]] = {
    "batch norm": _batch_norm,
    "class per row": lambda w, b: np.mean(nn.cross_entropy((b["x"] @ w).T, b["label"])),
    "cumulative over rows": lambda w, b: np.mean(np.cumsum(b["x"] @ w, axis=0) * b["y"]),
    "gather of rows": lambda w, b: np.mean(nn.embedding(b["x"] @ w, np.array([3, 1]))),
    "largest row": lambda w, b: np.sum(np.max(b["x"] @ w, axis=0)),
    "log of a mean": lambda w, b: np.log(1 + np.mean((b["x"] @ w) ** 2)),
    "norm over rows": lambda w, b: np.mean(
        nn.layer_norm((b["x"] @ w).T, np.ones(8), np.zeros(8)) * b["y"].T
    ),
    "product of means": lambda w, b: np.mean(b["x"] @ w) * np.mean(b["y"] @ w),
    "rows meet": _rows_meet,
    "shift": lambda w, b: np.mean((b["x"] @ w)[1:] * b["y"][:-1]),
    "softmax over rows": lambda w, b: np.mean(nn.softmax(b["x"] @ w, axis=0) * b["y"]),
}  # fmt: skip


@pytest.mark.parametrize("name", PART_OF_THE_MEANING)
def test_microbatches_that_are_part_of_the_meaning_are_asked_for(name: str) -> None:
    case = one_loss(PART_OF_THE_MEANING[name])
    for slots in (2, 4):
        with pytest.raises(NeedsMicrobatches, match=rf"{Path(__file__).name}:\d+ needs") as error:
            case.split(slots)
        assert f"split into {slots} microbatches" in str(error.value)
        assert "num_microbatches=1" in str(error.value)


@pytest.mark.parametrize("name", PART_OF_THE_MEANING)
def test_one_microbatch_keeps_the_meaning_of_the_unsplit_step(name: str) -> None:
    require_same(one_loss(PART_OF_THE_MEANING[name]), 1)


@pytest.mark.parametrize("name", PART_OF_THE_MEANING)
def test_the_same_as_metrics_is_accepted(name: str) -> None:
    case = one_loss(lambda w, b: np.mean((b["x"] @ w - b["y"]) ** 2), PART_OF_THE_MEANING[name])
    for slots in SLOTS:
        require_same(case, slots)


ALLOWED: dict[str, Callable[[Any, Any], Any]] = {
    "captured rows": lambda w, b: np.mean((b["x"] @ w) * np.arange(8.0)[:, None]),
    "centred inputs": lambda w, b: np.mean(((b["x"] - b["x"].mean(axis=0)) @ w) ** 2),
    "flat": lambda w, b: np.mean((b["x"] @ w).reshape(64) ** 2),
    "one hot": lambda w, b: np.mean((nn.one_hot(b["label"], 8, "float64") @ w) ** 2),
    "standard inputs": lambda w, b: np.mean(
        ((b["x"] - b["x"].mean(axis=0)) / b["x"].std(axis=0) @ w) ** 2
    ),
    "two masks": lambda w, b: (
        np.sum((b["x"] @ w).sum(1) * b["mask"]) / np.sum(b["mask"] * (b["label"] > 2) + 0.5)
    ),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_what_depends_on_inputs_alone_is_computed_before_the_loop(name: str) -> None:
    case = one_loss(ALLOWED[name])
    for slots in SLOTS:
        require_same(case, slots)


def test_a_token_count_is_made_once() -> None:
    case = one_loss(lambda w, b: np.sum((b["x"] @ w).sum(axis=1) * b["mask"]) / np.sum(b["mask"]))
    step = case.split(4)
    sums = [e for e in step.graph.eqns if e.op.name == "reduce_sum" and not e.output.type.shape]
    assert [e.phase for e in sums if e.inputs[0] in step.batch] == [PREPARE]


def test_masks_and_random_values_are_made_in_their_slot() -> None:
    """A slice of a mask or of random values of the whole batch would be kept for the whole step."""
    for seed in range(12):
        step = random_case(seed).split(4)
        cut = [e.inputs[0] for e in step.graph.eqns if e.op.name == "slot"]
        assert all(v in step.batch for v in cut), f"seed {seed}"


def test_roles_are_factors_of_their_equations() -> None:
    """What manual methods go by: the factor that carries the batch, a partial sum, or neither."""
    for seed in range(12):
        for slots in SLOTS:
            step = random_case(seed).split(slots)
            for e in step.graph.eqns:
                role = step.roles.get(e.output, IDLE)
                assert role[0] in "+>-" or role in rule_of(e).sizes
                assert (role == IDLE) or e.phase in LOOP


@pytest.mark.parametrize("slots", [3, 5, 16])
def test_a_batch_that_does_not_divide_is_named(slots: int) -> None:
    with pytest.raises(TracingError, match=rf"'batch/\w+' .*does not divide into {slots}"):
        random_case(0).split(slots)
