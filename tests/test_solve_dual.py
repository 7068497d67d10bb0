"""Prices by cutting planes: the dual, what two assignments give, rows made when missed."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from hpc_alpa.errors import InfeasibleError, PlanError
from hpc_alpa.plan.solve import enumerate as brute_force
from hpc_alpa.plan.solve import solver, stored
from hpc_alpa.plan.solve.cuts import Cuts
from hpc_alpa.plan.solve.dual import Dual
from hpc_alpa.plan.solve.join import join
from hpc_alpa.plan.solve.limits import Limits
from hpc_alpa.plan.solve.options import Clock, Options
from hpc_alpa.plan.solve.prices import hold
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
from hpc_alpa.plan.solve.solution import Solution
from tests.helpers.choice_programs import chain, random_problem

EXACT = Options(relative_gap=0.0, absolute_gap=1e-6)


def made_when_missed(problem: Problem) -> Callable[[Assignment], Sequence[MemoryRow]]:
    """The rows of a problem, handed out when an assignment does not meet them."""

    def rows_of(assignment: Assignment) -> Sequence[MemoryRow]:
        memory = evaluate(problem, assignment).memory
        over = memory > problem.limits * (1 + 1e-9)
        return [row for row, missed in zip(problem.rows, over, strict=True) if missed]

    return rows_of


def solve_free(problem: Problem, relative_gap: float, seconds: float) -> Solution:
    return solver.solve(problem, Options(relative_gap, seconds=seconds))


def test_the_highest_point_of_the_cuts() -> None:
    """On a fine grid of prices, none is higher."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        cuts = Cuts()
        for _ in range(5):
            cuts.add(10 * rng.random(), rng.uniform(-1, 1, 2))
        most = cuts.most
        prices, seconds = cuts.highest()
        grid = np.stack(np.meshgrid(*[np.linspace(0, most, 101)] * 2), -1).reshape(-1, 2)
        values = np.array(cuts.objectives) + grid @ np.array(cuts.excesses).T
        assert values.min(axis=1).max() <= seconds + 1e-9
        at_prices = np.array(cuts.objectives) + np.array(cuts.excesses) @ prices
        assert at_prices.min() == pytest.approx(seconds, abs=1e-3)


def test_prices_rise_where_nothing_met_the_limits_yet() -> None:
    cuts = Cuts()
    cuts.add(1.0, np.array([0.5]))
    found = [cuts.highest()[0][0] for _ in range(3)]
    assert 0 < found[0] < found[1] < found[2]


def test_the_bound_holds_and_what_is_found_fits() -> None:
    found, gaps = 0, []
    for seed in range(60):
        problem = random_problem(np.random.default_rng(seed), rows=True, most_nodes=5)
        best = brute_force.best(problem)
        bare = replace(problem, rows=())
        try:
            loose = solver.solve(bare)
            dual = Dual(bare, made_when_missed(problem), solve_free)
            dual.search(loose, 1e-6, Clock(5.0))
        except InfeasibleError:
            assert best is None
            continue
        if best is None:
            assert dual.best is None
            continue
        assert dual.bound <= best[0] + 1e-9
        if dual.best is not None:
            result = evaluate(problem, dual.best)
            assert (result.memory <= problem.limits * (1 + 1e-9)).all()
            assert dual.objective == pytest.approx(result.objective)
            gaps.append((result.objective - best[0]) / max(best[0], 1e-9))
            found += 1
    assert found > 25
    assert np.median(gaps) < 1e-9 and np.mean(gaps) < 0.1


def test_rows_that_are_made_when_missed_give_the_optimum_of_all_rows() -> None:
    """What is small goes to the integer program."""
    solved = 0
    for seed in range(60):
        problem = random_problem(np.random.default_rng(1000 + seed), rows=True)
        best = brute_force.best(problem)
        bare = replace(problem, rows=())
        if best is None:
            with pytest.raises(InfeasibleError):
                solver.solve(bare, EXACT, Limits(made_when_missed(problem)))
            continue
        solution = solver.solve(bare, EXACT, Limits(made_when_missed(problem)))
        assert solution.objective == pytest.approx(best[0], abs=2e-6)
        assert solution.bound <= best[0] + 2e-6
        solved += 1
    assert solved > 20


def test_a_program_too_large_for_the_integer_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver, "_QUICK", 0)
    rng = np.random.default_rng(4)
    problem = chain(24, rng)
    loose = solver.solve(problem)
    terms = np.concatenate([problem.choice_terms(v) for v in range(24)])
    row = MemoryRow("all", 1.0, terms, rng.integers(1, 9, terms.size).astype(float))
    used = evaluate(replace(problem, rows=(row,)), loose.assignment).memory[0]
    limited = replace(problem, rows=(replace(row, limit=0.8 * used),))
    found = solver.solve(problem, Options(1e-3), Limits(made_when_missed(limited)))
    exact = solver.solve(limited, EXACT)
    assert evaluate(limited, found.assignment).memory[0] <= 0.8 * used
    assert found.bound <= exact.objective + 1e-9 <= found.objective + 2e-9
    assert found.gap < 0.05

    with pytest.raises(InfeasibleError, match="nearest fit") as error:
        tight = replace(problem, rows=(replace(row, limit=24.0),))
        solver.solve(problem, Options(1e-3), Limits(made_when_missed(tight)))
    assert error.value.missing > 0


def test_what_an_assignment_takes_over_from_another_fits() -> None:
    """Everything that makes it cheaper, where there is room for all."""
    tried = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        problem = random_problem(rng, rows=True)
        problem = replace(problem, ties=())
        a, b = (
            complete(problem, [int(rng.integers(0, len(cost))) for cost in problem.costs])
            for _ in range(2)
        )
        before, other = evaluate(problem, a), evaluate(problem, b)
        if not np.isfinite([before.objective, other.objective]).all():
            continue
        tried += 1
        fits = replace(
            problem,
            rows=tuple(
                replace(row, limit=float(used))
                for row, used in zip(problem.rows, before.memory, strict=True)
            ),
        )
        after = evaluate(fits, join(fits, a, b))
        assert after.objective <= before.objective + 1e-9
        assert (after.memory <= fits.limits + 1e-6).all()
        roomy = replace(problem, rows=tuple(replace(r, limit=1e9) for r in problem.rows))
        cheapest = evaluate(roomy, join(roomy, a, b)).objective
        assert cheapest <= min(before.objective, other.objective) + 1e-9
    assert tried > 100


def two_layers() -> Problem:
    """Two tied values, whose copies cost 3 s to make twice."""
    needed = np.array([1, 1])
    conversion = np.array([[0.0, 3.0], [3.0, 0.0]])
    values = tuple(
        Value(
            v,
            np.array([0, 1]),
            (Reader(2 + v, needed), Reader(2 + v, needed, Window.BACKWARD)),
            conversion,
            holdable=True,
        )
        for v in (0, 1)
    )
    costs = (np.array([0.0, 50.0]), np.array([0.0, 50.0]), np.zeros(2), np.zeros(2))
    return Problem(costs, values, ties=(0, 0, 2, 2), holds=(0, 0))


def room_for(problem: Problem, copies: float) -> Problem:
    """With a row over what is held, a byte each."""
    terms = np.concatenate([problem.held_terms(k).ravel() for k in (0, 1)])
    return replace(problem, rows=(MemoryRow("held", copies, terms, np.ones(terms.size)),))


def test_equal_values_hold_the_same_copies() -> None:
    """Two layers, tied: room for one held copy is room for none."""
    for copies, seconds in ((2.0, 6.0), (1.0, 12.0)):
        problem = room_for(two_layers(), copies)
        best = brute_force.best(problem)
        assert best is not None and best[0] == seconds
        assert solver.solve(problem, EXACT).objective == pytest.approx(seconds)
    apart = replace(problem, holds=())
    assert solver.solve(apart, EXACT).objective == pytest.approx(9.0)


@pytest.mark.parametrize(("copies", "held"), [(2.0, {(0, 1), (1, 1)}), (1.5, set())])
def test_what_room_is_left_is_filled_with_copies_of_all_equal_values(
    copies: float, held: set[tuple[int, int]]
) -> None:
    problem = room_for(two_layers(), copies)
    bare = complete(problem, (0, 0, 0, 0))
    assert not bare.held
    assert hold(problem, bare, problem.limits).held == held


def test_copies_that_are_not_held_alike_are_refused() -> None:
    problem = room_for(two_layers(), 2.0)
    with pytest.raises(PlanError, match="those of equal values are"):
        evaluate(problem, Assignment((0, 0, 0, 0), frozenset({(0, 1)})))
    longer = replace(problem.values[1], conversion=np.ones((2, 3)))
    with pytest.raises(PlanError, match="holds as"):
        replace(problem, values=(problem.values[0], longer), rows=())
    assert stored.digest(problem) != stored.digest(replace(problem, holds=()))
