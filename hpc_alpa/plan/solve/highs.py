"""The integer program of a choice program on HiGHS: relaxation first, branch and bound when needed.

`presolve` makes the problem small, `model` writes it as arrays, `lazy` adds the memory rows that
are violated. Where the relaxation is integral it is the optimum; else its rounding, improved by
coordinate descent and elimination, starts the integer program. Every answer is evaluated on the
original problem.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from hpc_alpa.errors import PlanError
from hpc_alpa.plan.solve import eliminate
from hpc_alpa.plan.solve.contract import WidthError
from hpc_alpa.plan.solve.heuristic import descend, feasible
from hpc_alpa.plan.solve.infeasible import explain
from hpc_alpa.plan.solve.lazy import Clock, LazyProgram
from hpc_alpa.plan.solve.model import Model, build
from hpc_alpa.plan.solve.presolve import reduce
from hpc_alpa.plan.solve.problem import Assignment, FloatArray, Problem, complete, evaluate
from hpc_alpa.plan.solve.solution import Solution

_ROUNDING = 1e-9
_SHARE = 0.2  # of the time that is left, for a start of the integer program
_LEAST_SECONDS = 1.0  # for an assignment where time is over and none was found


@dataclass(frozen=True)
class Options:
    """When to stop: a proven gap, relative or absolute (seconds of objective), or wall time."""

    relative_gap: float = 1e-6
    absolute_gap: float = 0.0
    seconds: float = 60.0


@dataclass(frozen=True)
class _Best:
    """The best assignment so far."""

    objective: float = math.inf
    assignment: Assignment | None = None

    def with_candidate(self, problem: Problem, candidate: Assignment | None) -> "_Best":
        if candidate is None:
            return self
        result = evaluate(problem, candidate)
        fits = bool((result.memory <= problem.limits * (1 + _ROUNDING)).all())
        if fits and result.objective < self.objective:
            return _Best(result.objective, candidate)
        return self


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
    small = reduced.problem
    model = build(small)
    clock.lap("build")

    program = LazyProgram(model)
    outcome, bound = program.relax(clock)
    bound = max(bound, sum(float(cost.min()) for cost in small.costs))
    clock.lap("relaxation")
    if outcome.infeasible:
        raise explain(small, model)
    best = _Best()
    if outcome.columns is not None:
        rounded = _assignment(small, model, outcome.columns)
        best = best.with_candidate(small, rounded)
        if not _proven(best, bound, options):
            best = best.with_candidate(small, descend(small, rounded.choices, small.costs))
        if not _proven(best, bound, options):
            best, bound = _improved(small, best, bound, program.prices(outcome), options, clock)
    if not _proven(best, bound, options) and clock.left > 0:
        start = None
        if best.assignment is not None:
            start = small.choice_offset[:-1] + np.array(best.assignment.choices)
        outcome, integral_bound = program.solve(
            clock, options.relative_gap, options.absolute_gap, start
        )
        bound = max(bound, integral_bound)
        clock.lap("integer program")
        if outcome.infeasible:
            raise explain(small, model)
        if outcome.columns is not None:
            best = best.with_candidate(small, _assignment(small, model, outcome.columns))
    if best.assignment is None:
        best, bound = _improved(small, best, bound, None, options, clock)
    if best.assignment is None:
        raise PlanError(
            f"no assignment of {len(problem.costs)} nodes under {len(problem.rows)} memory rows "
            f"was found in {options.seconds:g} s, nor proven impossible: allow more seconds"
        )
    assignment = reduced.expand(best.assignment)
    return Solution.of(
        evaluate(problem, assignment).objective,
        bound,
        assignment,
        max(options.relative_gap, _ROUNDING),
        clock.phases,
        options.absolute_gap,
    )


def _improved(
    problem: Problem,
    best: _Best,
    bound: float,
    prices: FloatArray | None,
    options: Options,
    clock: Clock,
) -> tuple[_Best, float]:
    """A better assignment and bound without HiGHS: by elimination, and by prices on the memory."""
    seconds = max(_LEAST_SECONDS, _SHARE * clock.left)
    if prices is None or not prices.any():
        bare = replace(problem, rows=())
        try:
            found = eliminate.solve(bare, relative_gap=options.relative_gap, seconds=seconds)
        except WidthError:
            pass  # the descent below needs no tables
        else:
            best = best.with_candidate(problem, complete(problem, found.assignment.choices))
            bound = max(bound, found.bound)
    if best.assignment is None:
        best = best.with_candidate(problem, feasible(problem, prices, seconds))
    clock.lap("heuristics")
    return best, bound


def _proven(best: _Best, bound: float, options: Options) -> bool:
    gap = best.objective - bound
    relative = max(options.relative_gap, _ROUNDING) * abs(best.objective)
    return best.assignment is not None and gap <= max(relative, options.absolute_gap)


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
