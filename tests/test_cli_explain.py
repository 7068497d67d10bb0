"""`hpc-alpa explain --value` on a script's plan: its text, its JSON, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hpc_alpa.cli import main
from hpc_alpa.plan.plan import Plan
from tests.test_cli_commands import CLUSTER, SCRIPT


def run(*arguments: object) -> Any:
    return CliRunner().invoke(main, list(map(str, arguments)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("explain")
    (made / "cluster.toml").write_text(CLUSTER)
    (made / "train.py").write_text(SCRIPT)
    for name, method in (("plan", "auto"), ("data", "dp4")):
        done = run("plan", *step_of(made), "--method", method, "--num-microbatches", 1,
                   "--out", made / f"{name}.json")  # fmt: skip
        assert done.exit_code == 0, done.output
    return made


def step_of(folder: Path) -> tuple[object, ...]:
    script, cluster = folder / "train.py", folder / "cluster.toml"
    return "--script", script, "--cluster", cluster, "--analytic"


def answers(folder: Path, plan: str, value: str) -> Any:
    done = run("explain", folder / plan, *step_of(folder), "--value", value, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_why_a_weight_lies_so(folder: Path) -> None:
    [found] = answers(folder, "plan.json", "params/layers/0/weight")
    plan = Plan.load(folder / "plan.json")
    assert (found["stage"], found["mesh"]) == (0, list(plan.stages[0].mesh_shape))
    assert found["spec"] in plan.stages[0].inputs
    own, *others = found["alternatives"]
    assert own["chosen"] and own["seconds"] == pytest.approx(plan.solver["objective"])
    assert {a["spec"] for a in (own, *others)} == {"RR", "S0R", "RS0"}
    assert all(a["seconds"] >= own["seconds"] and a["comes"] for a in others)
    assert found["memory"]["nbytes"] == pytest.approx(plan.solver["held_bytes"])
    text = run("explain", folder / "plan.json", *step_of(folder), "--value", "0/weight").output
    for part in (f"lies as {own['spec']}, stage 0", "does not bind", "best plan with it: +",
                 "all_gather of state/params/layers/0/weight", "changes "):  # fmt: skip
        assert part in text


def test_why_a_line_is_computed_so(folder: Path) -> None:
    lines = {
        part["value"].split()[0]
        for a in answers(folder, "plan.json", "0/weight")[0]["alternatives"]
        for part in a["changes"]
    }
    line = next(name for name in lines if name.startswith("layers.py:"))
    for found in answers(folder, "plan.json", line):
        assert found["made_by"].endswith(line)
        roles = [a["roles"] for a in found["alternatives"]]
        assert len(set(roles)) == len(roles) > 1


def test_what_a_method_leaves_out_has_that_reason(folder: Path) -> None:
    [found] = answers(folder, "data.json", "params/layers/1/weight")
    assert [a["spec"] for a in found["alternatives"]] == ["RR"]
    [reason] = found["excluded"]
    assert reason == {
        "reason": "the method or a pin leaves it out", "choices": ["S0R", "RS0"]
    }  # fmt: skip


def test_what_explain_refuses(folder: Path) -> None:
    plan = folder / "plan.json"
    done = run("explain", plan, "--value", "w")
    assert done.exit_code == 2 and "give --script" in done.output
    done = run("explain", plan, *step_of(folder), "--value", "nothing/like/it")
    assert done.exit_code == 1
    assert "names no input of the step and no line of the model" in done.output
    done = run("explain", plan, *step_of(folder), "--value", "0/weight", "--", "--rows", 64)
    assert done.exit_code == 1 and "the plan was made for graph" in done.output
