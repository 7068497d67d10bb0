"""Mixtures of experts: a loop over tokens, gradients, training plain, traced and in parallel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hpc_alpa import nn
from hpc_alpa.errors import DataError
from hpc_alpa.models import AdamW, MoEConfig, Optimizer, adafactor, adamw, moe
from hpc_alpa.models.gating import top2
from hpc_alpa.models.optimizers import num_parameters
from hpc_alpa.trace import value_and_grad
from tests.helpers.training import (
    require_gradient,
    require_parallel_equals_one_rank,
    require_trains,
)
from tests.models import dense_experts

TINY = MoEConfig(
    layers=2, hidden=12, heads=2, sequence=8, vocabulary=10, dtype="float64", experts=4, group=16,
    feed_forward=2,
)  # fmt: skip


def text(config: MoEConfig, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Tokens that count up from 0 to 3, and start again."""
    starts = np.random.default_rng(seed).integers(0, 4, (rows, 1))
    found = ((starts + np.arange(config.sequence + 1)) % 4).astype("int32")
    return {"tokens": found[:, :-1], "targets": found[:, 1:]}


def some_experts(config: MoEConfig, seed: int = 0) -> tuple[dict[str, Any], np.ndarray]:
    """Parameters far from even gates, and hidden states."""
    params = moe.init_experts(seed, "experts", config, 0.3)
    params = {"gate": params["gate"] * 50, "up": params["up"] * 20, "down": params["down"]}
    x = np.random.default_rng(seed).normal(size=(6, config.sequence, config.hidden))
    return params, x


@pytest.mark.parametrize("factor", [2.0, 1.0, 0.5])
@pytest.mark.parametrize("group", [16, 8])
def test_experts_are_a_loop_over_tokens(factor: float, group: int) -> None:
    config = replace(TINY, capacity_factor=factor, group=group)
    params, x = some_experts(config)
    groups = x.reshape(-1, group, config.hidden)
    routes = top2(nn.softmax(groups @ params["gate"]))
    want, dropped = np.zeros_like(groups), 0
    for g, s, k in np.ndindex(routes.experts.shape):
        e = routes.experts[g, s, k]
        if routes.places[g, s, k] < config.capacity:
            inner = np.maximum(groups[g, s] @ params["up"][e], 0)
            want[g, s] += routes.weights[g, s, k] * (inner @ params["down"][e])
        else:
            dropped += 1
    assert dropped > 0 or factor > 1
    found, balance = moe.experts(params, x, config)
    np.testing.assert_allclose(found, want.reshape(x.shape), rtol=1e-10, atol=1e-14)
    assert balance == routes.balance > 1


def test_sending_by_index_is_the_product_with_one_hot_arrays() -> None:
    config = replace(TINY, capacity_factor=1.0)
    params, x = some_experts(config)
    weights = np.random.default_rng(1).normal(size=x.shape)

    def by_index(p: Any, x: Any) -> Any:
        return np.sum(moe.experts(p, x, config)[0] * weights)

    def by_product(p: Any, x: Any) -> Any:
        made = dense_experts(p, x, config.group, config.capacity)
        return np.sum(made * weights)

    one, first = value_and_grad(by_index, argnums=(0, 1))(params, x)
    two, second = value_and_grad(by_product, argnums=(0, 1))(params, x)
    assert one == pytest.approx(float(two), rel=1e-12)
    for name in params:
        np.testing.assert_allclose(first[0][name], second[0][name], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(first[1], second[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_mixture_of_experts_trains_equally_plain_and_traced(dtype: str) -> None:
    config, optimizer = replace(TINY, dtype=dtype, dropout=0.1), adamw(AdamW(learning_rate=2e-2))
    step = moe.train_step(config, optimizer, seed=5)
    batches = [text(config, 8, k) for k in range(10)]
    losses = require_trains(step, moe.init(config, optimizer)(0), batches)
    assert losses[-1] < losses[0] - 0.5


def test_the_gradient_of_a_mixture_of_experts_agrees_with_differences() -> None:
    config = replace(TINY, capacity_factor=1.0, balance=0.3, dropout=0.2)
    batch = text(config, 4)
    require_gradient(
        lambda p: moe.loss(p, batch, config, seed=1, step=3),
        moe.init_params(config, 0),
        scale=5,
        step=1e-6,
        rel=1e-5,
    )


def test_every_second_layer_has_experts() -> None:
    params = moe.init_params(replace(TINY, layers=5), 0)
    found = [set(layer["feed_forward"]) for layer in params["layers"]]
    assert found == [{"up", "down"}, {"gate", "up", "down"}] * 2 + [{"up", "down"}]
    assert params["layers"][1]["feed_forward"]["down"].shape == (4, 24, 12)


def test_the_balance_is_part_of_the_loss_and_not_of_evaluation() -> None:
    state, batch = moe.init(TINY, adamw())(0), text(TINY, 4)
    found, balance = moe.logits(state["params"], batch["tokens"], TINY)
    entropy = np.mean(nn.cross_entropy(found, batch["targets"]))
    assert balance >= 1
    whole = moe.loss(state["params"], batch, replace(TINY, balance=0.5))
    assert whole == pytest.approx(entropy + 0.5 * balance)
    assert moe.eval_step(TINY)(state, batch)["loss"] == entropy


@pytest.mark.parametrize("layers", [2, 5])
def test_the_number_of_parameters_is_counted(layers: int) -> None:
    config = replace(TINY, layers=layers)
    assert config.num_parameters == num_parameters(moe.init_params(config, 0))


def test_the_papers_sizes_have_the_papers_names() -> None:
    for name in moe.SIZES:
        nominal = float(name[:-1]) * {"M": 1e6, "B": 1e9}[name[-1]]
        found = moe.paper_config(name).num_parameters
        assert 0.98 < found / nominal < 1.08, (name, found)
    assert moe.paper_config("27B").capacity == 85
    with pytest.raises(DataError, match="no MoE '7B'; the paper's are 380M"):
        moe.paper_config("7B")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 1}, "layers is 1; every second layer has experts"),
        ({"experts": 1}, "experts is 1; a token goes to two"),
        ({"group": 1}, "a group of 1 tokens and a capacity factor of 2.0 leave 4 experts no place"),
        ({"heads": 5}, "MoEConfig: hidden 12 is not a multiple of heads 5"),
    ],
)
def test_a_config_that_makes_no_model_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        replace(TINY, **change)


def test_tokens_that_fill_no_whole_group_are_refused() -> None:
    with pytest.raises(DataError, match="3 x 8 tokens are not a multiple of the group of 16"):
        moe.loss(moe.init_params(TINY, 0), text(TINY, 3), TINY)


@pytest.mark.parametrize(
    ("method", "slots", "optimizer"),
    [
        ("dp2", 1, adafactor()),
        ("tp2", 1, adamw(AdamW(learning_rate=1e-2))),
        ("auto", 2, adamw(AdamW(learning_rate=1e-2))),
    ],
    ids=["dp2 adafactor", "tp2 adamw", "auto adamw"],
)
def test_in_parallel_a_mixture_of_experts_is_that_of_one_rank(
    method: str, slots: int, optimizer: Optimizer
) -> None:
    config = replace(TINY, dropout=0.1, capacity_factor=1.0)
    step = require_parallel_equals_one_rank(
        moe.train_step(config, optimizer, seed=5),
        moe.init(config, optimizer),
        [text(config, 8, k) for k in range(2)],
        method,
        num_microbatches=slots,
    )
    if method == "dp2":
        assert step.record.collectives == {"all_reduce": 1}, "one bucket of gradients"
