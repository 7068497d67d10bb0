"""Choice programs: what an assignment costs, and what is not a problem."""

from dataclasses import replace

import numpy as np
import pytest

from hpc_alpa.errors import InfeasibleError, PlanError
from hpc_alpa.plan.solve import enumerate as brute_force
from hpc_alpa.plan.solve.presolve import reduce
from hpc_alpa.plan.solve.problem import (
    Assignment,
    MemoryRow,
    Problem,
    Reader,
    Value,
    Window,
    complete,
    evaluate,
)
from tests.helpers.choice_programs import random_problem

IDENTITY = np.arange(2)
SWAP = np.array([[0.0, 3.0], [5.0, 0.0]])


def shared(windows: tuple[Window, ...], holdable: bool = False) -> Problem:
    """Node 0's value, read by one node per window; a class per choice; no cost but conversions."""
    readers = tuple(Reader(k + 1, IDENTITY, window) for k, window in enumerate(windows))
    costs = tuple(np.zeros(2) for _ in range(len(windows) + 1))
    return Problem(costs, (Value(0, IDENTITY, readers, SWAP, holdable),))


@pytest.mark.parametrize(
    ("windows", "holdable", "choices", "seconds"),
    [
        ((Window.FORWARD,), False, (0, 1), 3.0),
        ((Window.FORWARD,), False, (1, 0), 5.0),
        ((Window.FORWARD, Window.FORWARD), False, (0, 1, 1), 3.0),  # paid once
        ((Window.FORWARD, Window.FORWARD), False, (0, 1, 0), 3.0),
        ((Window.FORWARD, Window.BACKWARD), False, (0, 1, 1), 6.0),  # once per window
        ((Window.FORWARD, Window.BACKWARD), True, (0, 1, 1), 3.0),  # held
        (
            (Window.FORWARD, Window.APPLY),
            True,
            (0, 1, 1),
            6.0,
        ),  # held from forward to backward only
    ],
)
def test_a_conversion_is_paid_once_per_window(
    windows: tuple[Window, ...], holdable: bool, choices: tuple[int, ...], seconds: float
) -> None:
    problem = shared(windows, holdable)
    assert evaluate(problem, complete(problem, choices)).objective == seconds


def test_holding_is_a_decision_where_a_row_prices_it() -> None:
    problem = shared((Window.FORWARD, Window.BACKWARD), holdable=True)
    row = MemoryRow("gap", 10.0, problem.held_terms(0).ravel(), np.full(4, 7.0))
    problem = replace(problem, rows=(row,))
    made_again = complete(problem, (0, 1, 1))
    held = complete(problem, (0, 1, 1), {(0, 1)})
    assert (made_again.held, held.held) == (frozenset(), frozenset({(0, 1)}))
    assert evaluate(problem, made_again).objective == 6.0
    assert evaluate(problem, held).objective == 3.0
    assert evaluate(problem, made_again).memory.tolist() == [0.0]
    assert evaluate(problem, held).memory.tolist() == [7.0]


def test_rows_count_choices_and_copies() -> None:
    problem = shared((Window.FORWARD, Window.FORWARD))
    terms = np.concatenate([problem.choice_terms(0), problem.copy_terms(0, Window.FORWARD).ravel()])
    nbytes = np.array([1.0, 2.0, 0.0, 10.0, 20.0, 0.0])
    problem = replace(problem, rows=(MemoryRow("all", 30.0, terms, nbytes),))
    memory = [
        evaluate(problem, complete(problem, choices)).memory[0]
        for choices in ((0, 0, 0), (0, 1, 1), (1, 0, 1))
    ]
    assert memory == [1.0, 11.0, 22.0]


def test_what_is_not_an_assignment_is_refused() -> None:
    problem = replace(shared((Window.FORWARD,)), ties=(0, 0))
    with pytest.raises(PlanError, match="tied to"):
        evaluate(problem, Assignment((0, 1)))
    with pytest.raises(PlanError, match="not needed in both windows"):
        evaluate(problem, Assignment((0, 0), frozenset({(0, 1)})))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"costs": (np.zeros(2), np.zeros((2, 2)))}, "not a vector"),
        ({"costs": (np.zeros(2), np.array([0.0, np.nan]))}, "not a vector"),
        ({"costs": (np.zeros(2), np.zeros(3)), "values": (), "ties": (0, 0)}, "with 3 choices"),
        ({"costs": (np.zeros(2), np.zeros(3))}, "for 3 choices and 2 classes"),
        ({"rows": (MemoryRow("far", 1.0, np.array([99]), np.ones(1)),)}, "'far' names a term"),
    ],
)
def test_a_malformed_problem_says_where(change: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        replace(shared((Window.FORWARD,)), **change)  # type: ignore[arg-type]


def test_malformed_parts_say_where() -> None:
    with pytest.raises(PlanError, match="no negative entry"):
        Value(0, IDENTITY, (), -SWAP)
    with pytest.raises(PlanError, match="'r' has 1 terms and 2 byte counts"):
        MemoryRow("r", 1.0, np.zeros(1, np.int64), np.ones(2))
    with pytest.raises(PlanError, match="form a cycle"):
        reduce(Problem((np.zeros(2), np.zeros(2)), ties=(1, 0)))


def test_presolve_keeps_the_optimum() -> None:
    """Against enumeration of both, and the assignment expands to the same seconds and bytes."""
    dropped = solved = 0
    for seed in range(120):
        problem = random_problem(np.random.default_rng(seed), rows=seed % 2 == 0, most_nodes=5)
        best = brute_force.best(problem)
        try:
            reduced = reduce(problem)
        except InfeasibleError:
            assert best is None
            continue
        small = brute_force.best(reduced.problem)
        assert (best is None) == (small is None)
        if best is None or small is None:
            continue
        expanded = evaluate(problem, reduced.expand(small[1]))
        assert small[0] == pytest.approx(best[0], abs=1e-9)
        assert expanded.objective == pytest.approx(best[0], abs=1e-9)
        assert np.allclose(expanded.memory, evaluate(reduced.problem, small[1]).memory)
        dropped += sum(map(len, problem.costs)) - sum(map(len, reduced.problem.costs))
        solved += 1
    assert solved > 60 and dropped > 100


def test_presolve_shares_the_variables_of_equal_layers() -> None:
    """Ten layers of two nodes, tied from layer to layer: two nodes and few values are left."""
    rng = np.random.default_rng(0)
    conversion = rng.random((3, 3))
    costs, values, ties = [], [], []
    for layer in range(10):
        for half in (0, 1):
            node = 2 * layer + half
            costs.append(np.arange(3.0))
            ties.append(half)
            if node:
                reader = Reader(node, np.arange(3))
                values.append(Value(node - 1, np.arange(3), (reader,), conversion))
    problem = Problem(tuple(costs), tuple(values), ties=tuple(ties))
    reduced = reduce(problem)
    assert len(reduced.problem.costs) == len(reduced.problem.values) == 2
    small = brute_force.best(reduced.problem)
    whole = brute_force.best(problem)
    assert small and whole and small[0] == pytest.approx(whole[0])


def test_a_choice_without_an_allowed_conversion_is_named() -> None:
    conversion = np.full((1, 1), np.inf)
    value = Value(0, np.zeros(2, int), (Reader(1, np.zeros(2, int)),), conversion, name="x")
    problem = Problem((np.zeros(2), np.zeros(2)), (value,), names=("a", "b"))
    with pytest.raises(
        InfeasibleError, match="forbidden conversion, the last one of x from a to b"
    ):
        reduce(problem)
