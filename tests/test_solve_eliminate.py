"""Elimination against enumeration and against the integer program; tables over kept nodes."""

import numpy as np
import pytest

from hpc_alpa.errors import InfeasibleError, PlanError
from hpc_alpa.plan.solve import eliminate, highs
from hpc_alpa.plan.solve import enumerate as brute_force
from hpc_alpa.plan.solve.contract import WidthError, order
from hpc_alpa.plan.solve.problem import Problem, Reader, Value, evaluate
from tests.helpers.choice_programs import random_problem


@pytest.mark.parametrize("dense", [1, 2, None])
def test_solve_equals_enumeration(dense: int | None) -> None:
    """Exact where conversions are pairwise or dense; else the bound holds, and mostly proves."""
    proven = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        problem = random_problem(rng, rows=False, most_readers=1 + seed % 3, most_nodes=5)
        best = brute_force.best(problem)
        if best is None:
            with pytest.raises(InfeasibleError):
                eliminate.solve(problem, dense)
            continue
        solution = eliminate.solve(problem, dense, iterations=50)
        assert solution.bound <= best[0] + 1e-9
        assert solution.objective >= best[0] - 1e-9
        if dense is None or seed % 3 == 0:
            assert solution.status == "optimal"
        if solution.status == "optimal":
            assert solution.objective == pytest.approx(best[0], abs=1e-8)
            proven += 1
    assert proven >= 70


def test_equals_the_integer_program_beyond_enumeration() -> None:
    for seed in range(10):
        problem = random_problem(np.random.default_rng(seed), rows=False, most_nodes=40)
        try:
            solution = eliminate.solve(problem, iterations=100)
        except InfeasibleError:
            continue
        assert solution.objective == pytest.approx(highs.solve(problem).objective, rel=1e-6)


def test_table_is_the_minimum_over_all_other_nodes() -> None:
    entries = 0
    for seed in range(80):
        rng = np.random.default_rng(seed)
        problem = random_problem(rng, rows=False, most_nodes=5)
        num_kept = min(int(rng.integers(0, 4)), len(problem.costs))
        keep = rng.choice(len(problem.costs), num_kept, replace=False).tolist()
        expected = np.full([len(problem.costs[v]) for v in keep], np.inf)
        for assignment in brute_force.assignments(problem):
            at = tuple(assignment.choices[v] for v in keep)
            expected[at] = min(expected[at], evaluate(problem, assignment).objective)
        try:
            table = eliminate.table(problem, keep, dense=9)
        except InfeasibleError:
            assert not np.isfinite(expected).any()
            continue
        assert table.exact
        assert np.allclose(table.minimum, expected)
        for at in np.ndindex(expected.shape):
            if np.isfinite(expected[at]):
                found = table.assignment(at)
                assert tuple(found.choices[v] for v in keep) == at
                assert evaluate(problem, found).objective == pytest.approx(expected[at])
                entries += 1
    assert entries > 200


def test_table_says_that_it_is_a_bound_where_readers_share() -> None:
    readers = (Reader(1, np.arange(2)), Reader(2, np.arange(2)))
    value = Value(0, np.arange(2), readers, np.array([[0.0, 3.0], [4.0, 0.0]]))
    problem = Problem((np.zeros(2),) * 3, (value,))
    split, dense = (eliminate.table(problem, (1, 2), dense=n) for n in (1, 2))
    assert (split.exact, dense.exact) == (False, True)
    assert (split.minimum <= dense.minimum).all()
    assert dense.minimum.tolist() == [[0.0, 3.0], [3.0, 0.0]]
    with pytest.raises(InfeasibleError, match="no assignment of finite cost"):
        forbidden = Problem((np.array([np.inf, 0.0]), np.zeros(1)))
        eliminate.table(forbidden, (0,)).assignment((0,))


def test_order_of_a_chain_is_narrow() -> None:
    steps = order([3] * 50, [(k, k + 1) for k in range(49)])
    assert max(len(around) for _, around in steps) == 1
    assert sorted(node for node, _ in steps) == list(range(50))


def test_a_table_that_is_too_large_is_a_named_error() -> None:
    """Ten nodes of ten choices, each reading each other: up to 10^10 entries."""
    cost = np.random.default_rng(0).random((10, 10))
    values = [
        Value(a, np.arange(10), (Reader(b, np.arange(10)),), cost)
        for a in range(10)
        for b in range(a + 1, 10)
    ]
    problem = Problem((np.zeros(10),) * 10, tuple(values), names=tuple("abcdefghij"))
    with pytest.raises(WidthError, match=r"table of [0-9]+ entries over a, b, .*at most"):
        eliminate.solve(problem)


def test_memory_rows_are_refused() -> None:
    problem = random_problem(np.random.default_rng(0), rows=True)
    with pytest.raises(PlanError, match="knows no memory rows"):
        eliminate.solve(problem)
