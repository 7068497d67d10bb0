"""Tables over kept nodes by messages: exact below the margin, never above the truth."""

import numpy as np
import pytest

from hpc_alpa.errors import InfeasibleError, PlanError
from hpc_alpa.plan.solve import enumerate as brute_force
from hpc_alpa.plan.solve.ends import Interior
from hpc_alpa.plan.solve.problem import Problem, evaluate, leaders
from tests.helpers.choice_programs import random_problem


def enumerated(problem: Problem, keep: list[int]) -> np.ndarray:
    expected = np.full([len(problem.costs[v]) for v in keep], np.inf)
    for assignment in brute_force.assignments(problem):
        at = tuple(assignment.choices[v] for v in keep)
        expected[at] = min(expected[at], evaluate(problem, assignment).objective)
    return expected


@pytest.mark.parametrize("entries", [2**20, 30])
def test_entries_are_exact_or_below_the_truth(entries: int) -> None:
    """`entries`: also where tables must stay so small that choices are dropped."""
    exact = bounds = 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        problem = random_problem(rng, rows=False, most_nodes=6)
        leader = leaders(problem)
        free = sorted({int(v) for v in leader})
        keep = rng.choice(free, min(int(rng.integers(1, 3)), len(free)), replace=False).tolist()
        expected = enumerated(problem, keep)
        try:
            found = Interior.of(problem, keep).ends(entries=entries)
        except InfeasibleError:
            assert not np.isfinite(expected).any()
            continue
        assert evaluate(problem, found.best).objective >= found.minimum.min() - 1e-9
        assert (found.minimum <= expected + 1e-9).all()
        assert np.allclose(found.minimum[found.exact], expected[found.exact])
        exact += int(found.exact.sum())
        bounds += int((~found.exact & np.isfinite(expected)).sum())
    assert exact > 150 and (bounds > 20 if entries < 100 else bounds == 0)


def test_prices_are_those_of_the_priced_problem() -> None:
    """With prices on memory an entry is the least of seconds and of what the bytes cost."""
    compared = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        problem = random_problem(rng, rows=True, most_nodes=5)
        keep = [int(leaders(problem)[0])]
        prices = rng.uniform(0.0, 0.2, len(problem.rows))
        expected = np.full(len(problem.costs[keep[0]]), np.inf)
        for assignment in brute_force.assignments(problem):
            result = evaluate(problem, assignment)
            least = result.objective + float(prices @ result.memory)
            at = assignment.choices[keep[0]]
            expected[at] = min(expected[at], least)
        try:
            found = Interior.of(problem, keep).ends(prices)
        except InfeasibleError:
            continue
        assert np.allclose(found.minimum[found.exact], expected[found.exact])
        compared += int(found.exact.sum())
    assert compared > 40


def test_tied_nodes_are_refused() -> None:
    with pytest.raises(PlanError, match="tied"):
        Interior.of(Problem((np.zeros(2),) * 2, (), ties=(0, 0)), [0, 1])
