"""What two plans decide differently: plans of one search, and plans changed by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hpc_alpa.cli import main
from hpc_alpa.errors import PlanError
from hpc_alpa.plan.diff import Differs, Moved, diff
from hpc_alpa.plan.plan import Plan
from tests.test_cli_commands import CLUSTER, SCRIPT

METHODS = {"dp4": 2, "zero2": 2, "dp2tp2": 2, "dp2pp2": 2, "one": 1}  # -> microbatches


def run(*arguments: object) -> Any:
    return CliRunner().invoke(main, list(map(str, arguments)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("diff")
    (made / "cluster.toml").write_text(CLUSTER)
    (made / "train.py").write_text(SCRIPT)
    for name, slots in METHODS.items():
        done = run(
            "plan", "--script", made / "train.py", "--cluster", made / "cluster.toml",
            "--method", "dp4" if name == "one" else name, "--num-microbatches", slots,
            "--out", made / f"{name}.json",
        )  # fmt: skip
        assert done.exit_code == 0, done.output
    return made


def plan(folder: Path, name: str) -> Plan:
    return Plan.load(folder / f"{name}.json")


def test_equal_plans_say_so(folder: Path) -> None:
    a = plan(folder, "dp4")
    assert diff(a, a).equal and diff(a, replace(a, solver={}, predicted={})).equal
    done = run("diff", folder / "dp4.json", folder / "dp4.json")
    assert done.exit_code == 0 and done.output.startswith("the plans decide the same\n")


def test_a_plan_and_the_same_with_one_thing_changed(folder: Path) -> None:
    a = plan(folder, "dp4")
    [stage] = a.stages
    k = a.predicted["names"]["inputs"][0].index("state/params/layers/1/weight")
    inputs = (*stage.inputs[:k], "S0R", *stage.inputs[k + 1 :])
    found = diff(a, replace(a, stages=(replace(stage, inputs=inputs),)))
    assert found.inputs == (Differs("state/params/layers/1/weight", "RR", "S0R"),)
    assert not (found.layout or found.strategies or found.conversions or found.held)

    k = a.predicted["names"]["operators"][0].index("dot_general")
    ways = (*stage.strategies[:k], "c", *stage.strategies[k + 1 :])
    found = diff(a, replace(a, stages=(replace(stage, strategies=ways),)))
    assert found.strategies == (Moved("dot_general", stage.strategies[k], "c", 1),)
    found = diff(a, replace(a, stages=(replace(stage, held=((3, "S0R"),)),)))
    assert found.held == (Differs("stage 0: value 3 as S0R", "", "held"),)
    assert not found.equal


@pytest.mark.parametrize("a, b", [("dp4", "zero2"), ("dp4", "dp2tp2"), ("dp4", "dp2pp2")])
def test_differences_turn_round(folder: Path, a: str, b: str) -> None:
    """What goes one way comes the other way, and equations are neither lost nor made."""
    there, back = diff(plan(folder, a), plan(folder, b)), diff(plan(folder, b), plan(folder, a))
    assert not there.equal and there.layout[0] == Differs("method", a, b)
    for kind in ("layout", "inputs", "conversions", "held"):
        turned = {Differs(d.what, d.after, d.before) for d in getattr(there, kind)}
        assert turned == set(getattr(back, kind))
    moved = {Moved(m.operator, m.after, m.before, m.count) for m in there.strategies}
    assert moved == set(back.strategies) and moved
    assert all(m.operator != "equation" for m in there.strategies)


def test_data_parallel_and_zero_differ_in_what_the_methods_say(folder: Path) -> None:
    found = diff(plan(folder, "dp4"), plan(folder, "zero2"))
    assert not found.inputs, "both keep whole parameters"
    assert {m.operator for m in found.strategies} >= {"accumulate", "sub"}
    number = {p.what: (p.before, p.after) for p in found.predicted}
    assert number["reduce_scatter per step"][0] == 0 < number["reduce_scatter per step"][1]  # type: ignore[operator]
    before, after = number["memory of a device"]
    assert before is not None and after is not None and after < before
    done = run("diff", folder / "dp4.json", folder / "zero2.json")
    assert done.exit_code == 0
    for part in ("method  dp4 -> zero2", "accumulate: +0 -> a", "reduce_scatter per step 0 -> "):
        assert part in done.output
    data = json.loads(run("diff", "--json", folder / "dp4.json", folder / "zero2.json").stdout)
    assert data["equal"] is False and data["strategies"][0]["operator"] == "accumulate"


def test_other_microbatches_compare_by_operator(folder: Path) -> None:
    found = diff(plan(folder, "dp4"), plan(folder, "one"))
    assert Differs("microbatches", "2", "1") in found.layout
    assert all(m.before == "" or m.after == "" for m in found.strategies)


def test_a_plan_without_names_is_compared_by_the_others_or_by_number(folder: Path) -> None:
    a, b, c = plan(folder, "dp4"), plan(folder, "dp2tp2"), plan(folder, "dp2pp2")
    bare = replace(b, predicted={})
    assert diff(a, bare).inputs == diff(a, b).inputs
    assert diff(a, bare).strategies == diff(a, b).strategies
    assert {m.operator for m in diff(bare, c).strategies} == {"equation"}
    assert all("input " in d.what for d in diff(bare, c).inputs)


def test_plans_of_two_graphs_are_refused(folder: Path, tmp_path: Path) -> None:
    a = plan(folder, "dp4")
    other = replace(a, graph="f" * 64)
    with pytest.raises(PlanError, match=f"of graph {a.graph[:12]}, the second of ffffffffffff"):
        diff(a, other)
    other.save(tmp_path / "other.json")
    done = run("diff", folder / "dp4.json", tmp_path / "other.json")
    assert done.exit_code == 1 and "nothing to compare" in done.output
