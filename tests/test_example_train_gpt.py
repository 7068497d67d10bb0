"""examples/train_gpt.py with a handful of steps: its files, its JSON, its text, its errors."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpc_alpa.plan.plan import Plan
from hpc_alpa.report.plan_rows import stored_rows
from hpc_alpa.simulate.timeline import check_trace, load
from tests.test_cli_commands import CLUSTER

ROOT = Path(__file__).parents[1]
SCRIPT = str(ROOT / "examples" / "train_gpt.py")
KEYS = {
    "losses", "ranks", "method", "schedule", "num_microbatches", "plan", "plan_digest",
    "predicted_step_seconds", "measured_step_seconds", "predicted_peak_bytes",
    "measured_peak_bytes", "tokens_per_second", "validation_bits_per_byte", "unigram_entropy",
    "bigram_entropy", "weights_sha256",
}  # fmt: skip
FILES = {"plan.json", "loss.png", "timeline.json", "timeline.png", "weights.npz"}
STEPS = 5


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options of a tiny model on a tiny text."""
    data = tmp_path_factory.mktemp("text") / "text.txt"
    data.write_text("".join(f"def f{k}(x):\n    return x + {k * k}\n" for k in range(400)))
    return [
        *("--layers", "1", "--hidden", "24", "--heads", "3", "--sequence", "16", "--batch", "12"),
        *("--steps", str(STEPS), "--lr", "0.01", "--dropout", "0.1", "--data", str(data)),
    ]


def alone(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    """Without a launcher and without MPI."""
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)],
        cwd=ROOT,
        env=dict(os.environ) | {"PYTHONPATH": str(ROOT)} | env,
        capture_output=True,
        text=True,
        timeout=120,
    )


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "train.json").read_text())
    return found


@pytest.fixture(scope="module")
def one_rank(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    out = tmp_path_factory.mktemp("one") / "new" / "folder"
    done = alone(*small, "--analytic", "--out", out, "--json", out / "train.json")
    assert done.returncode == 0, done.stderr
    return out, done.stdout, done.stderr


def require_whole(out: Path, ranks: int) -> dict[str, Any]:
    """The files are there, and agree with each other and with the JSON."""
    found = results(out)
    assert set(found) == KEYS
    assert {p.name for p in out.iterdir()} == FILES | {"train.json"}
    plan = Plan.load(out / "plan.json")
    assert plan.digest == found["plan_digest"]
    assert plan == Plan.from_json(json.dumps(found["plan"]))
    assert (found["ranks"], len(found["losses"])) == (ranks, STEPS)
    assert len(found["measured_peak_bytes"]) == len(found["predicted_peak_bytes"]) == ranks
    np.testing.assert_allclose(
        found["measured_peak_bytes"], found["predicted_peak_bytes"], rtol=0.1
    )
    assert found["tokens_per_second"] == pytest.approx(12 * 16 / found["measured_step_seconds"])
    assert 0 < found["bigram_entropy"] < found["unigram_entropy"] < 8
    with np.load(out / "weights.npz") as weights:
        made = hashlib.sha256()
        for name in sorted(weights.files):
            made.update(weights[name].tobytes())
        assert weights["layers/0/feed_forward/up/weight"].shape == (24, 96)
    assert made.hexdigest() == found["weights_sha256"]
    check_trace(json.loads((out / "timeline.json").read_text()))
    timelines = load(out / "timeline.json")
    assert [t.origin for t in timelines] == ["predicted", "measured"]
    assert [t.ranks for t in timelines] == [tuple(range(ranks))] * 2
    for name in ("loss.png", "timeline.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    return found


def test_one_rank_without_mpi(one_rank: tuple[Path, str, str]) -> None:
    out, said, progress = one_rank
    found = require_whole(out, 1)
    assert found["losses"][-1] < found["losses"][0]
    assert found["losses"][0] == pytest.approx(8, abs=0.5), "bits per byte"
    for part in ("machine", "stage 0", "bigram entropy", "bits per byte", "Written by the model"):
        assert part in said
    assert f"step {STEPS}/{STEPS}  loss" in progress and "left" in progress
    assert "planning again" not in progress, "a learning rate that changes is a value"


def test_two_ranks(small: list[str], one_rank: Any, mpiexec: Any, tmp_path: Path) -> None:
    arguments = [*small, "--analytic", "--method", "dp2", "--profile-runtime"]
    done = mpiexec(
        2, [SCRIPT, *arguments, "--out", tmp_path, "--json", tmp_path / "train.json"], timeout=120
    )
    found = require_whole(tmp_path, 2)
    reference = results(one_rank[0])
    np.testing.assert_allclose(found["losses"], reference["losses"], rtol=1e-5)
    np.testing.assert_allclose(
        found["validation_bits_per_byte"], reference["validation_bits_per_byte"], rtol=1e-4
    )
    (row,) = stored_rows(Plan.load(tmp_path / "plan.json"))
    assert row.collectives == {"all_reduce": 1}, "one bucket of gradients"
    assert row.layers == ("embedding", "layer 0", "norm", "head")
    assert "embedding/tokens" in row.specs
    assert done.stdout.count("Written by the model") == 1, "rank 0 alone prints"
    assert "runtime of one step" in done.stdout


def test_mixed_precision_on_two_stages(
    small: list[str], one_rank: Any, mpiexec: Any, tmp_path: Path
) -> None:
    features = ("--precision", "float16", "--tied", "--clip", "1", "--method", "pp2")
    run = [SCRIPT, *small, "--analytic", *features, "--microbatches", "2", "--layers", "2"]
    done = mpiexec(2, [*run, "--out", tmp_path, "--json", tmp_path / "train.json"], timeout=120)
    assert "computed in float16" in done.stdout
    losses = results(tmp_path)["losses"]
    assert losses[0] == pytest.approx(results(one_rank[0])["losses"][0], abs=0.5)
    assert losses[-1] < losses[0], "steps are not skipped"
    with np.load(tmp_path / "weights.npz") as weights:
        assert "head" not in weights.files
        assert {weights[name].dtype.name for name in weights.files} == {"float32"}


def test_a_plan_on_threads_without_matplotlib(
    small: list[str], one_rank: Any, tmp_path: Path
) -> None:
    """The plan of another run is run; what cannot be drawn is said, and the run succeeds."""
    cluster = tmp_path / "cluster.toml"
    cluster.write_text(CLUSTER.replace("count = 2", "").replace("devices = 2", "devices = 1"))
    missing = tmp_path / "missing" / "matplotlib"
    missing.mkdir(parents=True)
    (missing / "__init__.py").write_text("raise ImportError('not here')")
    out = tmp_path / "out"
    done = alone(
        *(*small, "--backend", "local", "--cluster", cluster, "--analytic", "--method", "tp1"),
        *("--out", out, "--json", out / "train.json"),
        PYTHONPATH=f"{missing.parent}{os.pathsep}{ROOT}",
    )
    assert done.returncode == 0, done.stderr
    assert "loss.png is not drawn" in done.stdout and "timeline.png is not drawn" in done.stdout
    assert {p.name for p in out.iterdir()} == FILES - {"loss.png", "timeline.png"} | {"train.json"}
    assert results(out)["weights_sha256"] == results(one_rank[0])["weights_sha256"]
    again = alone(
        *(*small, "--backend", "local", "--cluster", cluster, "--plan", out / "plan.json"),
        *("--analytic", "--out", out / "again", "--json", out / "again.json"),
    )
    assert again.returncode == 0, again.stderr
    found = json.loads((out / "again.json").read_text())
    assert found["weights_sha256"] == results(out)["weights_sha256"]
    assert found["plan_digest"] == results(out)["plan_digest"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--backend", "local", "--cluster", "laptop", "--method", "tp4"], 1, "ShardingError: "),
        (["--heads", "5"], 1, "DataError: "),
        (["--data", "/nowhere"], 1, "DataError: no text at '/nowhere'"),
        (["--costs", "a.h5"], 2, "exclude each other"),
    ],
)
def test_errors_are_named(small: list[str], arguments: list[str], code: int, says: str) -> None:
    done = alone(*small, "--analytic", "--microbatches", "1", *arguments)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
