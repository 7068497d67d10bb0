"""Every model of the paper trains as one rank does, under every way to spread it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpc_alpa.lower.program import KIND, Program
from hpc_alpa.models import MoEConfig, moe
from hpc_alpa.models.gating import Routes
from tests.helpers import toys
from tests.helpers.toys import ROWS, SIZES, Trained, one_rank, require_equal, train

SCRIPT = Path(toys.__file__)

# model, method, microbatches; Wide-ResNet has its statistics of the whole batch
FAST = [
    ("bert", "dp2tp2", 1), ("bert", "pp2", 4),
    ("moe", "auto", 2), ("moe", "dp2tp2", 2), ("moe", "zero3", 2),
    ("wide-resnet", "auto", 1), ("wide-resnet", "zero1", 1), ("wide-resnet", "dp2pp2", 1),
]  # fmt: skip
SLOW = [
    ("bert", "auto", 2), ("bert", "dp4", 4), ("bert", "tp4", 2), ("bert", "zero1", 1),
    ("bert", "zero2", 2), ("bert", "zero3", 2), ("bert", "shard_largest", 1), ("bert", "dp2pp2", 2),
    ("moe", "dp4", 2), ("moe", "tp4", 1), ("moe", "zero1", 1), ("moe", "zero2", 2),
    ("moe", "shard_largest", 1), ("moe", "pp2", 4), ("moe", "dp2pp2", 2),
    ("wide-resnet", "dp4", 1), ("wide-resnet", "tp4", 1), ("wide-resnet", "dp2tp2", 1),
    ("wide-resnet", "zero2", 1), ("wide-resnet", "zero3", 1), ("wide-resnet", "shard_largest", 1),
    ("wide-resnet", "pp2", 1),
]  # fmt: skip
CASES = [*FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]


@pytest.mark.parametrize(("name", "method", "slots"), CASES)
def test_a_model_trains_as_on_one_rank(name: str, method: str, slots: int) -> None:
    want = one_rank(name, slots)
    found = train(name, method, slots)
    require_equal(found, want)
    moved = [
        k for k, x in want.states[0].items() if "/params/" in k and (x != want.states[2][k]).any()
    ]
    assert len(moved) > 0.9 * sum("/params/" in k for k in want.states[0]), "it learns"


@pytest.mark.parametrize(
    ("name", "method", "slots"),
    [
        ("wide-resnet", "dp2tp2", 1),
        pytest.param("moe", "dp2pp2", 2, marks=pytest.mark.slow),
        pytest.param("bert", "dp2tp2", 2, marks=pytest.mark.slow),
    ],
)
def test_under_mpi(mpiexec: Any, tmp_path: Path, name: str, method: str, slots: int) -> None:
    out = tmp_path / "out.npz"
    mpiexec(4, [str(SCRIPT), name, method, str(slots), str(out)], timeout=120)
    want, found = one_rank(name, slots), dict(np.load(out))
    np.testing.assert_allclose(found.pop("losses"), [m["loss"] for m in want.metrics], rtol=1e-10)
    for path, x in want.states[-1].items():
        np.testing.assert_allclose(found[path], x, rtol=1e-10, atol=1e-10, err_msg=path)


def by_phase(program: Program, kind: str) -> Counter[str]:
    """Collectives of a kind in a rank's program, by the letter of their action."""
    labels, found, label = dict(program.marks), Counter[str](), ""
    for k, i in enumerate(program.instructions):
        label = labels.get(k, label)
        if KIND.get(type(i)) == kind:
            found[label.lstrip("0123456789")[:1]] += 1
    return found


def test_parallel_experts_send_tokens_there_and_back_twice() -> None:
    """To the experts and back, forward and backward: 4 all_to_all for each layer of experts."""
    experts = {f"state/params/layers/1/feed_forward/{w}": "S0RR" for w in ("up", "down")}
    pins = {**experts, "batch/tokens": "S0R", "batch/targets": "S0R"}
    found = train("moe-experts", "auto", 1, pins=pins)
    assert len(found.step.plan.stages) == 1
    for program in found.step.programs:
        assert by_phase(program, "all_to_all") == {"F": 2, "B": 2}
    assert found.step.record.collectives["all_to_all"] == 4
    require_equal(found, one_rank("moe-experts", 1))


def routing(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Which experts each step's tokens go to, by the weights before it, in plain NumPy."""
    config = MoEConfig(**SIZES, experts=4, group=16, feed_forward=2)
    chosen: list[np.ndarray] = []
    top2 = moe.top2

    def noted(gates: Any) -> Routes:
        routes = top2(gates)
        chosen.append(np.asarray(routes.experts))
        return routes

    monkeypatch.setattr(moe, "top2", noted)
    for k, state in enumerate(trained.states[:-1]):
        moe.logits(toys.nested(state)["params"], toys.text(k)["tokens"], config)
    monkeypatch.undo()
    return chosen


@pytest.mark.parametrize(
    "method", ["dp4", *(pytest.param(m, marks=pytest.mark.slow) for m in ("tp4", "pp2"))]
)
def test_float32_agrees_while_tokens_go_to_the_same_experts(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 4
    want, found = one_rank("moe-float32", 2, steps), train("moe-float32", method, 2, steps=steps)
    flips = [
        int((a != b).sum())
        for a, b in zip(routing(want, monkeypatch), routing(found, monkeypatch), strict=True)
    ]
    assert len(flips) == steps
    agreed = next((k for k, n in enumerate(flips) if n), steps)
    assert agreed >= 2, f"choices that flip in each step: {flips} of {2 * ROWS * 8}"
    for k in range(agreed):
        assert found.metrics[k]["loss"] == pytest.approx(want.metrics[k]["loss"], rel=1e-5)
