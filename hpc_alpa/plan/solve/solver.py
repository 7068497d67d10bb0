"""The solver of choice programs: two roads, and which one goes first.

    presolve          ties, dominance, arc consistency                              -> presolve
    messages          bound, prune, eliminate: exact where what is left is narrow   -> prune
    prices            under memory rows: the same with prices on the memory         -> anytime
                      one price after the other, where rows speak of copies   -> prices, dual
    integer program   on HiGHS, of what was not pruned, from the best assignment    -> highs
    neighbourhoods    where the integer program is too large for that               -> anytime

Without memory rows the first road goes first, and the integer program only closes the gap that is
left. With rows, the program without them is solved first: where its answer fits they do not bind,
and else its bound is one of theirs. Rows that are made where an answer does not meet them go to the
integer program while it is small, and become prices where it is not. Every answer is evaluated on
the original problem.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hpc_alpa.errors import PlanError
from hpc_alpa.plan.solve import highs, prices, prune
from hpc_alpa.plan.solve.anytime import Anytime
from hpc_alpa.plan.solve.dual import Dual
from hpc_alpa.plan.solve.infeasible import explain
from hpc_alpa.plan.solve.limits import Limits, Rows
from hpc_alpa.plan.solve.model import build
from hpc_alpa.plan.solve.options import Clock, Options
from hpc_alpa.plan.solve.presolve import Reduced, reduce
from hpc_alpa.plan.solve.problem import Assignment, MemoryRow, Problem, evaluate
from hpc_alpa.plan.solve.prune import Pruned
from hpc_alpa.plan.solve.solution import Solution, nothing_found

_ROUNDING = 1e-9
_FIRST_SHARE = 0.5  # of the time, for the first road
_LOOSE_SHARE, _PRICE_SHARE = 0.03, 0.2  # where there are rows: without them, and with prices
_WIDE = 5e-3  # gap that prices leave, from which on more is tried
_CLOSING = 0.4  # of the time that is left, for the integer program then
_EXPLICIT = 2**22  # bytes of terms in all rows together, up to which they are made at all
_QUICK = 20_000  # flows below which the integer program is faster than prices one by one
_TINY = 2_000  # flows below which it is so together with the rows that are made when missed
_LARGE = 30_000  # choices from which on the relaxation takes longer than anyone waits


def solve(
    problem: Problem, options: Options | None = None, limits: Limits | None = None
) -> Solution:
    """The assignment of least objective, with its proven bound.

    When time ends first: the best assignment found, whose status is then "feasible".

    Args:
        limits: memory rows that are made where an assignment does not meet them.

    Raises:
        InfeasibleError: says which memory limit is missed, by how much, and the nearest fit; or
            which forbidden conversions stand against each other.
        PlanError: nothing was found within the time, and nothing was proven either.
    """
    options = options or Options()
    clock = Clock(options.seconds)
    reduced = reduce(problem)
    clock.lap("presolve")
    loose = _solve(reduced, options, clock)
    if limits is None or not (rows := limits.rows_of(loose.assignment)):
        return loose
    num_flows = _num_flows(reduced.problem)
    if num_flows < _TINY:
        found = _with_rows(problem, options, limits.rows_of, rows, clock)
    else:
        found = _priced(problem, options, limits, loose, num_flows < _QUICK, clock)
    return replace(found, limited=True)


def _priced(
    problem: Problem, options: Options, limits: Limits, loose: Solution, small: bool, clock: Clock
) -> Solution:
    """With prices on the memory, and where that leaves a wide gap, more.

    A small program goes to the integer program too; a large one is searched with fewer ties.
    """
    gap = max(options.relative_gap, _ROUNDING)
    dual = Dual(problem, limits.rows_of, _solve_free)
    dual.search(loose, gap, clock)
    clock.lap("prices")
    if dual.best is None:
        raise nothing_found(dual.problem, options)

    def found() -> Solution:
        assert dual.best is not None, "what was found once is kept"
        return Solution.of(
            dual.objective, dual.bound, dual.best, gap, clock.phases, options.absolute_gap
        )

    alike = found()
    if alike.gap <= max(gap, _WIDE) or clock.left == 0:
        return alike
    if small:
        briefly = Clock(_CLOSING * clock.left, clock.phases)
        try:
            exact = _with_rows(problem, options, limits.rows_of, dual.problem.rows, briefly)
        except PlanError:  # the time was too short for it
            return alike
        return _better(alike, exact)
    if limits.apart is None:
        return alike
    dual.search_apart(limits.apart(), gap, clock)
    clock.lap("prices apart")
    return _better(alike, replace(found(), in_blocks=True))


def _better(*found: Solution) -> Solution:
    """The one of fewest seconds, of equals the one of the smallest gap; none without a bound."""
    proven = [s for s in found if np.isfinite(s.gap)]
    return min(proven or found, key=lambda s: (s.objective, s.gap))


def _solve(reduced: Reduced, options: Options, clock: Clock) -> Solution:
    """Of the rows that the problem lists."""
    small = reduced.problem
    first = _first(small, options, clock)
    if first.best is not None:
        found = Solution.expanded(reduced, first.best, first.bound, options, clock)
        if found.status == "optimal" or clock.left == 0:
            return found
    rest = small.explicit(_EXPLICIT) if small.live is not None else small
    if rest is None or (first.best is not None and small.choice_offset[-1] > _LARGE):
        return Solution.expanded(reduced, first.best, first.bound, options, clock)
    second = highs.improve(_only(rest, first.alive), options, clock, first.best, first.bound)
    return Solution.expanded(reduced, second.best, second.bound, options, clock)


def _solve_free(problem: Problem, relative_gap: float, seconds: float) -> Solution:
    return solve(problem, Options(relative_gap, seconds=seconds))


def _with_rows(
    problem: Problem, options: Options, rows_of: Rows, rows: Sequence[MemoryRow], clock: Clock
) -> Solution:
    """By the integer program, with more rows until its answer meets all."""
    bound = -np.inf
    while rows:
        problem = replace(problem, rows=(*problem.rows, *rows))
        reduced = reduce(problem)
        clock.lap("presolve")
        found = _solve(reduced, options, clock)
        bound = max(bound, found.bound)
        rows = rows_of(found.assignment)
    gap = max(options.relative_gap, _ROUNDING)
    return Solution.of(
        found.objective, bound, found.assignment, gap, clock.phases, options.absolute_gap
    )


def _first(problem: Problem, options: Options, clock: Clock) -> Pruned:
    """The first road. Raises InfeasibleError where forbidden conversions exclude everything."""
    gap = max(options.relative_gap, _ROUNDING)
    free = replace(problem, rows=(), live=None)
    share = _LOOSE_SHARE if problem.limited else _FIRST_SHARE
    loose = prune.search(free, gap, share * clock.left)
    clock.lap("messages")
    if loose.best is None and loose.bound == np.inf:
        raise explain(free, build(free))
    if not problem.limited or (loose.best is not None and _fits(problem, loose.best)):
        return loose
    everything = tuple(np.ones(len(cost), np.bool_) for cost in problem.costs)
    search = Anytime(problem)
    if not search.possible:
        rows = problem.explicit(_EXPLICIT)
        if rows is None or _num_flows(problem) < _QUICK:
            return Pruned(None, loose.bound, everything)
        best, bound = prices.search(rows, None, _PRICE_SHARE * clock.left, gap)
        clock.lap("prices")
        return Pruned(best, max(bound, loose.bound), everything)
    first = search.start(gap, _PRICE_SHARE * clock.left)
    clock.lap("prices")
    large = problem.choice_offset[-1] > _LARGE
    if first.best is not None and large:
        first = search.improve(clock.left)
        clock.lap("neighbourhoods")
    return replace(first, bound=max(first.bound, loose.bound))


def _num_flows(problem: Problem) -> int:
    """Columns of the integer program, about."""
    return sum(len(value.readers) * value.conversion.size for value in problem.values)


def _fits(problem: Problem, assignment: Assignment) -> bool:
    memory = evaluate(problem, assignment).memory
    return bool((memory <= problem.limits * (1 + _ROUNDING)).all())


def _only(problem: Problem, alive: tuple[NDArray[np.bool_], ...]) -> Problem:
    """The problem without the choices that no better assignment has."""
    costs = tuple(
        np.where(mask, cost, np.inf) for mask, cost in zip(alive, problem.costs, strict=True)
    )
    return replace(problem, costs=costs)
