"""Errors of planning and running: named, with both values, and no traceback from below."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpc_alpa.api import ParallelStep, parallelize
from hpc_alpa.cost import AnalyticCost
from hpc_alpa.errors import (
    CostError,
    HpcAlpaError,
    InfeasibleError,
    PlanError,
    ShardingError,
    TracingError,
)
from hpc_alpa.plan.plan import Plan
from hpc_alpa.trace import value_and_grad
from tests.helpers.equality import cluster


def train_step(state: Any, batch: Any) -> Any:
    def loss(p: Any) -> Any:
        hidden = np.maximum(batch["x"] @ p["up"] + p["bias"], 0)
        return np.mean((hidden @ p["down"] - batch["y"]) ** 2)

    value, g = value_and_grad(loss)(state)
    return {k: state[k] - 0.1 * g[k] for k in state}, {"loss": value}


def arguments(rows: int = 12, hidden: int = 8) -> tuple[Any, Any]:
    r = np.random.default_rng(0)
    state = {
        "up": r.normal(size=(4, hidden)),
        "bias": np.zeros(hidden),
        "down": r.normal(size=(hidden, 4)),
    }
    return state, {"x": r.normal(size=(rows, 4)), "y": r.normal(size=(rows, 4))}


def step_of(ranks: int = 2, **options: Any) -> ParallelStep:
    options = {"cluster": cluster(ranks), "costs": "analytic", **options}
    return parallelize(train_step, backend="local", **options)


def refused(kind: type[HpcAlpaError], *parts: str, call: Callable[[], Any]) -> str:
    """The message, which has these parts (regular expressions) in this order."""
    with pytest.raises(kind) as caught:
        call()
    error = caught.value
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None, "no traceback from below"
    text = str(error)
    assert re.search(".*".join(parts), text, re.DOTALL), text
    return text


def run(rows: int = 12, hidden: int = 8, **options: Any) -> Callable[[], Any]:
    return lambda: step_of(**options)(*arguments(rows, hidden))


# -------------------------------------------------------------------------------- what divides
def test_a_batch_that_does_not_divide() -> None:
    refused(ShardingError, "'batch/x' ", r"12,4\]", r"mesh \(5,\)", call=run(ranks=5, method="dp5"))
    refused(
        TracingError, "'batch/x'", "does not divide into 5 microbatches",
        call=run(method="dp2", num_microbatches=5),
    )  # fmt: skip
    refused(
        ShardingError, "'batch/x'", "4 microbatches has 3 rows",
        call=run(method="dp2", num_microbatches=4),
    )  # fmt: skip


def test_a_hidden_size_that_does_not_divide() -> None:
    refused(
        ShardingError, "over 3 devices", r"dot_general at test_api_errors\.py:\d+", "multiple of 3",
        call=run(ranks=3, method="tp3"),
    )  # fmt: skip


# ------------------------------------------------------------------------------------- methods
@pytest.mark.parametrize("method", ["auto", "dp2", "pp2"])
def test_a_memory_limit_that_nothing_fits(method: str) -> None:
    text = refused(
        InfeasibleError, "memory of a device", "of 1,000 bytes", "nearest fit",
        call=run(method=method, memory=1000),
    )  # fmt: skip
    found = re.search(r"at least ([\d,]+) bytes, ([\d,]+) bytes too many", text)
    assert found
    least, missing = (int(x.replace(",", "")) for x in found.groups())
    assert least == 1000 + missing > 1000


def test_a_memory_limit_between_what_the_planner_counts_and_what_runs() -> None:
    """The integer program counts what lives long; the simulator finds the rest."""
    needed = max(step_of(method="dp2").prepare(*arguments()).predicted["peak_bytes"])
    step_of(method="dp2", memory=needed)(*arguments())
    refused(InfeasibleError, "memory", "too many", call=run(method="dp2", memory=needed - 8))


def test_methods_and_schedules_that_do_not_exist() -> None:
    refused(PlanError, "no method 'xp2'", "dpN, tpN and ppN", call=run(method="xp2"))
    refused(PlanError, "dp2dp2", "once", call=run(method="dp2dp2"))
    refused(PlanError, "dp4", "4 devices", "2", call=run(method="dp4"))
    refused(PlanError, "no schedule 'zigzag'", "1f1b", call=run(schedule="zigzag", method="pp2"))
    refused(PlanError, "64 layers", call=run(ranks=64, method="pp64", num_microbatches=1))
    refused(HpcAlpaError, "backend 'tpu'", "host", call=lambda: parallelize(
        train_step, backend="tpu", cluster=cluster(2))(*arguments()))  # fmt: skip
    refused(PlanError, "give cluster=", call=lambda: parallelize(
        train_step, backend="local")(*arguments()))  # fmt: skip


def test_costs_never_fall_back(tmp_path: Path) -> None:
    refused(CostError, "absent.h5", "hpc_alpa.profiler", call=run(costs=tmp_path / "absent.h5"))


# ---------------------------------------------------------------------------------------- pins
def test_pins_that_name_nothing_or_do_not_fit() -> None:
    refused(PlanError, "pin 'middle'", "inputs are state/bias", call=run(pins={"middle": "R"}))
    refused(ShardingError, "pin 'up'", "1 dims", call=run(pins={"up": "S0"}))
    refused(ShardingError, "pin 'up'", r"dims \[2\]", call=run(pins={"up": {2: 0}}))
    refused(ShardingError, "is not a spec", call=run(pins={"up": "Q7"}))
    refused(ShardingError, "'state/up'", "pins", call=run(pins={"up": "S7R"}))


def test_pins_that_contradict_a_method() -> None:
    refused(
        ShardingError, "'state/up'", "the method and the pins",
        call=run(method="dp2", pins={"up": "S0R"}),
    )  # fmt: skip


def test_pins_fix_what_they_name() -> None:
    step = step_of(pins={"up": "RS0", "batch/x": {0: 0}}, num_microbatches=1)
    step(*arguments())
    specs = {p.position: p.spec for p in step.programs[0].inputs}
    # Positions are in the order of the paths: bias, down, up, x, y.
    assert (specs[2], specs[3]) == ("RS0", "S0R")


# --------------------------------------------------------------------------------------- plans
@pytest.fixture(scope="module")
def plan() -> Plan:
    return step_of(method="dp2").prepare(*arguments())


def test_a_plan_for_something_else(plan: Plan) -> None:
    refused(PlanError, "another graph|made for graph", call=run(plan=plan, hidden=16))
    refused(PlanError, "2 ranks, 3 are running", call=run(plan=plan, ranks=3))
    refused(PlanError, "made for cluster", "plan again", call=run(plan=plan, cluster=cluster(1, 2)))
    step_of(plan=plan)(*arguments())


def test_other_costs_are_reported_not_refused(plan: Plan, caplog: pytest.LogCaptureFixture) -> None:
    other = AnalyticCost(cluster(2), launch_seconds=1e-3)
    step_of(plan=plan, costs=other)(*arguments())
    assert "was made with costs" in caplog.text


CORRUPT: dict[str, tuple[Callable[[str], str], str]] = {
    "cut short": (lambda t: t[: len(t) // 2], "is not JSON"),
    "empty": (lambda t: "", "is not JSON"),
    "field missing": (lambda t: _edited(t, cuts=None), "not a whole plan"),
    "field unknown": (lambda t: _edited(t, colour="red"), "not a whole plan"),
    "newer": (lambda t: _edited(t, version=99), "version 99.*reads 1"),
    "other format": (lambda t: _edited(t, format="png"), "is not a plan"),
    "other roles": (
        lambda t: t.replace('"strategies": [\n    "', '"strategies": [\n    "zz'),
        "another graph|does not exist",
    ),
    "shared devices": (lambda t: t.replace('devices": [\n    0,', 'devices": [\n    1,'), "share"),
    "too few": (
        lambda t: re.sub(r'"strategies": \[\n    "[^"]*",', '"strategies": [', t), "another graph"
    ),
    "wrong spec": (lambda t: t.replace('"RR"', '"RQ"'), "not a spec"),
    "wrong type": (lambda t: _edited(t, stages=7), "not a whole plan"),
}  # fmt: skip


def _edited(text: str, **fields: Any) -> str:
    data = {**json.loads(text), **fields}
    return json.dumps({k: v for k, v in data.items() if v is not None}, indent=1)


@pytest.mark.parametrize("name", CORRUPT)
def test_a_corrupt_plan(plan: Plan, tmp_path: Path, name: str) -> None:
    change, says = CORRUPT[name]
    path = tmp_path / "plan.json"
    plan.save(path)
    assert Plan.load(path) == plan
    text = change(path.read_text())
    assert text != path.read_text()
    path.write_text(text)
    refused(HpcAlpaError, says, call=run(plan=path))


def test_a_plan_that_is_not_there(tmp_path: Path) -> None:
    refused(PlanError, "none.json", "No such file", call=run(plan=tmp_path / "none.json"))


# --------------------------------------------------------------------------------------- ranks
def test_a_batch_that_differs_between_ranks(mpiexec: Callable[..., Any], tmp_path: Path) -> None:
    script = tmp_path / "differ.py"
    script.write_text(
        "import numpy as np\n"
        "from mpi4py import MPI\n"
        "from tests.test_api_errors import arguments, cluster, parallelize, train_step\n"
        "state, batch = arguments()\n"
        "batch['x'] = batch['x'] + MPI.COMM_WORLD.rank\n"
        "step = parallelize(train_step, method='dp2', cluster=cluster(2), costs='analytic')\n"
        "step(state, batch)\n"
    )
    done = mpiexec(2, [str(script)], check=False, timeout=120)
    assert done.returncode != 0
    assert re.search(r"DataError: ranks \[1\] call the step with another batch", done.stderr)
