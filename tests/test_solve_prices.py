"""Memory limits as prices: the priced problem is exact, the bound holds, what is found fits."""

import numpy as np
import pytest

from hpc_alpa.errors import InfeasibleError
from hpc_alpa.plan.solve import enumerate as brute_force
from hpc_alpa.plan.solve.presolve import reduce
from hpc_alpa.plan.solve.prices import priced, search
from hpc_alpa.plan.solve.problem import complete, evaluate
from tests.helpers.choice_programs import random_problem


def test_the_priced_problem_is_the_objective_plus_the_price_of_the_memory() -> None:
    """For every choice, with the copies held that are worth their memory."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        problem = random_problem(rng, rows=True, most_nodes=4)
        prices = 2 * rng.random(len(problem.rows))
        least: dict[tuple[int, ...], float] = {}
        for assignment in brute_force.assignments(problem):
            result = evaluate(problem, assignment)
            total = result.objective + float(prices @ result.memory)
            choices = assignment.choices
            least[choices] = min(total, least.get(choices, np.inf))
        without_rows = priced(problem, prices)
        for choices, total in least.items():
            found = evaluate(without_rows, complete(without_rows, choices)).objective
            assert found == pytest.approx(total)


def test_the_bound_holds_and_what_is_found_fits() -> None:
    found = optimal = 0
    for seed in range(120):
        problem = random_problem(np.random.default_rng(seed), rows=True, most_nodes=5)
        best = brute_force.best(problem)
        try:
            small = reduce(problem).problem
            assignment, bound = search(small, None, seconds=5.0, relative_gap=1e-6)
        except InfeasibleError:
            assert best is None
            continue
        if best is None:
            assert assignment is None
            continue
        assert bound <= best[0] + 1e-9
        if assignment is not None:
            result = evaluate(small, assignment)
            assert (result.memory <= small.limits * (1 + 1e-9)).all()
            assert result.objective >= best[0] - 1e-9
            optimal += result.objective <= best[0] + 1e-6
            found += 1
    assert found > 60 and optimal > 0.9 * found
