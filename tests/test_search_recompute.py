"""Recomputation from the option to the numbers: asked for, searched, counted and run."""

from __future__ import annotations

import functools
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from hpc_alpa.api import ParallelStep, fetch, parallelize
from hpc_alpa.cli import main
from hpc_alpa.errors import InfeasibleError, PlanError
from hpc_alpa.models import SGD, GPTConfig, MLPConfig, gpt, mlp, sgd
from hpc_alpa.plan.diff import Differs, diff
from hpc_alpa.plan.plan import Plan
from hpc_alpa.pytree import flatten
from tests.helpers.equality import cluster, planned_collectives
from tests.test_cli_commands import CLUSTER

OPTIMIZER = sgd(SGD(0.1))
CONFIG = GPTConfig(
    layers=3, hidden=16, heads=2, sequence=16, vocabulary=32, dropout=0.1, dtype="float64"
)
ROWS = 16


def batch(k: int) -> dict[str, np.ndarray]:
    tokens = np.random.default_rng(k).integers(0, 32, (ROWS, 17)).astype("int32")
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}


def planned(method: str = "auto", ranks: int = 1, **options: Any) -> ParallelStep:
    return parallelize(
        gpt.train_step(CONFIG, OPTIMIZER, seed=5), method=method, backend="local",
        cluster=cluster(ranks), costs="analytic", **options,
    )  # fmt: skip


def trained(step: ParallelStep) -> tuple[list[float], tuple[Any, ...]]:
    """Losses and parameters of two steps."""
    state, losses = step.create(gpt.init(CONFIG, OPTIMIZER), 3), []
    for k in range(2):
        state, metrics = step(state, batch(k))
        losses.append(float(metrics["loss"]))
    assert step.record.collectives == planned_collectives(step)
    return losses, flatten(fetch(state["params"]))[0]


@functools.cache
def one_rank() -> tuple[ParallelStep, list[float], tuple[Any, ...]]:
    step = planned("dp1", num_microbatches=1)
    return step, *trained(step)


def require_equal(step: ParallelStep) -> None:
    _, losses, weights = one_rank()
    found = trained(step)
    np.testing.assert_allclose(found[0], losses, rtol=1e-12)
    for got, want in zip(found[1], weights, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


CASES = [  # method, ranks, microbatches, layers
    ("dp2pp2", 4, 4, "all"),
    ("pp2", 2, 4, (0,)),
    ("pp3", 3, 2, "all"),  # its stages end inside layers
    ("tp2", 2, 2, (0, 2)),
    ("tp2sp", 2, 1, "all"),
    ("zero3", 2, 2, "all"),
]


@pytest.mark.parametrize(("method", "ranks", "slots", "layers"), CASES)
def test_trainings_are_those_of_one_rank(
    method: str, ranks: int, slots: int, layers: str | tuple[int, ...]
) -> None:
    step = planned(method, ranks, num_microbatches=slots, recompute=layers)
    require_equal(step)
    assert step.plan.recompute == ((0, 1, 2) if layers == "all" else layers)


def test_less_is_held_for_a_part_of_the_forward_pass() -> None:
    """The last product of each block is not needed again: less than a third more is computed."""
    kept = one_rank()[0]
    again = planned("dp1", num_microbatches=1, recompute="all")
    assert trained(again)[0] == one_rank()[1], "on one device bit for bit"
    peaks, seconds = [], []
    for step in (kept, again):
        made = step.simulate()
        # All that the memory rows count is held, and nothing else but what a kernel needs inside.
        held = step.plan.solver["held_bytes"]
        assert held <= max(made.peak_bytes) <= 1.05 * held
        peaks.append(max(made.peak_bytes))
        seconds.append(max(made.compute_seconds))
    assert peaks[1] < 0.55 * peaks[0]
    assert 1.1 < seconds[1] / seconds[0] < 4 / 3


# --------------------------------------------------------------------------------------- search
def test_the_search_recomputes_as_few_layers_as_fit() -> None:
    kept = max(one_rank()[0].plan.predicted["peak_bytes"])
    found: list[int] = []
    for share in (1.0, 0.85, 0.6):
        step = planned(num_microbatches=1, memory=share * kept)
        require_equal(step)
        assert step.plan.recompute == tuple(range(len(step.plan.recompute)))
        assert max(step.plan.predicted["peak_bytes"]) <= share * kept
        found.append(len(step.plan.recompute))
    assert found[0] == 0 < found[1] < found[2] <= 3
    with pytest.raises(InfeasibleError, match="bytes too many"):
        trained(planned(num_microbatches=1, memory=0.85 * kept, recompute="none"))
    with pytest.raises(InfeasibleError):
        trained(planned(num_microbatches=1, memory=0.1 * kept))


def test_nothing_is_recomputed_where_no_number_of_layers_can_gain(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The limit binds, but what it costs is less than the first layer would."""
    kept = max(one_rank()[0].plan.predicted["peak_bytes"])
    step = planned(ranks=2, num_microbatches=1, memory=0.53 * kept)
    with caplog.at_level(logging.INFO, "hpc_alpa.search"):
        trained(step)
    assert step.plan.recompute == () and "s to gain, layers cost" in caplog.text
    assert "recompute=" not in caplog.text
    assert max(step.plan.predicted["peak_bytes"]) <= 0.53 * kept


def test_a_manual_method_recomputes_only_when_asked() -> None:
    kept = max(one_rank()[0].plan.predicted["peak_bytes"])
    with pytest.raises(InfeasibleError):
        trained(planned("dp1", num_microbatches=1, memory=0.6 * kept))
    step = planned("dp1", num_microbatches=1, memory=0.6 * kept, recompute="all")
    require_equal(step)


def test_a_plan_that_recomputes_is_a_file_that_runs(tmp_path: Path) -> None:
    step = planned("dp2", 2, num_microbatches=2, recompute=[2, 0, 2])
    trained(step)
    assert step.plan.recompute == (0, 2)
    step.plan.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded == step.plan and loaded.digest == step.plan.digest
    require_equal(planned(ranks=2, plan=loaded))
    assert "recomputed    layer 0, layer 2 in backward" in step.explain()
    without = planned("dp2", 2, num_microbatches=2)
    trained(without)
    assert without.plan.digest != loaded.digest and "recomputed" not in without.explain()
    layout = diff(without.plan, loaded).layout
    assert layout == (Differs("recomputed layers", "", "0 2"),)


def test_what_cannot_be_recomputed_is_named() -> None:
    for layers, says in (("some", "'some' is no choice"), ((1, 9), r"layers \[9\] cannot")):
        with pytest.raises(PlanError, match=says):
            trained(planned("dp1", recompute=layers))
    x = np.zeros((4, 8), "float32")
    config = MLPConfig(2, 8)
    for asked in ("all", [0]):
        step = parallelize(
            mlp.train_step(OPTIMIZER), method="dp1", backend="local", cluster=cluster(1),
            costs="analytic", recompute=asked,
        )  # fmt: skip
        with pytest.raises(PlanError, match=r"no layer of the model is marked.*hpc_alpa\.layer"):
            step.prepare(mlp.init(config, OPTIMIZER)(0), {"x": x, "y": x})


# ---------------------------------------------------------------------------------- command line
SCRIPT = """
import numpy as np
import hpc_alpa
from hpc_alpa.models import SGD, GPTConfig, gpt, sgd

config = GPTConfig(layers=3, hidden=8, heads=2, sequence=8, vocabulary=16)
optimizer = sgd(SGD())
step = hpc_alpa.parallelize(gpt.train_step(config, optimizer))
tokens = np.zeros((8, 8), "int32")
step(step.create(gpt.init(config, optimizer), 0), {"tokens": tokens, "targets": tokens})
"""


def test_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "cluster.toml").write_text(CLUSTER)
    (tmp_path / "train.py").write_text(SCRIPT)
    machine = ["--script", tmp_path / "train.py", "--cluster", tmp_path / "cluster.toml"]
    out = tmp_path / "plan.json"

    def run(*arguments: object) -> Any:
        return CliRunner().invoke(main, list(map(str, arguments)))

    plan = ["plan", *machine, "--method", "dp2", "--devices", 2, "--out", out]
    for text, layers in (("none", ()), ("0,1-2", (0, 1, 2)), ("1-2", (1, 2))):
        done = run(*plan, "--recompute", text)
        assert done.exit_code == 0, done.output
        assert Plan.load(out).recompute == layers
        assert ("in backward" in done.output) == bool(layers)
    for text in ("some", "1-", "-1", "0;1"):
        done = run(*plan, f"--recompute={text}")
        assert done.exit_code == 2 and "names no layers" in done.output
    assert json.loads(run("explain", out, "--json").output)["recompute"] == [1, 2]
    done = run("explain", out, *machine, "--analytic", "--value", "params/head")
    assert done.exit_code == 0, done.output
    done = run("simulate", out, *machine, "--analytic", "--out", tmp_path / "timeline.json")
    assert done.exit_code == 0, done.output
