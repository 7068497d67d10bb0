"""What a parallel step promises: its state, batch, one plan, evaluation, results on every rank."""

from __future__ import annotations

import functools
import logging
import warnings
from typing import Any
from unittest import mock

import numpy as np
import pytest

from hpc_alpa import nn, random
from hpc_alpa.api import Batch, ParallelStep, fetch, parallelize
from hpc_alpa.api import step as step_module
from hpc_alpa.errors import DataError, PlanError
from hpc_alpa.models import AdamW, GPTConfig, adamw, gpt
from hpc_alpa.pytree import flatten
from hpc_alpa.trace import value_and_grad
from tests.helpers.equality import cluster

METHODS = [("dp2", 2), ("tp2", 2), ("pp2", 2), ("dp2tp2", 4)]
CONFIG = GPTConfig(
    layers=1, hidden=8, heads=2, sequence=4, vocabulary=12, dtype="float64", dropout=0.1
)
OPTIMIZER = adamw(AdamW(learning_rate=1e-2))
ROWS = 12


def gpt_batch(seed: int = 0) -> dict[str, np.ndarray]:
    tokens = np.random.default_rng(seed).integers(0, 12, (ROWS, 5)).astype("int32")
    return {"tokens": tokens[:, :-1].copy(), "targets": tokens[:, 1:].copy()}


def gpt_step(method: str, ranks: int, **options: Any) -> ParallelStep:
    return on_threads(gpt.train_step(CONFIG, OPTIMIZER, seed=5), method, ranks, **options)


def on_threads(function: Any, method: str, ranks: int, **options: Any) -> ParallelStep:
    return parallelize(
        function,
        method=method,
        backend="local",
        cluster=cluster(ranks),
        costs="analytic",
        **options,
    )


def small_step(state: Any, batch: Any, rate: Any = 0.1) -> Any:
    """A linear model with a metric per row."""

    def loss(w: Any) -> Any:
        rows = np.mean((batch["x"] @ w - batch["y"]) ** 2, axis=1)
        return np.mean(rows), rows

    (value, rows), g = value_and_grad(loss, has_aux=True)(state["w"])
    return {"w": state["w"] - rate * g, "step": state["step"] + 1}, {"loss": value, "rows": rows}


def small_state() -> Any:
    return {"w": np.random.default_rng(1).normal(size=(6, 4)), "step": 0}


def small_batch(seed: int = 0, rows: int = ROWS) -> Any:
    r = np.random.default_rng(seed)
    return {"x": r.normal(size=(rows, 6)), "y": r.normal(size=(rows, 4))}


# ----------------------------------------------------------------------------------------- state
@functools.cache
def made_on_one_rank() -> tuple[np.ndarray, ...]:
    step = gpt_step("dp1", 1)
    state = step.create(gpt.init(CONFIG, OPTIMIZER), 3)
    step.prepare(state, gpt_batch())
    return tuple(flatten(fetch(state))[0])


@pytest.mark.parametrize(("method", "ranks"), METHODS)
def test_create_gives_what_init_gives_on_one_rank_bit_for_bit(method: str, ranks: int) -> None:
    init = gpt.init(CONFIG, OPTIMIZER)
    plain = flatten(init(3))[0]
    step = gpt_step(method, ranks)
    state = step.create(init, 3)
    for got, want in zip(flatten(fetch(state))[0], plain, strict=True):
        np.testing.assert_array_equal(got, want)  # not made yet
    step.prepare(state, gpt_batch())
    for got, one, want in zip(flatten(fetch(state))[0], made_on_one_rank(), plain, strict=True):
        np.testing.assert_array_equal(got, one)
        np.testing.assert_allclose(got, want, rtol=1e-11)  # NumPy's logarithm is not the kernel's


def test_no_rank_makes_the_whole_of_a_split_state() -> None:
    step = gpt_step("tp2", 2)
    state = step.create(gpt.init(CONFIG, OPTIMIZER), 3)
    step.prepare(state, gpt_batch())
    weight = state["params"]["layers"][0]["attention"]["q"]["weight"]
    assert weight.shape == (8, 8)
    assert {tile.shape for tile in weight.tiles().values()} == {(8, 4)}


def test_a_state_that_was_given_to_a_step_cannot_be_used_again() -> None:
    step = on_threads(small_step, "dp2", 2)
    first, _ = step(small_state(), small_batch())
    second, _ = step(first, small_batch(1))
    with pytest.raises(DataError, match="was given to a step as its state.*step returned"):
        step(first, small_batch(2))
    with pytest.raises(DataError, match="was given to a step"):
        fetch(first)
    assert int(fetch(second)["step"]) == 2
    step(second, small_batch(2))


def test_a_plain_state_is_copied_not_donated() -> None:
    state = small_state()
    before = state["w"].copy()
    step = on_threads(small_step, "dp2", 2)
    one, _ = step(state, small_batch())
    two, _ = step(state, small_batch())
    np.testing.assert_array_equal(state["w"], before)
    np.testing.assert_array_equal(fetch(one)["w"], fetch(two)["w"])


def test_what_is_known_of_a_state_before_it_is_made() -> None:
    step = gpt_step("dp2", 2)
    state = step.create(gpt.init(CONFIG, OPTIMIZER), 3)
    head = state["params"]["head"]
    assert (head.shape, head.ndim, head.size, head.dtype) == ((8, 12), 2, 96, np.float64)
    assert int(state["step"]) == 0
    with pytest.raises(DataError, match="made when its step first runs"):
        head.tiles()
    with pytest.raises(DataError, match=r"hpc_alpa\.fetch"):
        np.asarray(head)
    with pytest.raises(PlanError, match="no plan before its first call"):
        _ = step.plan


# ----------------------------------------------------------------------------------------- batch
@pytest.mark.parametrize(
    ("method", "ranks", "slots", "parts"),
    [
        ("dp2", 2, 1, [[*range(6)], [*range(6, 12)]]),
        ("dp2", 2, 3, [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]]),
        ("dp4", 4, 1, [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]),
        ("tp2", 2, 2, [[*range(12)]]),
    ],
)
def test_a_callable_batch_reads_only_the_rows_of_each_rank(
    method: str, ranks: int, slots: int, parts: list[list[int]]
) -> None:
    data, read = small_batch(), []

    def rows_of(rows: np.ndarray) -> Any:
        read.append(rows.tolist())
        return {name: x[rows] for name, x in data.items()}

    step = on_threads(small_step, method, ranks, num_microbatches=slots)
    got = fetch(step(small_state(), Batch(ROWS, rows_of)))
    assert sorted(r for r in read if r) == sorted(parts)
    whole = on_threads(small_step, method, ranks, num_microbatches=slots)
    for a, b in zip(flatten(got)[0], flatten(fetch(whole(small_state(), data)))[0], strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_callable_batch_may_need_a_row_to_say_what_it_gives() -> None:
    data = small_batch()

    def rows_of(rows: np.ndarray) -> Any:
        return {name: np.stack([x[k] for k in rows]) for name, x in data.items()}

    step = on_threads(small_step, "dp2", 2)
    _, metrics = step(small_state(), Batch(ROWS, rows_of))
    np.testing.assert_allclose(float(metrics["loss"]), small_step(small_state(), data)[1]["loss"])


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize(("method", "ranks"), [("dp2", 2), ("tp2", 2), ("pp2", 2), ("auto", 2)])
def test_results_per_row_come_in_the_order_of_the_batch(
    method: str, ranks: int, slots: int
) -> None:
    step = on_threads(small_step, method, ranks, num_microbatches=slots)
    _, metrics = step(small_state(), small_batch())
    want = small_step(small_state(), small_batch())[1]
    np.testing.assert_allclose(fetch(metrics["rows"]), want["rows"], rtol=1e-12)
    assert float(metrics["loss"]) == pytest.approx(want["loss"], rel=1e-12)


# -------------------------------------------------------------------------------------- one plan
def test_a_step_counter_and_a_learning_rate_make_one_plan() -> None:
    step = on_threads(small_step, "dp2", 2)
    state: Any = small_state()
    with mock.patch.object(step_module, "compile_step", wraps=step_module.compile_step) as made:
        for k, rate in enumerate([0.1, 0.05, 1e-3, 2.0]):
            plain = fetch(state)
            state, _ = step(state, small_batch(k), rate)
            want = small_step(plain, small_batch(k), rate)[0]
            np.testing.assert_allclose(fetch(state)["w"], want["w"], rtol=1e-12)
            assert int(state["step"]) == k + 1
    assert made.call_count == 1


def test_a_second_re_plan_warns_and_says_which_leaf(caplog: pytest.LogCaptureFixture) -> None:
    step = on_threads(small_step, "dp2", 2)
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        step(small_state(), small_batch(rows=4))
        assert not caplog.records
        step(small_state(), small_batch(rows=8))
        assert "batch/x is float64[8,6], it was float64[4,6]" in caplog.text
        step(small_state(), small_batch(rows=4))  # a plan that is there already
    with pytest.warns(UserWarning, match=r"batch/x is float64\[12,6\], it was float64\[4,6\].*2"):
        step(small_state(), small_batch(rows=12))


# ---------------------------------------------------------------------------- follow, untraced
@pytest.mark.parametrize(("method", "ranks"), METHODS)
def test_an_evaluation_on_the_same_placement_gives_the_same_loss(method: str, ranks: int) -> None:
    step = gpt_step(method, ranks)
    evaluate = parallelize(gpt.eval_step(CONFIG), follow=step)
    state, _ = step(step.create(gpt.init(CONFIG, OPTIMIZER), 3), gpt_batch())
    for k in range(2):
        plain = gpt.eval_step(CONFIG)(fetch(state), gpt_batch(k))
        found = evaluate(state, gpt_batch(k))
        assert float(found["loss"]) == pytest.approx(plain["loss"], rel=1e-10)
    state, _ = step(state, gpt_batch(1))


def test_a_step_runs_untraced_and_gives_the_same() -> None:
    step = gpt_step("dp2tp2", 4)
    init = gpt.init(CONFIG, OPTIMIZER)
    plain, distributed = init(3), step.create(init, 3)
    for k in range(2):
        plain, want = gpt.train_step(CONFIG, OPTIMIZER, seed=5)(plain, gpt_batch(k))
        distributed, got = step(distributed, gpt_batch(k))
        assert float(got["loss"]) == pytest.approx(float(want["loss"]), rel=1e-10)
    for a, b in zip(flatten(plain)[0], flatten(fetch(distributed))[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def _tied(state: Any, batch: Any) -> Any:
    """A table read at both ends, clipped by the norm of all gradients, with dropout."""

    def loss(p: Any) -> Any:
        x = nn.embedding(p["table"], batch["tokens"])
        x = np.tanh(random.dropout(x, 0.2, seed=1, step=state["step"], name="d") @ p["w"])
        return np.mean(nn.cross_entropy(x @ p["table"].T, batch["targets"]))

    value, g = value_and_grad(loss)(state["params"])
    norm = np.sqrt(sum((x * x).sum() for x in g.values()))
    params = {k: p - 0.1 / np.maximum(norm, 1e-3) * g[k] for k, p in state["params"].items()}
    return {"params": params, "step": state["step"] + 1}, {"loss": value, "norm": norm}


@pytest.mark.parametrize(("method", "ranks"), [("pp2", 2), ("dp2pp2", 4), ("tp2", 2), ("auto", 2)])
@pytest.mark.parametrize("slots", [1, 3])
def test_tied_weights_and_a_global_norm_across_stages(method: str, ranks: int, slots: int) -> None:
    r = np.random.default_rng(0)
    params = {"table": r.normal(size=(12, 8)), "w": r.normal(size=(8, 8))}
    plain: Any = {"params": params, "step": 0}
    step = on_threads(_tied, method, ranks, num_microbatches=slots)
    state: Any = plain
    for k in range(2):
        state, got = step(state, gpt_batch(k))
        plain, want = _tied(plain, gpt_batch(k))
        assert float(got["loss"]) == pytest.approx(float(want["loss"]), rel=1e-10)
        assert float(got["norm"]) == pytest.approx(float(want["norm"]), rel=1e-10)
    for a, b in zip(flatten(plain)[0], flatten(fetch(state))[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)
