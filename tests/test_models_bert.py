"""BERT: gradients, what sees what, training plain, traced and in parallel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hpc_alpa.errors import DataError
from hpc_alpa.models import SGD, AdamW, BERTConfig, Optimizer, adafactor, adamw, bert, sgd
from hpc_alpa.models.optimizers import num_parameters
from hpc_alpa.pytree import flatten
from hpc_alpa.trace import trace
from tests.helpers.training import (
    require_gradient,
    require_parallel_equals_one_rank,
    require_trains,
)

TINY = BERTConfig(layers=2, hidden=12, heads=3, sequence=8, vocabulary=10, dtype="float64")
NORMS = ["post", "pre"]
MASK = 0


def text(config: BERTConfig, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Two segments that count up, each from 1 or 2; every third token or so is masked."""
    rng = np.random.default_rng(seed)
    half = config.sequence // 2
    starts = rng.integers(0, 2, (rows, 2, 1))
    found = 1 + (starts + np.arange(half)) % (config.vocabulary - 1)
    targets = found.reshape(rows, config.sequence)
    masked = rng.random(targets.shape) < 0.3
    masked[:, 1] = True
    return {
        "tokens": np.where(masked, MASK, targets).astype("int32"),
        "segments": np.repeat([[0, 1]], rows, axis=0).repeat(half, axis=1).astype("int32"),
        "targets": targets.astype("int32"),
        "masked": masked,
    }


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_bert_trains_equally_plain_and_traced(norm: str, dtype: str) -> None:
    config = replace(TINY, norm=norm, dtype=dtype, dropout=0.1)
    optimizer = adamw(AdamW(learning_rate=2e-2))
    step = bert.train_step(config, optimizer, seed=5)
    batches = [text(config, 16, k) for k in range(10)]
    losses = require_trains(step, bert.init(config, optimizer)(0), batches)
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize("norm", NORMS)
def test_the_gradient_of_a_bert_agrees_with_differences(norm: str) -> None:
    config, batch = replace(TINY, norm=norm, dropout=0.2), text(TINY, 3)
    require_gradient(
        lambda p: bert.loss(p, batch, config, seed=1, step=3), bert.init_params(config, 0), scale=5
    )


def test_only_masked_tokens_count_and_each_as_much() -> None:
    params, batch = bert.init_params(TINY, 0), text(TINY, 3)
    hidden = bert.encode(params, batch["tokens"], batch["segments"], TINY)
    logits = bert.logits(params, hidden)
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    each = [-np.log(shares[r, s, batch["targets"][r, s]]) for r, s in np.argwhere(batch["masked"])]
    assert len(each) < batch["masked"].size / 2
    assert bert.loss(params, batch, TINY) == pytest.approx(np.mean(each), rel=1e-12)


def test_every_token_sees_every_other_and_its_place_and_segment() -> None:
    params, batch = bert.init_params(TINY, 0), text(TINY, 1)

    def hidden(**changed: Any) -> Any:
        given = {**batch, **changed}
        return bert.encode(params, given["tokens"], given["segments"], TINY)

    before, tokens = hidden(), batch["tokens"].copy()
    tokens[0, 5] = (tokens[0, 5] + 1) % TINY.vocabulary
    assert (np.abs(hidden(tokens=tokens) - before).max(-1) > 1e-9).all()
    assert np.abs(hidden(segments=1 - batch["segments"]) - before).max() > 1e-3
    np.testing.assert_allclose(before.mean(-1), 0, atol=1e-12)  # post-norm, with a bias of zeros
    swapped = batch["tokens"][:, ::-1]
    assert np.abs(hidden(tokens=swapped)[:, ::-1] - before).max() > 1e-3


@pytest.mark.parametrize("norm", NORMS)
def test_the_number_of_parameters_is_counted(norm: str) -> None:
    config = replace(TINY, norm=norm, segments=3)
    assert config.num_parameters == num_parameters(bert.init_params(config, 0))


def test_the_papers_sizes_have_the_papers_numbers() -> None:
    # Devlin et al. 2019, Sec. 3: 110M and 340M.
    found = {name: bert.paper_config(name).num_parameters for name in bert.SIZES}
    assert found == {
        "base": pytest.approx(110e6, rel=0.01),
        "large": pytest.approx(340e6, rel=0.02),
    }
    with pytest.raises(DataError, match="no BERT 'tiny'; the paper's are base, large"):
        bert.paper_config("tiny")


def test_a_config_that_makes_no_model_is_refused() -> None:
    with pytest.raises(DataError, match="BERTConfig: norm is 'middle', not post or pre"):
        replace(TINY, norm="middle")
    with pytest.raises(DataError, match="BERTConfig: segments is 0"):
        replace(TINY, segments=0)
    with pytest.raises(DataError, match="BERTConfig: hidden 13 is not a multiple of heads 3"):
        replace(TINY, hidden=13)


def test_evaluation_drops_nothing() -> None:
    config, batch = replace(TINY, dropout=0.5), text(TINY, 3)
    state = bert.init(config, adamw())(0)
    found = bert.eval_step(config)(state, batch)["loss"]
    assert found == bert.loss(state["params"], batch, TINY)
    assert found != bert.loss(state["params"], batch, config, seed=0)


@pytest.mark.parametrize(
    ("method", "slots", "optimizer"),
    [
        ("dp2", 2, sgd(SGD(0.1, 0.9, nesterov=True))),
        ("tp2", 1, adafactor()),
    ],
    ids=["dp2 nesterov", "tp2 adafactor"],
)
def test_in_parallel_a_bert_is_that_of_one_rank(
    method: str, slots: int, optimizer: Optimizer
) -> None:
    config = replace(TINY, layers=1, heads=2, vocabulary=12, dropout=0.1)
    step = require_parallel_equals_one_rank(
        bert.train_step(config, optimizer, seed=5),
        bert.init(config, optimizer),
        [text(config, 8, k) for k in range(2)],
        method,
        num_microbatches=slots,
    )
    if method == "dp2":
        assert step.record.collectives["all_reduce"] == 1, "one bucket of gradients"


def test_the_state_of_adafactor_is_made_in_a_trace_too() -> None:
    init = bert.init(TINY, adafactor())
    state = init(0)
    table = state["optimizer"]["embedding"]["tokens"]
    assert {k: v.shape for k, v in table.items()} == {"columns": (12,), "rows": (10,)}
    made = trace(init, (0,), ("seed",), allow_float64=True).evaluate(0)
    assert flatten(made)[1] == flatten(state)[1]
