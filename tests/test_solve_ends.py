"""Tables over kept nodes by messages: exact below the margin, never above the truth."""

import numpy as np
import pytest

from hpc_alpa.errors import InfeasibleError, PlanError
from hpc_alpa.plan.solve import enumerate as brute_force
from hpc_alpa.plan.solve.ends import ends
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
            found = ends(problem, keep, entries)
        except InfeasibleError:
            assert not np.isfinite(expected).any()
            continue
        assert (found.minimum <= expected + 1e-9).all()
        assert np.allclose(found.minimum[found.exact], expected[found.exact])
        exact += int(found.exact.sum())
        bounds += int((~found.exact & np.isfinite(expected)).sum())
    assert exact > 150 and (bounds > 20 if entries < 100 else bounds == 0)


def test_tied_nodes_and_memory_rows_are_refused() -> None:
    problem = random_problem(np.random.default_rng(3), rows=True)
    with pytest.raises(PlanError, match="memory rows"):
        ends(problem, [0])
