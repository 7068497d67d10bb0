"""Why a value lies as it does: alternatives against solving with a pin, reasons, limits."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

import hpc_alpa
from hpc_alpa.cluster import DeviceMesh
from hpc_alpa.cost import AnalyticCost
from hpc_alpa.errors import PlanError
from hpc_alpa.plan.changes import Change, Conversion, conversions
from hpc_alpa.plan.intra_op import IntraOp
from hpc_alpa.plan.likeness import LikeOwn, chosen, peak
from hpc_alpa.plan.pricing import Pricing
from hpc_alpa.plan.restrictions import Restrictions
from hpc_alpa.plan.solve.highs import solve as solve_on_highs
from hpc_alpa.plan.solve.options import Options
from hpc_alpa.plan.solve.problem import Assignment, Problem, evaluate, leaders
from hpc_alpa.plan.why import Alternative, Limit, Why, why
from hpc_alpa.report.why import why_text
from hpc_alpa.step import split_stages
from hpc_alpa.trace import value_and_grad
from tests.helpers.equality import cluster
from tests.helpers.random_losses import Case, traced_case

SHAPES = {"up": (8, 20), "bias": (20,), "down": (20, 8), "odd": (8, 6)}


def loss(params: Any, batch: Any) -> Any:
    x = batch["x"]
    for k, layer in enumerate(params):
        with hpc_alpa.layer(k):
            hidden = np.tanh(x @ layer["up"] + layer["bias"])
            x = x + hidden @ layer["down"] + (x @ layer["odd"]).sum(axis=1, keepdims=True)
    return np.mean((x - batch["y"]) ** 2)


def step(state: Any, batch: Any) -> Any:
    total, g = value_and_grad(loss)(state, batch)
    new = [{k: p - 0.1 * g[at][k] for k, p in layer.items()} for at, layer in enumerate(state)]
    return new, total


@cache
def case(layers: int = 2) -> Case:
    r = np.random.default_rng(0)
    state = [{k: r.normal(size=s) / 3 for k, s in SHAPES.items()} for _ in range(layers)]
    return traced_case(step, state, {k: r.normal(size=(32, 8)) for k in "xy"})


def made(
    mesh: tuple[int, ...] = (4,),
    memory: float | None = None,
    rules: Restrictions | None = None,
    layers: int = 2,
) -> tuple[IntraOp, Problem, Assignment]:
    """A program and the choices of its plan, read back from the plan."""
    split = case(layers).split(2)
    [stage] = split_stages(split, ())
    devices = DeviceMesh(mesh, tuple(range(int(np.prod(mesh)))))
    pricing = Pricing.on(devices, AnalyticCost(cluster(devices.num_devices)))
    program = IntraOp(split, stage, pricing, rules or Restrictions(), memory=memory)
    plan = program.decode(program.solve(), ("x", "y")[: len(mesh)])
    problem = program.problem()
    return program, problem, chosen(program, problem, plan)


def node_of(program: IntraOp, name: str) -> int:
    graph = program.stage.graph
    [node] = [k for k, v in enumerate(graph.inputs) if graph.name_of[v.id].endswith(name)]
    return node


def products(program: IntraOp) -> list[int]:
    n = len(program.stage.graph.inputs)
    eqns = program.stage.graph.eqns
    return [n + k for k, e in enumerate(eqns) if e.op.name == "dot_general"]


def require_sane(found: Why, memory: float = np.inf) -> None:
    """The plan's own choice first and never dearer; bounds below; others by rising seconds."""
    own, *others = found.alternatives
    assert own.chosen and not any(a.chosen for a in others)
    assert own.seconds == own.alone == found.seconds
    known = [a for a in others if a.seconds is not None]
    for a in known:
        assert a.seconds is not None and a.bound is not None
        assert found.seconds <= a.seconds * (1 + 2e-6) and a.bound <= a.seconds * (1 + 1e-9)
        if a.alone is not None and a.alone_bytes is not None and a.alone_bytes <= memory:
            assert a.seconds <= a.alone * (1 + 1e-9)
    assert [a.seconds for a in known] == sorted(a.seconds or 0.0 for a in known)
    assert all(a.why_not for a in others if a.seconds is None)


def test_an_alternative_costs_what_solving_with_it_costs() -> None:
    program, problem, own = made((4,))
    for node in (node_of(program, "state/0/up"), products(program)[1]):
        found = why(program, own, node, Options(seconds=60.0))
        require_sane(found)
        texts = [a.choice for a in found.alternatives]
        assert len(set(texts)) == len(texts) == len(problem.costs[node]) > 2
        for i in range(len(texts)):
            costs = list(problem.costs)
            # every tied node, where the planner's own way masks one
            for n in np.flatnonzero(leaders(problem) == leaders(problem)[node]):
                costs[n] = np.where(np.arange(len(costs[n])) == i, costs[n], np.inf)
            want = solve_on_highs(replace(problem, costs=tuple(costs))).objective
            [got] = [a for a in found.alternatives if a.choice == choice_text(program, node, i)]
            assert got.seconds == pytest.approx(want, rel=2e-6)


def choice_text(program: IntraOp, node: int, i: int) -> str:
    n = len(program.stage.graph.inputs)
    if node < n:
        return str(program.input_specs[node][i])
    s = program.equation_strategies[node - n][i]
    return f"{s}: {', '.join(map(str, s.inputs))} -> {s.output}"


def test_what_an_alternative_changes_adds_up() -> None:
    """Comes and goes are the difference of two lists, whose seconds explain the objective."""
    program, problem, own = made((2, 2))
    node = node_of(program, "state/0/down")
    found = why(program, own, node, num_solved=3)
    require_sane(found)
    before = conversions(program, problem, own)
    assert sum(c.seconds for c in before) < found.seconds
    saw = False
    for a in found.alternatives[1:]:
        assert "state/0/down" not in {c.value for c in a.changes}
        assert all(c.before != c.after for c in a.changes)
        assert set(a.goes) <= set(before) and not set(a.comes) & set(a.goes)
        assert all(c.kinds and c.nbytes > 0 and c.times in (1, 2) for c in a.comes)
        saw = saw or bool(a.comes and a.goes and a.changes)
    assert saw


def test_what_changes_for_nothing_is_turned_back() -> None:
    """Every choice that can be turned back alone has been."""
    program, problem, own = made((2, 2))
    node = node_of(program, "state/0/up")
    like = LikeOwn(program, problem, own, node)
    other = next(i for i in range(len(problem.costs[node])) if i != own.choices[node])
    costs = list(problem.costs)
    costs[like.start] = np.where(np.arange(len(costs[node])) == other, costs[like.start], np.inf)
    solution = solve_on_highs(replace(problem, costs=tuple(costs)))
    turned = like.turn(solution.assignment)
    seconds = evaluate(problem, turned).objective
    assert turned.choices[node] == other
    assert seconds <= solution.objective * (1 + 1e-8)
    for n, (a, b) in enumerate(zip(own.choices, turned.choices, strict=True)):
        if a != b and like.leader[n] == n != like.start:
            back = list(turned.choices)
            for m, leader in enumerate(like.leader):
                back[m] = own.choices[m] if leader == n else back[m]
            assert evaluate(problem, like.holding(back, turned)).objective > seconds


def test_equal_layers_are_asked_about_together() -> None:
    program, problem, own = made((2,), layers=4)
    found = why(program, own, node_of(program, "state/1/down"), num_solved=1)
    assert "state/2/down" in found.with_it and "state/0/down" not in found.with_it
    for a in found.alternatives:
        assert not {c.value for c in a.changes} & set(found.with_it)


def test_reasons_of_what_is_left_out() -> None:
    program, _, own = made((4,))
    found = why(program, own, node_of(program, "state/0/odd"), num_solved=0)
    assert {a.choice for a in found.alternatives} == {"RR", "S0R"}
    [reason] = found.excluded
    assert reason.choices == ("RS0",)
    assert reason.reason == "dim 1 has 6 elements, no multiple of axis 0 (4)"
    whole = next(a for a in found.alternatives if not a.chosen)
    assert whole.seconds is None and "others are nearer" in whole.why_not

    def never_split(v: Any, spec: Any) -> bool:
        return not spec.split_axes or v.type.shape[0] == 32

    program, _, own = made((4,), rules=Restrictions(input=never_split))
    found = why(program, own, node_of(program, "state/0/up"))
    assert [a.choice for a in found.alternatives] == ["RR"]
    assert {e.reason for e in found.excluded} == {"the method or a pin leaves it out"}


def test_reasons_of_an_equation() -> None:
    program, _, own = made((4,))
    n = len(program.stage.graph.inputs)
    for node in products(program):
        rule_sizes = {v: v.type.shape for v in program.stage.graph.eqns[node - n].inputs}
        found = why(program, own, node, num_solved=0)
        uneven = [e for e in found.excluded if "no multiple of axis 0 (4)" in e.reason]
        has_six = any(6 in shape for shape in rule_sizes.values())
        assert bool(uneven) == has_six
        offered = {a.roles for a in found.alternatives}
        assert not offered & {c for e in found.excluded for c in e.choices}


def test_the_limit_that_binds_has_a_price() -> None:
    program, _, own = made((4,))
    free, most = evaluate(program.problem(), own).objective, peak(program, own)
    loose = why(*_of(made((4,), memory=2 * most)), node_of(program, "state/0/up"), num_solved=0)
    assert loose.memory is not None and not loose.memory.binds and loose.memory.seconds == 0.0
    assert loose.memory.nbytes == pytest.approx(most) and loose.memory.limit == 2 * most

    tight = 0.75 * most
    program, _, own = made((4,), memory=tight)
    found = why(program, own, node_of(program, "state/0/up"), num_solved=1)
    require_sane(found, tight)
    limit = found.memory
    assert limit is not None and limit.binds and limit.nbytes <= tight
    assert limit.seconds == pytest.approx(found.seconds - free) and limit.seconds > 0
    assert limit.seconds_per_byte == pytest.approx(limit.seconds / (most - limit.nbytes))
    assert limit.point in program.live.points
    for a in found.alternatives:
        assert a.nbytes is None or a.nbytes <= tight * (1 + 1e-9)


def _of(found: tuple[IntraOp, Problem, Assignment]) -> tuple[IntraOp, Assignment]:
    return found[0], found[2]


def test_a_plan_of_other_rules_is_refused() -> None:
    program, problem, own = made((4,))
    plan = program.decode(program.solve(), ("x",))
    wrong = replace(plan, inputs=("S1R", *plan.inputs[1:]))
    with pytest.raises(PlanError, match="as S1R, which is no choice here; there are"):
        chosen(program, problem, wrong)
    with pytest.raises(PlanError, match="choices, this step's has"):
        chosen(program, problem, replace(plan, inputs=plan.inputs[1:]))


def test_equal_layers_are_one_line_of_the_text() -> None:
    changes = tuple(Change(f"{k}/gpt.py:8 mul forward", "RR", "S0R") for k in range(3))
    comes = tuple(
        Conversion(f"layers/{k}/w", "S0R", "RR", "forward", ("all_gather",), 2, 1e-3, 1e6)
        for k in range(3)
    )
    limit = Limit("mul gpt.py:8", 2e9, 3e9, True, 0.01, 1e-11)
    text = why_text(
        Why(
            "'layers/0/w' (float32[8,8])", "", "RR", "RR", ("layers/1/w", "layers/2/w"), 0.1,
            (
                Alternative("RR", "", "RR", True, 0.1, 2e9, 0.1, None, 2e9),
                Alternative("S0R", "", "S0R", False, 0.2, 4e9, 0.15, 0.14, 2e9, changes, comes),
                Alternative("RS0", "", "RS0", False, None, why_not="nothing fits"),
            ),
            (), limit,
        )
    )  # fmt: skip
    for line in (
        "2 GB of 3 GB at mul gpt.py:8; the limit binds and costs 10 ms a step, 10 us per MB",
        "best plan with it: +50 ms, 2 GB",
        "all else as it is: +100 ms, 4 GB, more than there is",
        "changes  gpt.py:8 mul forward RR -> S0R, 3 times",
        "comes    all_gather of layers/*/w, S0R -> RR in forward, 6 times: 3 ms, 3 MB",
        "nothing fits",
        "all else as it is: not possible",
    ):
        assert f" {line}\n" in text + "\n", text
