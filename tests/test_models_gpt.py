"""The GPT and the MLP: gradients, dropout, sizes, and training plain and traced."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hpc_alpa.errors import DataError
from hpc_alpa.models import SGD, AdamW, GPTConfig, MLPConfig, adamw, gpt, mlp, sgd
from hpc_alpa.models.optimizers import num_parameters
from hpc_alpa.pytree import flatten, tree_map
from hpc_alpa.trace import trace, value_and_grad

TINY = GPTConfig(layers=2, hidden=12, heads=3, sequence=6, vocabulary=10, dtype="float64")
TEST = GPTConfig(layers=2, hidden=48, heads=6, sequence=16, vocabulary=64, dropout=0.1)


def text(config: GPTConfig, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A text that can be learned: each token is the one before it and one or two more."""
    rng = np.random.default_rng(seed)
    steps = rng.integers(1, 3, (rows, config.sequence + 1))
    found = (rng.integers(0, config.vocabulary, (rows, 1)) + steps.cumsum(1)) % config.vocabulary
    return {"tokens": found[:, :-1].astype("int32"), "targets": found[:, 1:].astype("int32")}


# --------------------------------------------------------------------- training
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_gpt_trains_equally_plain_and_traced(dtype: str) -> None:
    config = replace(TEST, dtype=dtype)
    optimizer = adamw(AdamW(learning_rate=3e-3, weight_decay=0.1))
    step = gpt.train_step(config, optimizer, seed=5)
    plain = start = gpt.init(config, optimizer)(0)
    traced = trace(step, (start, text(config, 8)), ("state", "batch"))
    made, losses = start, []
    for k in range(10):
        batch = text(config, 8, k)
        plain, metrics = step(plain, batch)
        made, same = traced.evaluate(made, batch)
        assert same["loss"].dtype == metrics["loss"].dtype == dtype
        np.testing.assert_allclose(same["loss"], metrics["loss"], rtol=1e-6)
        losses.append(float(metrics["loss"]))
    assert plain["step"] == made["step"] == 10
    assert losses[-1] < losses[0] - 0.2
    for x, y in zip(flatten(made)[0], flatten(plain)[0]):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6 if dtype == "float32" else 1e-12)


def test_a_learning_rate_that_changes_needs_no_new_trace() -> None:
    step = gpt.train_step(TINY, adamw())
    state = gpt.init(TINY, adamw())(0)
    traced = trace(step, (state, text(TINY, 2), 0.1), ("state", "batch", "learning_rate"))
    for rate in (0.1, 0.02):
        made, _ = traced.evaluate(state, text(TINY, 2), rate)
        plain, _ = step(state, text(TINY, 2), rate)
        np.testing.assert_allclose(made["params"]["head"], plain["params"]["head"], rtol=1e-12)


def test_an_mlp_learns() -> None:
    config, optimizer = MLPConfig(layers=3, hidden=16, dtype="float64"), sgd(SGD(0.2))
    rng = np.random.default_rng(0)
    batch = {"x": rng.normal(size=(32, 16)), "y": np.abs(rng.normal(size=(32, 16)))}
    state, step = mlp.init(config, optimizer)(0), mlp.train_step(optimizer)
    losses = []
    for _ in range(30):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.7 * losses[0]
    want = np.mean((mlp.forward(state["params"], batch["x"]) - batch["y"]) ** 2)
    assert mlp.loss(state["params"], batch) == pytest.approx(want)


# --------------------------------------------------------------------- the loss
def test_the_gradient_of_a_gpt_agrees_with_differences() -> None:
    params = tree_map(lambda p: p * 5, gpt.init_params(TINY, 0))  # away from the flat start
    batch = text(TINY, 2)

    def loss(p: Any) -> Any:
        return gpt.loss(p, batch, replace(TINY, dropout=0.2), seed=1, step=3)

    _, gradients = value_and_grad(loss)(params)
    rng = np.random.default_rng(0)
    leaves, tree = flatten(params)
    for k, g in enumerate(flatten(gradients)[0]):
        v = rng.normal(size=g.shape)

        def at(h: float, k: int = k, v: np.ndarray = v) -> float:
            moved = [p + h * v if j == k else p for j, p in enumerate(leaves)]
            return float(loss(tree.unflatten(moved)))

        slope = (8 * (at(1e-4) - at(-1e-4)) - (at(2e-4) - at(-2e-4))) / 1.2e-3
        assert slope == pytest.approx((g * v).sum(), rel=1e-6, abs=1e-8), tree.paths()[k]


def test_a_query_sees_no_later_token() -> None:
    params = gpt.init_params(TINY, 0)
    tokens = text(TINY, 1)["tokens"]
    later = tokens.copy()
    later[0, 4:] = (later[0, 4:] + 1) % TINY.vocabulary
    a, b = gpt.logits(params, tokens, TINY), gpt.logits(params, later, TINY)
    np.testing.assert_array_equal(a[:, :4], b[:, :4])
    assert (a[:, 4:] != b[:, 4:]).all()
    np.testing.assert_allclose(gpt.logits(params, tokens[:, :4], TINY), a[:, :4], rtol=1e-12)


def test_the_first_loss_is_that_of_a_uniform_guess() -> None:
    found = gpt.eval_step(TEST)(gpt.init(TEST, sgd())(0), text(TEST, 4))
    assert found["loss"] == pytest.approx(np.log(TEST.vocabulary), rel=0.02)


def test_dropout_depends_on_seed_and_step_and_is_off_in_evaluation() -> None:
    params, batch = gpt.init_params(TEST, 0), text(TEST, 4)

    def loss(seed: int | None, step: int) -> float:
        return float(gpt.loss(params, batch, TEST, seed=seed, step=step))

    assert loss(1, 0) == loss(1, 0)
    assert len({loss(1, 0), loss(1, 1), loss(2, 0), loss(None, 0)}) == 4
    assert loss(None, 0) == loss(None, 5) == gpt.loss(params, batch, replace(TEST, dropout=0.0))


# --------------------------------------------------------------------- parameters and sizes
def test_parameters_are_keyed_by_seed_and_name() -> None:
    one, two, other = (gpt.init_params(TINY, seed) for seed in (0, 0, 1))
    deeper = gpt.init_params(replace(TINY, layers=3), 0)
    assert all((a == b).all() for a, b in zip(flatten(one)[0], flatten(two)[0]))
    assert (one["head"] != other["head"]).any()
    assert (one["layers"][1]["norm1"]["scale"] == 1).all()
    q = [layer["attention"]["q"]["weight"] for layer in deeper["layers"]]
    assert (q[0] == one["layers"][0]["attention"]["q"]["weight"]).all()
    assert (q[0] != q[1]).any()
    assert one["head"].std() == pytest.approx(0.02, rel=0.2)


def test_init_traces_as_it_runs() -> None:
    init = gpt.init(TEST, adamw())
    made, plain = trace(init, (3,), ("seed",)).evaluate(3), init(3)
    assert flatten(made)[1] == flatten(plain)[1]
    for x, y in zip(flatten(made)[0], flatten(plain)[0]):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("config", [TINY, TEST])
def test_the_number_of_parameters_is_counted(config: GPTConfig) -> None:
    assert config.num_parameters == num_parameters(gpt.init_params(config, 0))


def test_the_papers_sizes_have_the_papers_names() -> None:
    for name in gpt.SIZES:
        nominal = float(name[:-1]) * {"M": 1e6, "B": 1e9}[name[-1]]
        found = gpt.paper_config(name).num_parameters
        assert 0.98 < found / nominal < 1.2, (name, found)
    with pytest.raises(DataError, match="no GPT '7B'; the paper's are 350M"):
        gpt.paper_config("7B")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": 13}, "hidden 13 is not a multiple of heads 3; take 12"),
        ({"layers": 0}, "layers is 0; it is at least 1"),
        ({"dropout": 1.0}, r"dropout is 1.0, not in \[0, 1\)"),
    ],
)
def test_a_config_that_makes_no_model_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        replace(TINY, **change)


def test_more_tokens_than_positions_are_refused() -> None:
    with pytest.raises(DataError, match="7 tokens do not fit 6 positions"):
        gpt.logits(gpt.init_params(TINY, 0), np.zeros((1, 7), "int32"), TINY)
