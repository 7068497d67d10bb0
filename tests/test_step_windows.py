"""Windows and experts in microbatches compute what the whole batch does; batch norm asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hpc_alpa import nn
from hpc_alpa.ir import evaluate, verify
from hpc_alpa.step.slots import NeedsMicrobatches
from hpc_alpa.trace import value_and_grad
from tests.helpers.loop import run_loop
from tests.helpers.random_losses import Case, traced_case

ROWS, SIDE, CHANNELS = 8, 4, 4


def windows(p: Any, x: Any) -> Any:
    y = nn.max_pool(np.tanh(nn.conv2d(x, p["w"])), 3, stride=2, padding="same")
    return nn.avg_pool(nn.conv2d(y, p["w"][:, :, :2], padding=1), 2)


def experts(p: Any, x: Any) -> Any:
    """Each image is a group of its own: its places do not depend on the others."""
    tokens = x.reshape(ROWS, SIDE * SIDE, CHANNELS)
    values, chosen = nn.top_k(nn.softmax(tokens @ p["w"][0, 0]), 2)
    queue = np.sum(nn.one_hot(chosen, CHANNELS, "int64"), axis=2)
    before = np.cumsum(queue, axis=1) - queue
    places = [np.sum(before * nn.one_hot(chosen[..., k], CHANNELS, "int64"), -1) for k in (0, 1)]
    at = np.stack(places, axis=-1)
    taken = nn.dispatch(tokens, chosen, at, CHANNELS, capacity=6)
    return nn.combine(np.tanh(taken @ p["w"][1, 1]), chosen, at, values)


def normed(p: Any, x: Any) -> Any:
    return nn.batch_norm(nn.conv2d(x, p["w"]), p["scale"], p["scale"])


def case(function: Callable[[Any, Any], Any]) -> Case:
    def step(state: Any, batch: Any) -> Any:
        def loss(p: Any, batch: Any) -> Any:
            return np.mean(function(p, batch["x"]) ** 2)

        value, g = value_and_grad(loss)(state, batch)
        return {k: p - 0.1 * g[k] for k, p in state.items()}, {"loss": value}

    rng = np.random.default_rng(0)
    state = {"w": rng.normal(size=(3, 3, CHANNELS, CHANNELS)), "scale": rng.normal(size=CHANNELS)}
    return traced_case(step, state, {"x": rng.normal(size=(ROWS, SIDE, SIDE, CHANNELS))})


def require_same(made: Case, slots: int) -> None:
    step = made.split(slots)
    verify(step.graph)
    wanted = evaluate(made.graph, made.values)
    for k, (got, want) in enumerate(zip(run_loop(step, made.values), wanted, strict=True)):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9, err_msg=f"output {k}")


@pytest.mark.parametrize("slots", [1, 2, 4])
@pytest.mark.parametrize("function", [windows, experts])
def test_the_loop_keeps_the_meaning(function: Callable[[Any, Any], Any], slots: int) -> None:
    require_same(case(function), slots)


def test_batch_norm_keeps_its_meaning_in_one_microbatch_only() -> None:
    made = case(normed)
    require_same(made, 1)
    with pytest.raises(NeedsMicrobatches, match="number of microbatches is part of this model"):
        made.split(2)
