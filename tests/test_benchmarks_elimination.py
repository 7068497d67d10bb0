"""The benchmark of the first road against HiGHS on toy sizes: both find one optimum."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def elimination(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("plan_scaling", "elimination"):  # other tests load them by their own path
        monkeypatch.delitem(sys.modules, name, raising=False)
    spec = importlib.util.spec_from_file_location("elimination", BENCHMARKS / "elimination.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "elimination", module)
    spec.loader.exec_module(module)
    return module


def test_both_roads_find_one_optimum(elimination: Any, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = "--hidden 64 --heads 4 --sequence 16 --vocabulary 128 --batch 32".split()
    options = ["--layers", "3", "--microbatches", "1,2", "--kinds", "tied,free", *sizes]
    elimination.main(elimination.parse([*options, "--mesh", "4", "--json"]))
    found = json.loads(capsys.readouterr().out)
    assert [(r["kind"], r["microbatches"]) for r in found] == [
        *(("tied", 1), ("tied", 2), ("free", 1), ("free", 2))
    ]
    for r in found:
        assert r["highs_status"] == "optimal" and r["gap"] <= 1e-6
        assert r["objective"] == pytest.approx(r["highs_objective"], rel=1e-6)
        assert r["ratio"] == pytest.approx(r["highs_seconds"] / r["seconds"])
    assert found[2]["choices"] > 1.5 * found[0]["choices"]  # equal layers choose for themselves


def test_an_unknown_kind_is_refused(elimination: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        elimination.parse(["--kinds", "tied,loose"])
    assert "expected some of tied, free" in capsys.readouterr().err
