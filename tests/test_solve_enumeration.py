"""The solver against every assignment: 500 programs of up to 1e6, 50 of up to 1e8."""

import math
from dataclasses import replace

import numpy as np
import pytest

from hpc_alpa.errors import InfeasibleError
from hpc_alpa.plan.solve import enumerate as brute_force
from hpc_alpa.plan.solve import solver
from hpc_alpa.plan.solve.options import Options
from hpc_alpa.plan.solve.problem import (
    MemoryRow,
    Problem,
    Reader,
    Value,
    Window,
    evaluate,
    leaders,
)
from tests.helpers import dense_enumeration
from tests.helpers.choice_programs import random_problem

EXACT = Options(relative_gap=0.0, absolute_gap=1e-6)
LARGE = 50  # programs of up to 1e8 assignments
QUICK = 3  # of them in every run


def program(seed: int, least: float, most: float, rows: bool) -> Problem:
    """A random graph with `least` to `most` combinations of choices."""
    rng = np.random.default_rng(seed)
    aim = least * (most / least) ** rng.random()
    sizes: list[int] = []
    while math.prod(sizes) < aim:
        sizes.append(int(rng.integers(2, 9)))
    while math.prod(sizes) > most:
        sizes[int(np.argmax(sizes))] -= 1
    num_nodes = len(sizes)
    values = []
    for producer in range(num_nodes - 1):
        made, wanted = rng.integers(1, 5, 2).tolist()
        conversion = 8 * rng.random((made, wanted)) * (rng.random((made, wanted)) < 0.7)
        conversion[rng.random(conversion.shape) < 0.05] = np.inf
        readers = tuple(
            Reader(node, rng.integers(0, wanted, sizes[node]), Window(int(rng.integers(0, 4))))
            for node in rng.integers(producer + 1, num_nodes, int(rng.integers(1, 4))).tolist()
        )
        produced = rng.integers(0, made, sizes[producer])
        values.append(Value(producer, produced, readers, conversion, bool(rng.random() < 0.5)))
    problem = Problem(tuple(10 * rng.random(size) for size in sizes), tuple(values))
    return replace(problem, rows=memory_rows(rng, problem)) if rows else problem


def memory_rows(rng: np.random.Generator, problem: Problem) -> tuple[MemoryRow, ...]:
    """Rows over choices, and over copies of values that cannot be held."""
    rows = []
    for number in range(int(rng.integers(1, 4))):
        terms = [problem.choice_terms(v) for v in range(len(problem.costs)) if rng.random() < 0.8]
        for k, value in enumerate(problem.values):
            if not value.holdable and rng.random() < 0.2:
                terms.append(problem.copy_terms(k, Window(int(rng.integers(0, 4)))).ravel())
        at = np.concatenate([*terms, np.empty(0, np.int64)]).astype(np.int64)
        nbytes = rng.integers(1, 9, at.size).astype(np.float64)
        limit = float(rng.uniform(0.55, 1.1) * 4.5 * len(terms))
        rows.append(MemoryRow(f"row {number}", limit, at, nbytes))
    return tuple(rows)


def agrees(problem: Problem) -> bool:
    """Whether there is an assignment; asserts that the solver finds the best one and proves it."""
    best = dense_enumeration.best(problem)
    if best is None:
        with pytest.raises(InfeasibleError):
            solver.solve(problem, EXACT)
        return False
    solution = solver.solve(problem, EXACT)
    assert solution.status == "optimal"
    assert solution.objective == pytest.approx(best, abs=2e-6)
    assert solution.bound <= best + 2e-6
    result = evaluate(problem, solution.assignment)
    assert result.objective == solution.objective
    assert (result.memory <= problem.limits * (1 + 1e-9)).all()
    return True


def test_the_dense_enumeration_is_the_plain_one() -> None:
    """Two oracles: arrays against one assignment after the other, ties and rows included."""
    compared = 0
    for seed in range(60):
        problem = random_problem(np.random.default_rng(seed), rows=False, most_nodes=4)
        if seed % 2:
            rng = np.random.default_rng(seed)
            problem = replace(problem, rows=memory_rows(rng, problem))
        plain = brute_force.best(problem)
        dense = dense_enumeration.best(problem)
        assert (plain is None) == (dense is None), seed
        if plain is not None:
            assert dense == pytest.approx(plain[0]), (seed, leaders(problem))
            compared += 1
    assert compared > 25


@pytest.mark.parametrize("rows", [False, True], ids=["no rows", "memory rows"])
def test_500_programs(rows: bool) -> None:
    feasible = [agrees(program(seed, 1e2, 1e6, rows)) for seed in range(250)]
    assert sum(feasible) > 150


@pytest.mark.parametrize(
    "seed",
    [s if s < QUICK else pytest.param(s, marks=pytest.mark.slow) for s in range(LARGE)],
)
def test_50_large_programs(seed: int) -> None:
    agrees(program(1000 + seed, 1e6, 1e8, rows=seed % 2 == 1))
