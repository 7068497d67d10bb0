"""The solver of choice programs: two roads, and which one goes first.

    presolve          ties, dominance, arc consistency                              -> presolve
    messages          bound, prune, eliminate: exact where what is left is narrow   -> prune
    integer program   on HiGHS, of what was not pruned, from the best assignment    -> highs

Without memory rows the first road goes first, and the integer program only closes the gap that is
left. With rows, it solves the program without them: where its answer fits they do not bind, and
else its bound is one of theirs. Every answer is evaluated on the original problem.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hpc_alpa.plan.solve import highs, prune
from hpc_alpa.plan.solve.infeasible import explain
from hpc_alpa.plan.solve.model import build
from hpc_alpa.plan.solve.options import Clock, Options
from hpc_alpa.plan.solve.presolve import reduce
from hpc_alpa.plan.solve.problem import Assignment, Problem, evaluate
from hpc_alpa.plan.solve.solution import Solution

_ROUNDING = 1e-9
_FIRST_SHARE = 0.5  # of the time, for the first road
_LOOSE_SHARE = 0.1  # for it where there are memory rows, which are then the harder part


def solve(problem: Problem, options: Options | None = None) -> Solution:
    """The assignment of least objective, with its proven bound.

    When time ends first: the best assignment found, whose status is then "feasible".

    Raises:
        InfeasibleError: says which memory limit is missed, by how much, and the nearest fit; or
            which forbidden conversions stand against each other.
        PlanError: nothing was found within the time, and nothing was proven either.
    """
    options = options or Options()
    clock = Clock(options.seconds)
    reduced = reduce(problem)
    clock.lap("presolve")
    small = reduced.problem
    gap = max(options.relative_gap, _ROUNDING)
    share = _LOOSE_SHARE if small.rows else _FIRST_SHARE
    free = replace(small, rows=())
    first = prune.search(free, gap, share * clock.left)
    clock.lap("messages")
    if first.best is None and first.bound == np.inf:
        raise explain(free, build(free))
    best = first.best if first.best is not None and _fits(small, first.best) else None
    if best is not None:
        found = Solution.expanded(reduced, best, first.bound, options, clock)
        if found.status == "optimal":
            return found
    rest = small if small.rows else _only(small, first.alive)
    second = highs.improve(rest, options, clock, best, first.bound)
    return Solution.expanded(reduced, second.best, second.bound, options, clock)


def _fits(problem: Problem, assignment: Assignment) -> bool:
    memory = evaluate(problem, assignment).memory
    return bool((memory <= problem.limits * (1 + _ROUNDING)).all())


def _only(problem: Problem, alive: tuple[NDArray[np.bool_], ...]) -> Problem:
    """The problem without the choices that no better assignment has."""
    costs = tuple(
        np.where(mask, cost, np.inf) for mask, cost in zip(alive, problem.costs, strict=True)
    )
    return replace(problem, costs=costs)
