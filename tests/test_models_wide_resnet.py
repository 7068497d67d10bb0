"""Wide-ResNet: shapes, gradients, sizes, training plain, traced and in parallel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hpc_alpa.api.arguments import Arguments
from hpc_alpa.api.compile import Options, request_of, trace_step
from hpc_alpa.cost import AnalyticCost
from hpc_alpa.errors import DataError, TracingError
from hpc_alpa.models import SGD, AdamW, Optimizer, WideResNetConfig, adamw, sgd, wide_resnet
from hpc_alpa.models.optimizers import num_parameters
from hpc_alpa.pytree import flatten, tree_map
from hpc_alpa.search import Request
from hpc_alpa.search.candidates import steps
from hpc_alpa.step import NeedsMicrobatches
from hpc_alpa.trace import value_and_grad
from tests.helpers.equality import cluster
from tests.helpers.training import (
    require_gradient,
    require_parallel_equals_one_rank,
    require_trains,
)

TINY = WideResNetConfig(blocks=(1, 1), base_channels=4, width_factor=2, classes=4, dtype="float64")
NESTEROV = sgd(SGD(0.1, 0.9, nesterov=True))


def images(config: WideResNetConfig, rows: int, seed: int = 0, size: int = 16) -> dict[str, Any]:
    """Noise with a bright stripe whose place is the label."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, config.classes, rows)
    found = rng.normal(size=(rows, size, size, config.channels))
    stripe = np.arange(size) * config.classes // size == labels[:, None]
    found += 2.0 * stripe[:, :, None, None]
    return {"images": found.astype(config.dtype), "labels": labels.astype("int32")}


@pytest.mark.parametrize(
    ("dtype", "optimizer"),
    [("float32", NESTEROV), ("float64", adamw(AdamW(learning_rate=1e-2)))],
    ids=["nesterov", "adam"],
)
def test_a_wide_resnet_trains_equally_plain_and_traced(dtype: str, optimizer: Optimizer) -> None:
    config = replace(TINY, dtype=dtype)
    step = wide_resnet.train_step(config, optimizer)
    batches = [images(config, 16, k) for k in range(12)]
    losses = require_trains(step, wide_resnet.init(config, optimizer)(0), batches)
    assert losses[-1] < losses[0] - 0.3


def test_the_gradient_of_a_wide_resnet_agrees_with_differences() -> None:
    params = wide_resnet.init_params(TINY, 0)
    for k, p in enumerate(params["blocks"]):
        # Away from the start, where a block passes nothing back to its first convolutions.
        p["conv3"]["norm"]["scale"] += 0.5 + 0.1 * k
    batch = images(TINY, 4)
    require_gradient(lambda p: wide_resnet.loss(p, batch, TINY)[0], params, step=1e-6, rel=1e-5)


def test_a_block_starts_as_its_residual() -> None:
    of = replace(TINY, blocks=(2,)).layout[1]
    assert (of.inputs, of.narrow, of.wide, of.outputs, of.stride) == (16, 4, 8, 16, 1)
    params = wide_resnet.init_params(replace(TINY, blocks=(2,)), 0)["blocks"]
    assert "shortcut" in params[0] and "shortcut" not in params[1]
    x = np.abs(np.random.default_rng(0).normal(size=(2, 3, 3, 16)))
    np.testing.assert_array_equal(wide_resnet.block(params[1], x, 1)[0], x)


def test_images_shrink_as_channels_grow() -> None:
    config = replace(TINY, blocks=(1, 2, 1))
    layout = config.layout
    assert [b.stride for b in layout] == [1, 2, 1, 2]
    assert [(b.inputs, b.narrow, b.wide, b.outputs) for b in layout] == [
        (4, 4, 8, 16),
        (16, 8, 16, 32),
        (32, 8, 16, 32),
        (32, 16, 32, 64),
    ]
    params, x = wide_resnet.init_params(config, 0), images(config, 2, size=32)["images"]
    found, _ = wide_resnet.convolution(params["stem"], x, stride=2)
    assert found.shape == (2, 16, 16, 4)
    found, used = wide_resnet.logits(params, x, config)
    assert found.shape == (2, 4)
    shapes = tree_map(np.shape, wide_resnet.init_statistics(config))
    assert tree_map(np.shape, used) == shapes


@pytest.mark.parametrize("config", [TINY, replace(TINY, blocks=(2, 1, 2), channels=1)])
def test_the_number_of_parameters_is_counted(config: WideResNetConfig) -> None:
    assert config.num_parameters == num_parameters(wide_resnet.init_params(config, 0))


def test_the_papers_sizes_have_the_papers_names() -> None:
    for name in wide_resnet.SIZES:
        nominal = float(name[:-1]) * {"M": 1e6, "B": 1e9}[name[-1]]
        found = wide_resnet.paper_config(name).num_parameters
        assert found == pytest.approx(nominal, rel=0.03), name
    with pytest.raises(DataError, match="no Wide-ResNet '7B'; the paper's are 250M"):
        wide_resnet.paper_config("7B")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": ()}, r"blocks is \(\); a stage has at least 1"),
        ({"blocks": (1, 0)}, r"blocks is \(1, 0\); a stage has at least 1"),
        ({"classes": 0}, "classes is 0; it is at least 1"),
        ({"norm_rows": 0}, "norm_rows is 0; it is at least 1"),
    ],
)
def test_a_config_that_makes_no_model_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        replace(TINY, **change)


def test_rows_of_a_norm_are_batches_of_their_own() -> None:
    """Losses, gradients and statistics are means over those of the runs of 4 images."""
    batch, whole = images(TINY, 12), replace(TINY, norm_rows=4)
    params = wide_resnet.init_params(TINY, 0)

    def both(config: WideResNetConfig, part: dict[str, np.ndarray]) -> Any:
        function = value_and_grad(lambda p: wide_resnet.loss(p, part, config), has_aux=True)
        return function(params)

    parts = [both(TINY, {k: x[4 * m : 4 * m + 4] for k, x in batch.items()}) for m in range(3)]
    found = both(whole, batch)
    for x, *of_parts in zip(flatten(found)[0], *(flatten(p)[0] for p in parts), strict=True):
        np.testing.assert_allclose(x, np.mean(of_parts, axis=0), rtol=1e-8, atol=1e-12)
    with pytest.raises(TracingError, match="groups of 5 rows do not fill the batch"):
        wide_resnet.loss(params, batch, replace(TINY, norm_rows=5))


@pytest.mark.parametrize(("method", "slots"), [("dp2", 2), ("dp2", 4), ("pp2", 4)])
def test_a_norm_of_some_rows_allows_microbatches(method: str, slots: int) -> None:
    config = replace(TINY, blocks=(1,), norm_rows=4)
    step = require_parallel_equals_one_rank(
        wide_resnet.train_step(config, NESTEROV),
        wide_resnet.init(config, NESTEROV),
        [images(config, 16, k) for k in range(2)],
        method,
        num_microbatches=slots,
    )
    if method == "dp2":
        # A device has whole runs of rows; or, one run in a microbatch, half of it: two sums for
        # each of five norms.
        within = 0 if slots == 2 else 4 * 2 * 5
        assert step.record.collectives == {"all_reduce": 1 + within}
    with pytest.raises(NeedsMicrobatches):
        require_parallel_equals_one_rank(
            wide_resnet.train_step(config, NESTEROV),
            wide_resnet.init(config, NESTEROV),
            [images(config, 16)],
            method,
            num_microbatches=8,
        )


def test_a_search_tries_the_microbatches_that_norms_allow() -> None:
    """80 images in runs of 8, 8 devices: never 8 microbatches of 10 images."""
    devices = cluster(8)

    def asked(norm_rows: int | None) -> Request:
        config = replace(TINY, norm_rows=norm_rows)
        given = Arguments.of(wide_resnet.init(config, NESTEROV)(0), images(config, 80))
        made = trace_step(
            wide_resnet.train_step(config, NESTEROV), given.examples(), len(given.parts[0]),
            given.trees[0], False,
        )  # fmt: skip
        return request_of(made, devices, AnalyticCost(devices), 8, Options())

    assert [s.num_microbatches for s in steps(asked(8), None)] == [1, 5, 10]
    with pytest.raises(NeedsMicrobatches):
        steps(asked(None), None)
    one = replace(asked(None), num_microbatches=1)
    assert [s.num_microbatches for s in steps(one, None)] == [1]
    with pytest.raises(NeedsMicrobatches):
        steps(replace(asked(8), num_microbatches=8), None)


def test_evaluation_takes_the_moving_averages() -> None:
    state, batch = wide_resnet.init(TINY, sgd(SGD(0.0)))(0), images(TINY, 8)
    step, evaluate = wide_resnet.train_step(TINY, sgd(SGD(0.0))), wide_resnet.eval_step(TINY)
    _, first = wide_resnet.loss(state["params"], batch, TINY)
    state, metrics = step(state, batch)
    stem, of_batch = state["statistics"]["stem"], first["stem"]
    np.testing.assert_allclose(stem["mean"], 0.1 * of_batch["mean"], rtol=1e-12)
    np.testing.assert_allclose(stem["variance"], 0.9 + 0.1 * of_batch["variance"], rtol=1e-12)
    assert abs(evaluate(state, batch)["loss"] - metrics["loss"]) > 1e-3
    for _ in range(200):
        averages = tree_map(lambda old, new: 0.9 * old + 0.1 * new, state["statistics"], first)
        state = {**state, "statistics": averages}
    assert evaluate(state, batch)["loss"] == pytest.approx(float(metrics["loss"]), rel=1e-9)


@pytest.mark.parametrize("method", ["dp2", "tp2"])
def test_in_parallel_a_wide_resnet_is_that_of_one_rank(method: str) -> None:
    config = replace(TINY, blocks=(1,))
    step = require_parallel_equals_one_rank(
        wide_resnet.train_step(config, NESTEROV),
        wide_resnet.init(config, NESTEROV),
        [images(config, 8, k) for k in range(2)],
        method,
        num_microbatches=1,
    )
    if method == "dp2":  # one bucket of gradients, and two for each of five norms
        assert step.record.collectives == {"all_reduce": 1 + 2 * 5}
