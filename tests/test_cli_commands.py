"""`hpc-alpa` as people call it: in a process of its own, its JSON, its files, its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import hpc_alpa
from hpc_alpa.cli import main
from hpc_alpa.models import gpt, mlp, optimizers
from hpc_alpa.plan.plan import Plan
from hpc_alpa.report.plan_rows import counts
from hpc_alpa.simulate.timeline import check_trace

ROOT = Path(__file__).parents[1]
CLUSTER = """
name = "two hosts"
[[host]]
count = 2
devices = 2
cores = 2
memory_bytes = 4e9
flops = {float32 = 1e11}
memory_bandwidth = 2e10
[link.host]
alpha = 5e-6
beta = 1e-10
[link.network]
alpha = 5e-5
beta = 1e-8
"""
SCRIPT = """
import argparse
import atexit
import os
import sys

import numpy as np

import hpc_alpa
from hpc_alpa.models import mlp, optimizers

if "SAY_MPI" in os.environ:
    atexit.register(lambda: print("MPI loaded:", "mpi4py.MPI" in sys.modules, file=sys.stderr))
p = argparse.ArgumentParser()
p.add_argument("--rows", type=int, default=32)
o = p.parse_args()
print("the script speaks")
config = mlp.MLPConfig(layers=2, hidden=16)
optimizer = optimizers.sgd(optimizers.SGD())
step = hpc_alpa.parallelize(mlp.train_step(optimizer))
state = step.create(mlp.init(config, optimizer), 0)
x = np.ones((o.rows, 16), "float32")
try:
    state, metrics = step(state, {"x": x, "y": x}, 0.1)
except Exception:
    print("a script that catches everything")
print("a step has run")
"""


def run(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    keep = {k: v for k, v in os.environ.items() if not k.startswith("HPC_ALPA_")}
    return subprocess.run(
        [sys.executable, "-m", "hpc_alpa.cli", *map(str, arguments)],
        cwd=ROOT,
        env=keep | {"HPC_ALPA_DB": "/nowhere/costs.h5", "SAY_MPI": "1"} | env,
        capture_output=True,
        text=True,
        timeout=120,
    )


def good(*arguments: object) -> Any:
    """The JSON that a command prints."""
    done = run(arguments[0], "--json", *arguments[1:])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("cli")
    (made / "cluster.toml").write_text(CLUSTER)
    (made / "train.py").write_text(SCRIPT)
    return made


@pytest.fixture(scope="module")
def made(folder: Path) -> subprocess.CompletedProcess[str]:
    """A plan of the script for data parallelism over the cluster's four devices."""
    return run(
        "plan", "--script", folder / "train.py", "--cluster", folder / "cluster.toml",
        "--method", "dp4", "--out", folder / "plan.json", "--json",
    )  # fmt: skip


def test_plan_prints_the_plan_and_nothing_runs(
    folder: Path, made: subprocess.CompletedProcess[str]
) -> None:
    assert made.returncode == 0, made.stderr
    assert Plan.from_json(made.stdout).digest == Plan.load(folder / "plan.json").digest
    plan = Plan.load(folder / "plan.json")
    assert (plan.num_devices, plan.method) == (4, "dp4")
    assert plan.costs[0] == "analytic"
    assert "MPI loaded: False" in made.stderr
    assert "the script speaks" in made.stderr, "the script's output is no part of the JSON"
    assert "a step has run" not in made.stderr + made.stdout
    assert "a script that catches everything" not in made.stderr + made.stdout


def test_plan_of_the_command_line_runs(
    folder: Path, made: subprocess.CompletedProcess[str]
) -> None:
    """Written on one process for four devices, read by a job of four ranks."""
    config = mlp.MLPConfig(layers=2, hidden=16)
    optimizer = optimizers.sgd(optimizers.SGD())
    step = hpc_alpa.parallelize(
        mlp.train_step(optimizer),
        plan=folder / "plan.json",
        backend="local",
        cluster=folder / "cluster.toml",
    )
    state = step.create(mlp.init(config, optimizer), 0)
    x = np.ones((32, 16), "float32")
    state, metrics = step(state, {"x": x, "y": x}, 0.1)
    assert np.isfinite(float(metrics["loss"]))
    assert step.plan == Plan.load(folder / "plan.json")
    stages = good("explain", folder / "plan.json")["stages"]
    assert [tuple(s["ranks"]) for s in stages] == [(0, 1, 2, 3)]
    assert stages[0]["collectives"] == counts(step.program) == step.record.collectives
    text = run("explain", folder / "plan.json").stdout
    assert text.strip() == step.explain().strip()
    for part in ("stage 0: ranks 0-3, mesh 4 (data)", "layers/*/weight", "1 all_reduce", "gap 0 %"):
        assert part in text


def test_search_leaves_the_rest_to_the_script(folder: Path) -> None:
    plan = good(
        "plan", "--script", folder / "train.py", "--cluster", "laptop", "--devices", 2,
        "--num-microbatches", 1, "--", "--rows", 64,
    )  # fmt: skip
    assert plan["method"] == "auto"
    assert sum(len(s["devices"]) for s in plan["stages"]) == 2


def test_simulate(folder: Path, made: subprocess.CompletedProcess[str]) -> None:
    trace = folder / "trace.json"
    where = ("--script", folder / "train.py", "--cluster", folder / "cluster.toml")
    found = good("simulate", folder / "plan.json", *where, "--out", trace)
    plan = Plan.load(folder / "plan.json")
    assert found["step_seconds"] == pytest.approx(plan.predicted["step_seconds"])
    assert [r["peak_bytes"] for r in found["ranks"]] == plan.predicted["peak_bytes"]
    for rank in found["ranks"]:
        spent = sum(rank[f"{k}_seconds"] for k in ("compute", "communication", "waiting"))
        assert spent == pytest.approx(found["step_seconds"])
    assert 0 <= found["bubble"] < 1 and 0 < found["exposed_communication"] < 1
    check_trace(json.loads(trace.read_text()))
    table = run("simulate", folder / "plan.json", *where).stdout
    assert "computes" in table and "waiting" in table


def test_doctor_finds_what_the_tests_use() -> None:
    found = good("doctor")
    assert found["problems"] == []
    assert found["libraries"]["numpy"] == np.__version__
    assert found["mpi"]["two_ranks_meet"] in (True, None)
    assert found["cores"] >= 1 and found["memory_bytes"] > 0
    assert found["gpu"]["found"] or "cuda" in found["gpu"]["why"]


def test_profile_is_the_profiler() -> None:
    text = run("profile", "--help").stdout
    for option in ("--seconds", "--resume", "--max-bytes", "--json"):
        assert option in text


def test_help_lists_the_commands() -> None:
    text = run("--help").stdout
    for command in ("plan", "explain", "simulate", "profile", "doctor"):
        assert f"\n  {command} " in text


PLAN = ("plan", "--script", "{folder}/train.py")
ON = (*PLAN, "--cluster", "{folder}/cluster.toml")
# What is wrong: (arguments, exit code, part of the one message)
WRONG: dict[str, tuple[tuple[str, ...], int, str]] = {
    "no such command": (("paln",), 2, "paln"),
    "no script": (("plan",), 2, "--script"),
    "method that does not exist": ((*ON, "--method", "xp2"), 2, "xp2"),
    "schedule that does not exist": ((*ON, "--schedule", "2f2b"), 2, "2f2b"),
    "analytic without a cluster": ((*PLAN, "--analytic"), 2, "--cluster"),
    "method for other devices": ((*ON, "--method", "dp3"), 1, "dp3 is for 3 devices, there are 4"),
    "more devices than there are": ((*ON, "--devices", "5"), 1, "has 4"),
    "batch not divisible": ((*ON, "--method", "dp4", "--", "--rows", "30"), 1, "30"),
    "microbatches not divisible": (
        (*ON, "--method", "dp4", "--num-microbatches", "3", "--", "--rows", "32"),
        1,
        "3 microbatches",
    ),
    "memory that nothing fits": (
        (*ON, "--method", "dp4", "--memory", "1000"),
        1,
        "Error: InfeasibleError: ",
    ),
    "no costs": ((*PLAN, "--devices", "2"), 1, "/nowhere/costs.h5"),
    "no such cluster": ((*PLAN, "--cluster", "no.toml"), 1, "no.toml"),
    "the script's own arguments": (
        (*ON, "--", "--cols", "3"),
        1,
        "before its first step, so there is nothing to plan: exit code 2",
    ),
    "a script without a step": (
        ("plan", "--script", "{folder}/idle.py", "--cluster", "laptop"),
        1,
        "without a step",
    ),
    "no plan": (("explain", "{folder}/none.json"), 1, "none.json cannot be read"),
    "a plan that is no JSON": (("explain", "{folder}/train.py"), 1, "is not JSON"),
    "JSON that is no plan": (("explain", "{folder}/other.json"), 1, "is not a plan"),
    "a plan for another graph": (
        (
            *("simulate", "{folder}/plan.json", "--script", "{folder}/train.py"),
            *("--cluster", "{folder}/cluster.toml", "--", "--rows", "64"),
        ),
        1,
        "the plan was made for graph",
    ),
    "nothing to simulate": (("simulate", "{folder}/plan.json"), 2, "Give one MODEL"),
    "a model that does not exist": (
        ("simulate", "{folder}/plan.json", "gpt-40B", "--cluster", "laptop"),
        1,
        "there is no model 'gpt-40B'",
    ),
    "a plan for another model": (
        ("simulate", "{folder}/plan.json", "gpt-350M", "--cluster", "{folder}/cluster.toml"),
        1,
        "the plan was made for graph",
    ),
    "a plan for another cluster": (
        (
            *("simulate", "{folder}/plan.json", "--script", "{folder}/train.py"),
            *("--cluster", "laptop"),
        ),
        1,
        "the plan was made for cluster",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_and_failures_say_what_and_why(
    case: str,
    folder: Path,
    made: subprocess.CompletedProcess[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments, code, says = WRONG[case]
    (folder / "idle.py").write_text("pass\n")
    (folder / "other.json").write_text('{"format": "something"}')
    monkeypatch.setenv("HPC_ALPA_DB", "/nowhere/costs.h5")
    done = CliRunner().invoke(main, [a.format(folder=folder) for a in arguments])
    assert done.exit_code == code, done.output
    assert says in done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)


def test_a_failure_is_one_message(folder: Path, made: subprocess.CompletedProcess[str]) -> None:
    done = run("plan", "--script", folder / "train.py", "--cluster", "laptop", "--method", "dp3")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Error: PlanError: method dp3" in done.stderr
    assert "Traceback" not in done.stderr


def test_planning_is_for_one_process(folder: Path, mpiexec: Any) -> None:
    arguments = ["-m", "hpc_alpa.cli", *[a.format(folder=folder) for a in ON]]
    done = mpiexec(2, arguments, check=False)
    assert done.returncode != 0
    assert "planning takes one process" in done.stderr


def test_a_model_is_planned_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The JSON is a plan, and says what it promises; the second time nothing is traced."""
    monkeypatch.setenv("HPC_ALPA_PLANS", str(tmp_path))
    monkeypatch.setitem(gpt.SIZES, "350M", (1024, 4, 16))  # 4 layers of its 24
    asked = ["plan", "gpt-350M", "--cluster", "p3.16xlarge:2", "--devices", "2", "--analytic"]
    asked += ["--method", "tp2", "--num-microbatches", "64", "--recompute", "all"]
    out = tmp_path / "plan.json"
    result = CliRunner().invoke(main, [*asked, "--json", "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    seconds = found["planning_seconds"]
    assert seconds["total"] == pytest.approx(sum(v for k, v in seconds.items() if k != "total"))
    assert {"trace", "strategies", "simulation"} <= seconds.keys()
    predicted = found["predicted"]
    assert predicted["peak_bytes"] == max(predicted["peak_bytes_per_rank"])
    ratio = predicted["tflops_per_device_with_recomputation"] / predicted["tflops_per_device"]
    assert 1.1 < ratio < 4 / 3, "a third more, but for the head"
    [stage] = found["stages"]
    assert stage["submesh"] == [1, 2] and stage["logical_shape"] == [2]
    assert stage["layers"][0] == "embedding" and "layer 3" in stage["layers"]
    assert Plan.from_json(result.stdout).digest == Plan.load(out).digest
    assert Plan.from_json(result.stdout).predicted["peak_bytes"] == predicted["peak_bytes_per_rank"]

    monkeypatch.delattr("hpc_alpa.cli.paper.trace_step")
    again = json.loads(CliRunner().invoke(main, [*asked, "--json"]).stdout)
    assert again["planning_seconds"]["total"] < 1.0 < seconds["total"]
    assert again["predicted"] == predicted and again["stages"] == found["stages"]
    text = CliRunner().invoke(main, asked, catch_exceptions=False).stdout
    assert "embedding, layer 0-3" in text and "recomputed" in text


def test_neither_a_model_nor_a_script_is_wrong_use() -> None:
    for asked in ([], ["gpt-350M", "gpt-760M"]):
        result = CliRunner().invoke(main, ["plan", *asked, "--cluster", "laptop"])
        assert result.exit_code == 2 and "MODEL" in result.output
