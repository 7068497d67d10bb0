"""The integer program against proven optima, enumeration, and limits that nothing meets."""

import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from hpc_alpa.errors import InfeasibleError, PlanError
from hpc_alpa.plan.solve import eliminate, highs
from hpc_alpa.plan.solve import enumerate as brute_force
from hpc_alpa.plan.solve.options import Options
from hpc_alpa.plan.solve.problem import MemoryRow, Problem, Reader, Value, evaluate
from tests.helpers.choice_programs import alpa_instances, chain, random_problem

EXACT = Options(relative_gap=0.0, absolute_gap=1e-6)
INSTANCES = list(alpa_instances())


@pytest.mark.parametrize("name, optimum, problem", INSTANCES, ids=[i[0] for i in INSTANCES])
def test_alpa_instances_to_the_proven_optimum(name: str, optimum: float, problem: Problem) -> None:
    for solution in (highs.solve(problem, EXACT), eliminate.solve(problem)):
        assert solution.status == "optimal"
        assert solution.objective == pytest.approx(optimum, abs=2e-6)
        assert solution.bound == pytest.approx(optimum, abs=2e-6)
        assert evaluate(problem, solution.assignment).objective == solution.objective


@pytest.mark.parametrize("rows", [False, True], ids=["no rows", "memory rows"])
def test_equals_enumeration(rows: bool) -> None:
    """200 random problems each: ties, several readers, windows, held copies, forbidden entries."""
    solved = infeasible = 0
    for seed in range(200):
        problem = random_problem(np.random.default_rng(seed), rows=rows, most_nodes=5)
        best = brute_force.best(problem)
        if best is None:
            infeasible += 1
            with pytest.raises(InfeasibleError):
                highs.solve(problem, EXACT)
            continue
        solution = highs.solve(problem, EXACT)
        assert solution.status == "optimal", seed
        assert solution.objective == pytest.approx(best[0], abs=2e-6), seed
        assert solution.bound <= best[0] + 2e-6
        memory = evaluate(problem, solution.assignment).memory
        assert (memory <= problem.limits * (1 + 1e-9)).all()
        solved += 1
    assert solved >= 90 and infeasible >= 20


def test_seconds_and_large_numbers_keep_their_small_differences() -> None:
    """HiGHS's tolerances are absolute: microseconds of a choice must still count, and bytes too."""
    value = Value(0, np.arange(2), (Reader(1, np.arange(2)),), np.array([[0, 2e-6], [1e-6, 0]]))
    problem = Problem((np.array([3e-6, 1e-6]), np.array([1e-6, 2.5e-6])), (value,))
    assert highs.solve(problem).objective == pytest.approx(3e-6, rel=1e-9)
    row = MemoryRow("m", 3e11, problem.choice_terms(0), np.array([1e11, 3e11 + 1e3]))
    assert highs.solve(replace(problem, rows=(row,))).objective == pytest.approx(4e-6, rel=1e-9)


def knapsack(limits: tuple[float, ...], names: tuple[str, ...]) -> Problem:
    """Two nodes that may be fast or small: 10 bytes fast, 4 (node 0) or 6 (node 1) bytes small."""
    problem = Problem((np.array([1.0, 2.0]), np.array([1.0, 4.0])))
    terms = np.arange(4)
    rows = tuple(
        MemoryRow(name, limit, terms, np.array([10.0, 4.0, 10.0, 6.0]))
        for name, limit in zip(names, limits, strict=True)
    )
    return replace(problem, rows=rows)


@pytest.mark.parametrize("limit, seconds", [(20.0, 2.0), (19.0, 3.0), (14.0, 3.0), (13.0, 6.0)])
def test_memory_is_met_at_least_cost(limit: float, seconds: float) -> None:
    assert highs.solve(knapsack((limit,), ("m",))).objective == seconds


def test_infeasible_says_which_limit_by_how_much_and_the_nearest_fit() -> None:
    with pytest.raises(InfeasibleError) as error:
        highs.solve(knapsack((7.0, 100.0), ("device 3, equation 17", "loose")))
    assert str(error.value).splitlines() == [
        "memory limit 'device 3, equation 17' of 7 bytes cannot be met: "
        "every choice needs at least 10 bytes, 3 bytes too many.",
        "  nearest fit: 'device 3, equation 17' 10 bytes of 7 bytes",
        "  Raise the limit to 10 bytes, use more devices, or smaller microbatches.",
    ]


def test_limits_that_exclude_each_other_are_told_apart() -> None:
    problem = Problem((np.zeros(2),))
    rows = (
        MemoryRow("first", 4.0, np.arange(2), np.array([3.0, 9.0])),
        MemoryRow("second", 4.0, np.arange(2), np.array([9.0, 3.0])),
    )
    with pytest.raises(InfeasibleError, match="met alone, with 3 bytes, but not together with"):
        highs.solve(replace(problem, rows=rows))


def test_conversions_that_exclude_each_other_are_named() -> None:
    """Three nodes of two choices, each pair unequal: consistent in pairs, impossible together."""
    unequal = np.where(np.eye(2, dtype=bool), np.inf, 0.0)
    values = [
        Value(a, np.arange(2), (Reader(b, np.arange(2)),), unequal, name=f"x{a}{b}")
        for a, b in ((0, 1), (1, 2), (0, 2))
    ]
    with pytest.raises(InfeasibleError, match="the nearest fit those of x[012]{2}. Allow"):
        highs.solve(Problem((np.zeros(2),) * 3, tuple(values)))


@pytest.mark.parametrize("num_nodes", [200, pytest.param(1500, marks=pytest.mark.slow)])
def test_long_chains(num_nodes: int) -> None:
    """75 columns a node; with 1500 nodes the relaxation takes seconds, and its answer is proven."""
    problem = chain(num_nodes, np.random.default_rng(0))
    begin = time.process_time()
    solution = highs.solve(problem)
    assert solution.status == "optimal"
    assert solution.objective == pytest.approx(eliminate.solve(problem).objective)
    assert time.process_time() - begin < 30


def test_time_that_ends_gives_the_best_found_with_its_gap() -> None:
    problem = chain(300, np.random.default_rng(1))
    unlimited = eliminate.solve(problem).objective
    terms = np.arange(problem.choice_offset[-1])
    nbytes = np.random.default_rng(2).random(terms.size)
    limit = 0.4 * len(problem.costs)
    problem = replace(problem, rows=(MemoryRow("m", limit, terms, nbytes),))
    solution = highs.solve(problem, Options(seconds=0.0))
    assert solution.status == "feasible"
    assert solution.bound <= solution.objective
    assert unlimited < solution.objective < 1.2 * unlimited
    assert solution.gap == pytest.approx(1 - solution.bound / solution.objective)
    assert evaluate(problem, solution.assignment).memory[0] <= limit
    impossible = replace(problem, rows=(MemoryRow("m", 0.01, terms, nbytes),))
    with pytest.raises(PlanError, match="found in 0 s"):
        highs.solve(impossible, Options(seconds=0.0))


def test_no_banner_and_no_thread_trap() -> None:
    """HiGHS prints a banner in the first constructor, and keeps the threads of the first run."""
    script = (
        "import highspy, numpy as np\n"
        "from hpc_alpa.plan.solve import highs\n"
        "from hpc_alpa.plan.solve.problem import Problem, Reader, Value\n"
        "x = Value(0, np.arange(2), (Reader(1, np.arange(2)),), np.array([[1., 2.], [3., 4.]]))\n"
        "problem = Problem((np.zeros(2), np.zeros(2)), (x,))\n"
        "first = highs.solve(problem).objective\n"
        "other = highspy.Highs()\n"
        "other.setOptionValue('output_flag', False)\n"
        "other.setOptionValue('threads', 2)\n"
        "other.run()\n"
        "print(first, highs.solve(problem).objective)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (run.stdout, run.returncode) == ("1.0 1.0\n", 0), run.stderr
