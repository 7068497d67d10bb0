"""Pins on inputs and on values in the model: met by the plan, mixed with what is searched."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hpc_alpa
from hpc_alpa.cluster import DeviceMesh
from hpc_alpa.cost import AnalyticCost
from hpc_alpa.errors import PlanError, ShardingError
from hpc_alpa.ir import evaluate
from hpc_alpa.lower import lower
from hpc_alpa.lower.check import check
from hpc_alpa.plan.intra_op import IntraOp
from hpc_alpa.plan.methods import parse_method, restrictions
from hpc_alpa.plan.plan import Plan, StagePlan
from hpc_alpa.plan.pricing import Pricing
from hpc_alpa.search.pins import Pin, pinned
from hpc_alpa.sharding import ShardingSpec, apply_roles, rule_of
from hpc_alpa.step import StageGraph, StepGraph, split_stages
from hpc_alpa.trace import value_and_grad
from tests.helpers.equality import cluster
from tests.helpers.random_losses import Case, traced_case
from tests.helpers.random_plans import require_outputs, run


def loss(params: Any, batch: Any) -> Any:
    x = batch["x"]
    for k, layer in enumerate(params):
        with hpc_alpa.layer(k):
            hidden = np.tanh(x @ layer["up"] + layer["bias"])  # line: hidden
            x = x + hidden @ layer["down"]  # line: residual
    return np.mean((x - batch["y"]) ** 2)


def step(state: Any, batch: Any) -> Any:
    total, g = value_and_grad(loss)(state, batch)
    new = [{k: p - 0.1 * g[at][k] for k, p in layer.items()} for at, layer in enumerate(state)]
    return new, total


def line(name: str) -> str:
    lines = Path(__file__).read_text().splitlines()
    [number] = [k for k, text in enumerate(lines, 1) if text.endswith(f"# line: {name}")]
    return f"{Path(__file__).name}:{number}"


@cache
def case() -> Case:
    r = np.random.default_rng(0)
    shapes = {"up": (8, 12), "bias": (12,), "down": (12, 8)}
    state = [{k: r.normal(size=s) / 3 for k, s in shapes.items()} for _ in range(2)]
    return traced_case(step, state, {k: r.normal(size=(8, 8)) for k in "xy"})


def plan_of(
    pins: dict[str, Pin], mesh: tuple[int, ...] = (2,), method: str = "auto", slots: int = 2
) -> tuple[StepGraph, StageGraph, StagePlan]:
    step = case().split(slots)
    [stage] = split_stages(step, ())
    ranks = tuple(range(int(np.prod(mesh))))
    rules = pinned(step.graph, pins, mesh)
    if method != "auto":
        rules = rules & restrictions(parse_method(method).over(len(ranks)), step)
    pricing = Pricing.on(DeviceMesh(mesh, ranks), AnalyticCost(cluster(len(ranks))))
    program = IntraOp(step, stage, pricing, rules)
    return step, stage, program.decode(program.solve(), ("x", "y", "z")[: len(mesh)])


def require_step(step: StepGraph, made: StagePlan) -> None:
    """The plan computes the step."""
    programs = lower(step, Plan("", "1f1b", step.num_microbatches, (), (made,), "", "", ("", "")))
    check(programs)
    graph, values = case().graph, case().values
    engine, outputs, _ = run(programs, graph, values)
    require_outputs(engine, outputs, evaluate(graph, values), 1e-10)


def lying(stage: StageGraph, made: StagePlan, op: str) -> list[ShardingSpec]:
    """How the values of an operator in the forward pass lie, layer by layer."""
    found = []
    for e, roles in zip(stage.graph.eqns, made.strategies, strict=True):
        if e.op.name == op and e.phase == "forward":
            s = apply_roles(rule_of(e), tuple(roles.split(",")), made.mesh_shape)
            assert s is not None
            found.append(s.output)
    return found


def test_without_pins_nothing_is_split_otherwise() -> None:
    """So that the other tests say something: the pins are not what the search takes anyway."""
    _, stage, made = plan_of({})
    assert "RS0" not in map(str, lying(stage, made, "tanh"))


@pytest.mark.parametrize("mesh", [(2,), (4,), (2, 2)])
def test_a_line_stands_for_the_value_that_it_hands_on(mesh: tuple[int, ...]) -> None:
    step, stage, made = plan_of({line("hidden"): {1: 0}}, mesh)
    assert [s.dims[1][:1] for s in lying(stage, made, "tanh")] == [(0,), (0,)]
    require_step(step, made)


def test_one_layer_of_those_that_run_the_line() -> None:
    step, stage, made = plan_of({f"1/{line('hidden')}": "RS0"})
    first, second = map(str, lying(stage, made, "tanh"))
    assert first != "RS0" and second == "RS0"
    require_step(step, made)


def test_values_and_inputs_are_pinned_together() -> None:
    pins: dict[str, Pin] = {line("residual"): "RS0", "1/up": "S0R", "batch/x": {0: 0}}
    step, stage, made = plan_of(pins)
    names = [stage.graph.name_of[v.id] for v in stage.graph.inputs]
    specs = dict(zip(names, made.inputs, strict=True))
    assert (specs["state/1/up"], specs["batch/x"]) == ("S0R", "S0R")
    assert [str(s) for s in lying(stage, made, "add")[1::2]] == ["RS0", "RS0"]
    require_step(step, made)


def test_a_value_may_be_pinned_partial() -> None:
    """A sum that is put off: the residual stays a term on each device."""
    step, stage, made = plan_of({f"1/{line('residual')}": "RR+P0"})
    assert str(lying(stage, made, "add")[-1]) == "RR+P0"
    require_step(step, made)


def test_pins_under_a_method() -> None:
    step, stage, made = plan_of({line("hidden"): {1: 1}}, (2, 2), "dp2tp2")
    assert {str(s) for s in lying(stage, made, "tanh")} == {"S0S1"}
    require_step(step, made)
    with pytest.raises(ShardingError, match=f"{line('hidden')} .*cannot be split"):
        plan_of({line("hidden"): {1: 0}}, (2,), "dp2")


@pytest.mark.parametrize(
    ("name", "pin", "error", "says"),
    [
        (
            "other.py:3",
            "RR",
            PlanError,
            "'other.py:3' names no input .*no line .* named as 0/test_",
        ),
        ("2/{}", "RR", PlanError, "no line"),
        ("{}", "R", ShardingError, "spec R has 1 dims"),
        ("{}", {2: 0}, ShardingError, r"dims \[2\] do not all exist"),
        ("{}", "RQ", ShardingError, "is not a spec"),
        ("state/0/up", "RR+P0", ShardingError, "an input is not partial"),
        ("{}", "RS3", ShardingError, "tanh at .*cannot be split"),
    ],
)
def test_pins_that_name_nothing_or_do_not_fit(
    name: str, pin: Pin, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        plan_of({name.format(line("hidden")): pin})


def test_what_does_not_divide_is_named() -> None:
    """12 columns do not divide over 8 devices."""
    with pytest.raises(ShardingError, match=f"tanh at {line('hidden')}.*cannot be split over mesh"):
        plan_of({line("hidden"): "RS0"}, (8,))
