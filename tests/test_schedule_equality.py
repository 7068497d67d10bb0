"""Losses and weights are those of one rank under every schedule, whatever shares a submesh."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hpc_alpa import nn, random
from hpc_alpa.api import ParallelStep, fetch, parallelize
from hpc_alpa.errors import PlanError
from hpc_alpa.lower.check import check
from hpc_alpa.lower.program import Program, Send
from hpc_alpa.models import GPTConfig, MLPConfig, gpt, mlp, optimizers
from hpc_alpa.pytree import flatten
from hpc_alpa.schedule import SCHEDULES
from hpc_alpa.simulate.recorder import category
from hpc_alpa.trace import value_and_grad
from tests.helpers.equality import cluster

TRAINING = [name for name, family in SCHEDULES.items() if family.trains]
ROWS, STEPS = 24, 2


def _mlp(optimizer: Any) -> tuple[Any, Any, Any, Any]:
    config = MLPConfig(8, 12, "float64")
    rng = np.random.default_rng(0)
    batch = {key: rng.normal(size=(ROWS, 12)) for key in ("x", "y")}

    def evaluate(params: Any, batch: Any) -> Any:
        return {"loss": mlp.loss(params, batch)}

    return mlp.train_step(optimizer), mlp.init(config, optimizer), batch, evaluate


def _gpt(optimizer: Any) -> tuple[Any, Any, Any, Any]:
    config = GPTConfig(
        layers=4, hidden=12, heads=2, sequence=6, vocabulary=20, dropout=0.1, dtype="float64"
    )
    tokens = np.random.default_rng(0).integers(0, 20, (ROWS, 7)).astype("int32")
    batch = {"tokens": tokens[:, :-1].copy(), "targets": tokens[:, 1:].copy()}
    step = gpt.train_step(config, optimizer, seed=5)
    return step, gpt.init(config, optimizer), batch, gpt.eval_step(config)


MODELS = {"gpt": _gpt, "mlp": _mlp}


def train(
    model: str, method: str, ranks: int, schedule: str, num_microbatches: int
) -> tuple[list[float], list[np.ndarray], ParallelStep, Any]:
    """Losses and weights of a few steps on threads; the step, and its last state."""
    optimizer = optimizers.adamw(optimizers.AdamW(learning_rate=1e-2))
    function, init, batch, _ = MODELS[model](optimizer)
    step = parallelize(
        function, method=method, schedule=schedule, num_microbatches=num_microbatches,
        backend="local", cluster=cluster(ranks), costs="analytic",
    )  # fmt: skip
    state = step.create(init, 3)
    losses = []
    for _ in range(STEPS):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return losses, list(flatten(fetch(state["params"]))[0]), step, state


@functools.cache
def one_rank(model: str) -> tuple[list[float], list[np.ndarray]]:
    return train(model, "dp1", 1, "1f1b", 1)[:2]


def require_equal(model: str, losses: list[float], weights: list[np.ndarray]) -> None:
    expected = one_rank(model)
    assert expected[0][0] != pytest.approx(expected[0][1]), "the training does something"
    np.testing.assert_allclose(losses, expected[0], rtol=1e-10)
    for found, wanted in zip(weights, expected[1], strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("model", "method", "ranks", "num_microbatches", "schedule"),
    [
        *(("mlp", "pp2", 2, 3, name) for name in TRAINING),
        *(("mlp", "dp2pp4", 8, 6, name) for name in TRAINING),
        *(("gpt", "pp4", 4, 4, name) for name in TRAINING),
        *(("gpt", "tp2pp2", 4, 3, name) for name in ("interleaved_1f1b", "zb_v")),
    ],
)
def test_numbers_of_one_rank(
    model: str, method: str, ranks: int, num_microbatches: int, schedule: str
) -> None:
    losses, weights, step, _ = train(model, method, ranks, schedule, num_microbatches)
    require_equal(model, losses, weights)
    family, plan = SCHEDULES[schedule], step.plan
    assert len(plan.stages) == family.per_submesh * len(plan.submeshes)
    expected = family.on(plan.placement, num_microbatches)
    for k, mesh in enumerate(plan.submeshes):
        for rank in mesh.devices:
            labels = [text for _, text in step.programs[rank].marks]
            assert labels == ["prepare", *map(str, expected[k]), "apply"]
    check(step.programs, in_order=True)  # NCCL matches all messages of two ranks in order


def test_stages_of_one_submesh_exchange_no_messages() -> None:
    """The V turns on the last submesh: two borders of six are crossed by messages of two ranks."""
    _, _, step, _ = train("mlp", "pp2", 2, "zb_v", 3)
    assert step.plan.placement == (0, 1, 1, 0)
    for program in step.programs:
        sent = [i for i in program.instructions if isinstance(i, Send)]
        assert {i.peer for i in sent} == {1 - program.rank}
        # Each microbatch goes forward over a border and comes back over another one.
        assert len(sent) == 2 * 3


def test_the_halves_of_backward_are_one_backward() -> None:
    """The same kernels as without a split, each once: nothing is computed twice."""
    whole, halves = (train("gpt", "pp4", 4, name, 4)[2].programs for name in ("1f1b", "zb_h1"))
    for a, b in zip(whole, halves, strict=True):

        def backward(p: Program) -> Counter[str]:
            bodies = [body for n, body in p.bodies.items() if n.startswith(("back", "weight"))]
            return Counter(str(replace(k, frees=())) for body in bodies for k in body.kernels)

        assert backward(a) == backward(b)
    names = [{n.split(".")[0] for n in p.bodies} for p in halves]
    assert "backward" not in names[0], "nobody waits for the first stage"
    assert all({"backward", "weight"} <= found for found in names[1:])


@pytest.mark.parametrize("schedule", ["interleaved_1f1b", "zb_h1", "zb_v"])
def test_tied_weights_and_a_global_norm_across_stages(schedule: str) -> None:
    """What is exchanged once a step, between stages of one submesh and of two."""

    def step(state: Any, batch: Any) -> Any:
        def loss(p: Any) -> Any:
            x = nn.embedding(p["table"], batch["tokens"])
            x = np.tanh(random.dropout(x, 0.2, seed=1, step=state["step"], name="d") @ p["w"])
            return np.mean(nn.cross_entropy(np.tanh(x @ p["v"]) @ p["table"].T, batch["targets"]))

        value, g = value_and_grad(loss)(state["params"])
        norm = np.sqrt(sum((x * x).sum() for x in g.values()))
        params = {k: p - 0.1 / np.maximum(norm, 1e-3) * g[k] for k, p in state["params"].items()}
        return {"params": params, "step": state["step"] + 1}, {"loss": value, "norm": norm}

    r = np.random.default_rng(0)
    params = {k: r.normal(size=(n, 8)) for k, n in (("table", 12), ("v", 8), ("w", 8))}
    tokens = r.integers(0, 12, (12, 5)).astype("int32")
    batch = {"tokens": tokens[:, :-1].copy(), "targets": tokens[:, 1:].copy()}
    plain: Any = {"params": params, "step": 0}
    made = parallelize(
        step, method="pp2", schedule=schedule, num_microbatches=3, backend="local",
        cluster=cluster(2), costs="analytic",
    )  # fmt: skip
    state: Any = plain
    for _ in range(2):
        plain, wanted = step(plain, batch)
        state, found = made(state, batch)
        for key in ("loss", "norm"):
            assert float(found[key]) == pytest.approx(float(wanted[key]), rel=1e-10)
    for key, value in fetch(state["params"]).items():
        np.testing.assert_allclose(value, plain["params"][key], rtol=1e-10)


# ------------------------------------------------------------------------------------ evaluations
@pytest.mark.parametrize("schedule", ["1f1b", "interleaved_1f1b", "zb_v"])
def test_an_evaluation_follows_every_placement(schedule: str) -> None:
    _, _, step, state = train("gpt", "pp2", 2, schedule, 3)
    function, _, batch, evaluate = MODELS["gpt"](optimizers.adamw(optimizers.AdamW()))
    followed = parallelize(evaluate, follow=step)
    assert float(followed(state, batch)["loss"]) == pytest.approx(
        float(evaluate(fetch(state), batch)["loss"]), rel=1e-10
    )
    assert followed.plan.placement == step.plan.placement
    labels = [text for p in followed.programs for _, text in p.marks]
    assert {category(text) for text in labels} == {"prepare", "forward", "apply"}


def test_inference_is_an_evaluation_under_pipeline() -> None:
    function, init, batch, evaluate = MODELS["gpt"](optimizers.adamw(optimizers.AdamW()))
    options: dict[str, Any] = {
        "method": "pp4", "schedule": "inference", "num_microbatches": 6, "backend": "local",
        "cluster": cluster(4), "costs": "analytic",
    }  # fmt: skip
    step = parallelize(evaluate, **options)
    state = init(3)
    wanted = float(evaluate(state, batch)["loss"])
    assert float(step(state, batch)["loss"]) == pytest.approx(wanted, rel=1e-10)
    for k, program in enumerate(step.programs):
        labels = [text for _, text in program.marks]
        assert labels == ["prepare", *(f"{k}F{m}" for m in range(6)), "apply"]
    with pytest.raises(PlanError, match="'inference' runs no backward pass, and the step has one"):
        parallelize(function, **options)(state, batch)
