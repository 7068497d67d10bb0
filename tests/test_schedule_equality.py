"""Losses and weights are those of one rank under every schedule, whatever shares a submesh."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpc_alpa import nn, random
from hpc_alpa.api import fetch, parallelize
from hpc_alpa.errors import PlanError
from hpc_alpa.lower.check import check
from hpc_alpa.lower.program import KIND, Program, Send
from hpc_alpa.schedule import SCHEDULES
from hpc_alpa.simulate.recorder import category
from hpc_alpa.trace import value_and_grad
from tests.helpers import schedules
from tests.helpers.equality import cluster
from tests.helpers.schedules import TRAINING, Outcome, model, train

SCRIPT = Path(schedules.__file__)


@functools.cache
def one_rank(name: str) -> Outcome:
    return train(name, "dp1", 1, "1f1b", 1)


def require_equal(found: dict[str, np.ndarray], name: str, schedule: str) -> None:
    """The numbers of a model under a schedule are those of one rank."""
    expected = one_rank(name)
    assert expected.losses[0] != pytest.approx(expected.losses[1]), "the training does something"
    for key, wanted in expected.arrays(f"{name} {schedule}").items():
        np.testing.assert_allclose(found[key], wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "method", "ranks", "num_microbatches", "schedule"),
    [
        *(("mlp", "dp2pp4", 8, 3, schedule) for schedule in TRAINING),
        *(("gpt", "dp2pp2", 4, 3, schedule) for schedule in ("eager_1f1b", "zb_h1")),
        *(("gpt", "tp2pp2", 4, 3, schedule) for schedule in ("interleaved_1f1b", "zb_v")),
    ],
)
def test_threads(name: str, method: str, ranks: int, num_microbatches: int, schedule: str) -> None:
    found = train(name, method, ranks, schedule, num_microbatches)
    require_equal(found.arrays(f"{name} {schedule}"), name, schedule)
    family, plan = SCHEDULES[schedule], found.step.plan
    assert len(plan.stages) == family.per_submesh * len(plan.submeshes)
    expected = family.on(plan.placement, num_microbatches)
    for k, mesh in enumerate(plan.submeshes):
        for rank in mesh.devices:
            labels = [text for _, text in found.step.programs[rank].marks]
            assert labels == ["prepare", *map(str, expected[k]), "apply"]
    check(found.step.programs, in_order=True)  # NCCL matches all messages of two ranks in order


@pytest.mark.parametrize("ranks", [2, 4])
def test_mpi(mpiexec, tmp_path: Path, ranks: int) -> None:  # type: ignore[no-untyped-def]
    """Every schedule over processes, one start for all."""
    out = tmp_path / "out.npz"
    mpiexec(ranks, [str(SCRIPT), str(out), "mlp", "gpt"], timeout=240)
    found = dict(np.load(out))
    for name in ("mlp", "gpt"):
        for schedule in TRAINING:
            require_equal(found, name, schedule)


def test_stages_of_one_submesh_exchange_no_messages() -> None:
    """The V turns on the last submesh: two borders of six are crossed by messages of two ranks."""
    step = train("mlp", "pp2", 2, "zb_v", 3).step
    assert step.plan.placement == (0, 1, 1, 0)
    for program in step.programs:
        sent = [i for i in program.instructions if isinstance(i, Send)]
        assert {i.peer for i in sent} == {1 - program.rank}
        # Each microbatch goes forward over a border and comes back over another one.
        assert len(sent) == 2 * 3


@pytest.mark.parametrize("schedule", ["1f1b", "zb_v"])
def test_a_batch_that_is_split_stays_split_between_stages(schedule: str) -> None:
    """Each replica sends its rows to one replica of the next stage, not to all of them."""
    step = train("mlp", "dp2pp2", 4, schedule, 3).step
    for program in step.programs:
        sent = [i for i in program.instructions if isinstance(i, Send)]
        assert {i.peer for i in sent} == {(program.rank + 2) % 4} and len(sent) in (3, 6)
        kinds = {KIND[type(i)] for i in program.instructions if type(i) in KIND}
        assert kinds <= {"all_reduce", "broadcast"}, "nothing is gathered"


def test_the_halves_of_backward_are_one_backward() -> None:
    """The same kernels as without a split, each once: nothing is computed twice."""
    whole, halves = (train("gpt", "pp4", 4, s, 3).step.programs for s in ("1f1b", "zb_h1"))
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
@pytest.mark.parametrize("schedule", ["interleaved_1f1b", "zb_v"])
def test_an_evaluation_follows_every_placement(schedule: str) -> None:
    trained, made = train("gpt", "pp2", 2, schedule, 3), model("gpt")
    followed = parallelize(made.evaluate, follow=trained.step)
    wanted = float(made.evaluate(fetch(trained.state), made.batch)["loss"])
    assert float(followed(trained.state, made.batch)["loss"]) == pytest.approx(wanted, rel=1e-10)
    assert followed.plan.placement == trained.step.plan.placement
    labels = [text for p in followed.programs for _, text in p.marks]
    assert {category(text) for text in labels} == {"prepare", "forward", "apply"}


def test_inference_is_an_evaluation_under_pipeline() -> None:
    made = model("gpt")
    options: dict[str, Any] = {
        "method": "pp4", "schedule": "inference", "num_microbatches": 6, "backend": "local",
        "cluster": cluster(4), "costs": "analytic",
    }  # fmt: skip
    step = parallelize(made.evaluate, **options)
    state = made.init(3)
    wanted = float(made.evaluate(state, made.batch)["loss"])
    assert float(step(state, made.batch)["loss"]) == pytest.approx(wanted, rel=1e-10)
    for k, program in enumerate(step.programs):
        labels = [text for _, text in program.marks]
        assert labels == ["prepare", *(f"{k}F{m}" for m in range(6)), "apply"]
    with pytest.raises(PlanError, match="'inference' runs no backward pass, and the step has one"):
        parallelize(made.step, **options)(state, made.batch)
