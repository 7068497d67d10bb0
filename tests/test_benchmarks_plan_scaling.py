"""The benchmark of planning time on toy sizes: its table of numbers, its files."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "plan_scaling.py"


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("plan_scaling", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "plan_scaling", module)
    spec.loader.exec_module(module)
    return module


def test_every_phase_is_timed_and_every_plan_proven(
    scaling: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = "--hidden 64 --heads 4 --sequence 16 --vocabulary 128 --batch 32".split()
    options = ["--layers", "1,2", "--microbatches", "2", "--mesh", "2x2", *sizes]
    scaling.main(scaling.parse([*options, "--json", "--out", str(tmp_path)]))
    found = json.loads(capsys.readouterr().out)
    assert [r["layers"] for r in found] == [1, 2]
    for r in found:
        assert list(r["seconds"]) == list(scaling.PHASES) and min(r["seconds"].values()) > 0
        assert r["total"] == pytest.approx(sum(r["seconds"].values()))
        assert r["status"] == "optimal" and r["bound"] <= r["step_seconds"]
    assert found[1]["equations"] > found[0]["equations"]
    assert all(r["memory"] is None and r["sequence_dims"] for r in found)
    assert json.loads((tmp_path / "plan_scaling.json").read_text()) == found
    assert (tmp_path / "plan_scaling.png").stat().st_size > 5_000


def test_a_share_of_the_bytes_binds_and_the_sequence_stays_whole(
    scaling: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = "--hidden 64 --heads 4 --sequence 16 --vocabulary 128 --batch 64".split()
    options = ["--layers", "2", "--microbatches", "2", "--mesh", "2x2", *sizes]
    options += ["--share", "0.8", "--no-sequence", "--json"]
    scaling.main(scaling.parse(options))
    [limited] = json.loads(capsys.readouterr().out)
    assert limited["held_bytes"] <= limited["memory"] and limited["memory_rows"] > 0
    scaling.main(scaling.parse([*options[:-4], "--json"]))
    [free] = json.loads(capsys.readouterr().out)
    assert limited["choices"] < free["choices"]
    assert limited["memory"] == pytest.approx(0.8 * free["held_bytes"], rel=0.2)
    assert limited["step_seconds"] >= free["step_seconds"]
