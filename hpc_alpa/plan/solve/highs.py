"""The integer program of a choice program on HiGHS: relaxation first, branch and bound when needed.

`presolve` makes the problem small, `model` writes it as arrays, `lazy` adds the memory rows that
are violated. Where the relaxation is integral it is the optimum; else its rounding, improved by
coordinate descent and elimination, starts the integer program. Every answer is evaluated on the
original problem.
"""

import math
from dataclasses import dataclass

import numpy as np

from hpc_alpa.errors import InfeasibleError, PlanError
from hpc_alpa.plan.solve import prices, prune
from hpc_alpa.plan.solve.descend import descend
from hpc_alpa.plan.solve.infeasible import explain
from hpc_alpa.plan.solve.lazy import LazyProgram
from hpc_alpa.plan.solve.model import Model, build
from hpc_alpa.plan.solve.options import Clock, Options
from hpc_alpa.plan.solve.presolve import reduce
from hpc_alpa.plan.solve.problem import Assignment, FloatArray, Problem, complete, evaluate
from hpc_alpa.plan.solve.solution import Solution

_ROUNDING = 1e-9
_RELAX_SHARE = 0.5  # of the time that is left, so that some is left for the other phases
_IMPROVE_SHARE = 0.3
_EXPLICIT = 2**24  # terms of the memory rows of all points in time


def solve(problem: Problem, options: Options | None = None) -> Solution:
    """The integer program alone; arguments, result and errors as of `solver.solve`."""
    options = options or Options()
    clock = Clock(options.seconds)
    reduced = reduce(problem)
    clock.lap("presolve")
    explicit = reduced.problem.explicit(_EXPLICIT)
    if explicit is None:
        raise PlanError(
            f"the liveness of {len(problem.costs)} nodes makes too many memory rows for the "
            "integer program at once: use `solver.solve`"
        )
    found = improve(explicit, options, clock)
    return Solution.expanded(reduced, found.best, found.bound, options, clock)


@dataclass(frozen=True, eq=False)
class Improved:
    """The best assignment, None where none was found, and the bound."""

    best: Assignment | None
    bound: float


def improve(
    problem: Problem,
    options: Options,
    clock: Clock,
    best: Assignment | None = None,
    bound: float = -math.inf,
) -> Improved:
    """A better assignment and a higher bound, for a problem without ties.

    Args:
        best, bound: of another road, to start from.

    Raises:
        InfeasibleError: says which memory limit is missed, by how much, and the nearest fit; or
            which forbidden conversions stand against each other.
    """
    reduced = reduce(problem)
    search = _Search(reduced.problem, options, bound)
    search.offer(None if best is None else reduced.shrink(best))
    clock.lap("build")
    search.relax(_RELAX_SHARE * clock.left)
    clock.lap("relaxation")
    if not search.proven and clock.left > 0:
        search.improve(_IMPROVE_SHARE * clock.left)
        clock.lap("heuristics")
    if not search.proven and clock.left > 0:
        search.branch(clock.left)
        clock.lap("integer program")
    if search.best is None:
        search.improve(0.0)
        clock.lap("heuristics")
    found = [a for a in (best, search.best and reduced.expand(search.best)) if a is not None]
    objectives = [evaluate(problem, a).objective for a in found]
    least = found[int(np.argmin(objectives))] if found else None
    return Improved(least, min([search.bound, *objectives]))


class _Search:
    """The best assignment of a problem without ties, and the bound, so far."""

    def __init__(self, problem: Problem, options: Options, bound: float) -> None:
        self._problem, self._options = problem, options
        self._model = build(problem)
        self._program = LazyProgram(self._model)
        self._prices: FloatArray | None = None
        self._objective = math.inf
        self.best: Assignment | None = None
        self.bound = max(bound, sum(float(cost.min()) for cost in problem.costs))

    @property
    def proven(self) -> bool:
        gap = max(self._options.relative_gap, _ROUNDING) * abs(self._objective)
        allowed = max(gap, self._options.absolute_gap)
        return self.best is not None and self._objective - self.bound <= allowed

    def relax(self, seconds: float) -> None:
        """The linear relaxation: a bound, and where it is integral the optimum."""
        outcome, bound = self._program.relax(seconds)
        if outcome.infeasible:
            raise explain(self._problem, self._model)
        self.bound = max(self.bound, bound)
        if outcome.columns is not None:
            self._prices = self._program.prices(outcome)
            self._program.add_close(outcome.columns)
            rounded = _assignment(self._problem, self._model, outcome.columns)
            self.offer(rounded)
            if not self.proven:
                self.offer(descend(self._problem, rounded.choices))

    def improve(self, seconds: float) -> None:
        """By elimination, under prices on the memory where there are limits."""
        gap = self._options.relative_gap
        try:
            if self._problem.rows:
                best, bound = prices.search(self._problem, self._prices, seconds, gap)
            else:
                found = prune.search(self._problem, gap, seconds)
                best, bound = found.best, found.bound
        except InfeasibleError as error:
            raise explain(self._problem, self._model) from error
        self.bound = max(self.bound, bound)
        self.offer(best)

    def branch(self, seconds: float) -> None:
        """Branch and bound, from the best assignment."""
        start = None
        if self.best is not None:
            start = self._problem.choice_offset[:-1] + np.array(self.best.choices)
        outcome, bound = self._program.solve(
            seconds, self._options.relative_gap, self._options.absolute_gap, start
        )
        if outcome.infeasible:
            raise explain(self._problem, self._model)
        self.bound = max(self.bound, bound)
        if outcome.columns is not None:
            self.offer(_assignment(self._problem, self._model, outcome.columns))

    def offer(self, candidate: Assignment | None) -> None:
        """Keep the candidate if it fits and is better."""
        if candidate is None:
            return
        result = evaluate(self._problem, candidate)
        fits = bool((result.memory <= self._problem.limits * (1 + _ROUNDING)).all())
        if fits and result.objective < self._objective:
            self._objective, self.best = result.objective, candidate


def _assignment(problem: Problem, model: Model, columns: FloatArray) -> Assignment:
    """The choices with the largest column of each node, and the copies held by more than half."""
    share = np.split(columns[: model.num_choices], problem.choice_offset[1:-1])
    choices = [int(part.argmax()) for part in share]
    return complete(problem, choices, _held(problem, model, columns))


def _held(problem: Problem, model: Model, columns: FloatArray) -> list[tuple[int, int]]:
    first = problem.num_terms - problem.cell_offset[-1]
    cells = model.held_terms[columns[model.held_columns] > 0.5] - first
    values = np.searchsorted(problem.cell_offset, cells, side="right") - 1
    return [
        (k, int((cell - problem.cell_offset[k]) % problem.values[k].conversion.shape[1]))
        for k, cell in zip(values.tolist(), cells.tolist(), strict=True)
    ]
