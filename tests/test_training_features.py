"""Clipped norms, scaled losses, tied embeddings and weights of tokens, under every plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hpc_alpa.errors import DataError
from hpc_alpa.lower.program import Program, Send
from hpc_alpa.models import AdamW, GPTConfig, LossScale, Optimizer, Training, adamw, gpt, moe
from hpc_alpa.models.training import global_norm
from hpc_alpa.pytree import flatten
from hpc_alpa.step import APPLY, PREPARE, split_batch
from hpc_alpa.trace import Traced, trace
from tests.helpers.toys import (
    SIZES,
    VOCABULARY,
    one_rank,
    require_equal,
    text,
    train,
    weighted_text,
)

METHODS = ["dp2tp2", "dp2pp2"]
SLOW_METHODS = ["auto", "dp4", "tp4", "zero1", "zero2", "zero3", "shard_largest", "pp2", "tp2pp2"]
ALL = [*METHODS, *(pytest.param(m, marks=pytest.mark.slow) for m in SLOW_METHODS)]
TIED = GPTConfig(**SIZES, dtype="float64", tied=True)
PLAIN = Optimizer(
    lambda params: {}, lambda g, s, p, step, rate: (g, s)
)  # the new weights: gradients


def traced_step(config: GPTConfig, batch: Any, **options: Any) -> Traced:
    made = gpt.init(config, PLAIN)(0), batch
    return trace(gpt.train_step(config, PLAIN, **options), made, ("state", "batch"))


# ------------------------------------------------------------------------- all of them, all plans
@pytest.mark.parametrize("method", ALL)
def test_a_training_with_everything_is_that_of_one_rank(method: str) -> None:
    """Step 2 meets a weight that is not finite: it changes nothing, on no rank."""
    want = one_rank("features", 2, 4)
    found = train("features", method, 2, steps=4)
    require_equal(found, want)
    losses = [m["loss"] for m in found.metrics]
    assert np.isfinite(losses).tolist() == [True, True, False, True]
    assert [m["scale"] for m in found.metrics] == [1024, 2048, 4096, 2048]
    assert found.metrics[0]["norm"] > 0.6, "it is clipped"
    before, after = found.states[2], found.states[3]
    kept = [path for path in before if "/loss_scale/" not in path]
    assert all((before[path] == after[path]).all() for path in kept)
    assert after["state/step"] == 2 and found.states[4]["state/step"] == 3
    assert (found.states[4]["state/params/norm/scale"] != after["state/params/norm/scale"]).any()


def test_one_rank_is_plain_numpy() -> None:
    config, scale = replace(TIED, dropout=0.1), LossScale(1024.0, interval=1)
    optimizer = adamw(AdamW(1e-2))
    step = gpt.train_step(config, optimizer, 7, reduction="weighted", clip=0.6, loss_scale=scale)
    state = gpt.init(config, optimizer, scale)(3)
    want = one_rank("features", 2, 4)
    with np.errstate(invalid="ignore"):
        for k, metrics in enumerate(want.metrics):
            state, found = step(state, weighted_text(k))
            for name, value in metrics.items():
                np.testing.assert_allclose(found[name], value, rtol=1e-10)
    for path, x in zip(flatten(state)[1].paths("state"), flatten(state)[0], strict=True):
        np.testing.assert_allclose(x, want.states[-1][path], rtol=1e-9, atol=1e-10)


# --------------------------------------------------------------------------------- what travels
def sends(program: Program, to: int) -> list[tuple[tuple[tuple[int, int], ...], int]]:
    """Region and bytes of what a rank sends to another in a step."""
    found = [i for i in program.instructions if isinstance(i, Send) and i.peer == to]
    return [(i.region, i.nbytes) for i in found]


@pytest.mark.parametrize(("name", "size"), [("features", 8), ("gpt-float16-tied", 2)])
def test_a_tied_table_crosses_once_a_step(name: str, size: int) -> None:
    """The copy that the head reads, and the gradient that it makes: not in each microbatch."""
    first, second = train(name, "pp2", 4, steps=1).step.programs
    table = (((0, VOCABULARY), (0, SIZES["hidden"])), VOCABULARY * SIZES["hidden"] * size)
    for program, peer in ((first, 1), (second, 0)):
        assert sends(program, peer).count(table) == 1


def test_a_norm_crosses_once_for_each_stage() -> None:
    """Sums of squares of subtrees, and what follows from the norm: not one number a weight."""
    leaves = len(flatten(gpt.init_params(TIED, 0))[0])
    found = train("features", "pp2", 4, steps=1)
    numbers = [n for program, peer in zip(found.step.programs, (1, 0), strict=True)
               for region, n in sends(program, peer) if region == ()]  # fmt: skip
    assert 2 <= len(numbers) < leaves / 4


# -------------------------------------------------------------------------------------- the loss
@pytest.mark.parametrize("reduction", ["mean", "sum", "weighted"])
def test_the_loss_of_a_batch(reduction: str) -> None:
    batch = weighted_text(0)
    state = gpt.init(TIED, PLAIN)(0)
    rows = gpt.logits(state["params"], batch["tokens"], TIED)
    shifted = rows - rows.max(-1, keepdims=True)
    picked = np.take_along_axis(shifted, batch["targets"][..., None], -1)[..., 0]
    losses = np.log(np.exp(shifted).sum(-1)) - picked
    weights = batch["weights"]
    want = {
        "mean": losses.sum() / losses.size,
        "sum": losses.sum(),
        "weighted": (losses * weights).sum() / weights.sum(),
    }[reduction]
    _, metrics = gpt.train_step(TIED, PLAIN, reduction=reduction)(state, batch)
    assert metrics["loss"] == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("reduction", ["sum", "weighted"])
def test_a_loss_does_not_depend_on_the_number_of_microbatches(reduction: str) -> None:
    step = traced_step(TIED, weighted_text(0), reduction=reduction)
    leaves = len([x for x in step.inputs if x.argument == 0])
    for slots in (1, 4, 16):
        made = split_batch(step.graph, step.graph.inputs[leaves:], slots)
        # A count of the batch is known before the loop; nothing of the loop waits for a sum.
        divisions = [e for e in made.graph.eqns if e.op.name == "reduce_sum" and e.phase == PREPARE]
        assert len(divisions) == (reduction == "weighted")


def test_unknown_reductions_and_options_are_named() -> None:
    state = gpt.init(TIED, PLAIN)(0)
    with pytest.raises(DataError, match="reduction is 'median', not mean, sum, weighted"):
        gpt.train_step(TIED, PLAIN, reduction="median")(state, text(0))
    with pytest.raises(DataError, match="clip is 0"):
        gpt.train_step(TIED, PLAIN, clip=0.0)
    with pytest.raises(DataError, match="backoff"):
        LossScale(backoff=2.0)
    with pytest.raises(DataError, match=r"in 'bfloat16', neither the precision 'float16'"):
        Training("float16", gradients="bfloat16")


# ------------------------------------------------------------------------------- clip, scale, ties
def test_the_norm_is_that_of_all_gradients() -> None:
    tree = {"b": np.arange(6.0), "a": [np.full((2, 3), 2.0), {"c": np.float64(3.0)}]}
    every = np.concatenate([np.ravel(x) for x in flatten(tree)[0]])
    assert global_norm(tree) == pytest.approx(np.linalg.norm(every), rel=1e-14)
    many = np.full(100_000, 1.0, "float16")
    assert global_norm([many]) == pytest.approx(100_000**0.5, rel=1e-6), "not summed in 16 bits"


@pytest.mark.parametrize("clip", [1e-3, 1e3])
def test_clipped_gradients_have_the_norm(clip: float) -> None:
    state, batch = gpt.init(TIED, PLAIN)(0), text(0)
    whole, _ = gpt.train_step(TIED, PLAIN)(state, batch)
    clipped, metrics = gpt.train_step(TIED, PLAIN, clip=clip)(state, batch)
    norm = float(global_norm(whole["params"]))
    assert metrics["norm"] == pytest.approx(norm, rel=1e-12)
    factor = min(1.0, clip / (norm + 1e-6))
    for x, y in zip(flatten(clipped["params"])[0], flatten(whole["params"])[0], strict=True):
        np.testing.assert_allclose(x, factor * y, rtol=1e-10, atol=1e-15)


def test_a_scale_follows_what_is_finite() -> None:
    rule = LossScale(initial=256.0, interval=3, growth=4.0, backoff=0.25, smallest=2.0)
    state, scale, run = rule.init(), 256.0, 0
    rng = np.random.default_rng(0)
    for finite in rng.random(200) < 0.7:
        state = rule.update(state, np.bool_(finite))
        run = run + 1 if finite else 0
        if not finite:
            scale = max(2.0, scale * 0.25)
        elif run == 3:
            scale, run = scale * 4.0, 0
        assert (state["scale"], state["finite_steps"]) == (scale, run)
        assert (state["scale"].dtype, state["finite_steps"].dtype) == ("float32", "int32")


def test_tied_parameters_are_one_table() -> None:
    assert "head" not in gpt.init_params(TIED, 0)
    assert "head" not in moe.init_params(moe.MoEConfig(**SIZES, experts=4, group=16, tied=True), 0)
    for tied in (True, False):
        config = replace(TIED, tied=tied)
        leaves = flatten(gpt.init_params(config, 0))[0]
        assert config.num_parameters == sum(x.size for x in leaves)
    # The gradient of the table is that of both places: perturb it, and see the loss.
    state, batch = gpt.init(TIED, PLAIN)(0), text(0)
    moved, _ = gpt.train_step(TIED, PLAIN)(state, batch)
    slope = moved["params"]["embedding"]["tokens"]
    way = np.random.default_rng(0).normal(size=slope.shape)
    table = state["params"]["embedding"]["tokens"]

    def at(h: float) -> float:
        embedding = {**state["params"]["embedding"], "tokens": table + h * way}
        return float(gpt.loss({**state["params"], "embedding": embedding}, batch, TIED))

    assert (at(1e-5) - at(-1e-5)) / 2e-5 == pytest.approx((slope * way).sum(), rel=1e-5)


def test_parts_of_a_tied_gradient_are_summed_over_time_apart() -> None:
    step = traced_step(TIED, text(0))
    leaves = len([x for x in step.inputs if x.argument == 0])
    made = split_batch(step.graph, step.graph.inputs[leaves:], 4)
    shape = (VOCABULARY, SIZES["hidden"])
    [add] = [e for e in made.graph.eqns if e.op.name == "add" and e.output.type.shape == shape]
    assert add.phase == APPLY
    assert [made.graph.producer[v].op.name for v in add.inputs] == ["accumulate"] * 2
