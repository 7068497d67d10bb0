"""Exact elimination of a choice program without memory rows: its optimum, and tables of optima.

For pairwise costs this gives what the integer program gives, many times faster. `shares` says how
conversions that several nodes share are priced and when the result is a bound; `contract`
eliminates.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from hpc_alpa.errors import InfeasibleError, PlanError
from hpc_alpa.plan.solve.contract import (
    Factor,
    Steps,
    contract,
    largest_table,
    order,
    require_width,
    trace_back,
)
from hpc_alpa.plan.solve.presolve import Reduced, reduce
from hpc_alpa.plan.solve.problem import Assignment, FloatArray, Problem, evaluate
from hpc_alpa.plan.solve.shares import (
    Shared,
    factors_of,
    learn,
    scopes_of,
    shared_conversions,
)
from hpc_alpa.plan.solve.solution import Solution

_ROUNDING = 1e-9
_HOPE, _PATIENCE = 0.03, 6  # of the subgradient's adaptive target
_DENSE_TABLE = 2**19  # entries up to which exact factors over several readers are worth their width


@dataclass(frozen=True, eq=False)
class Table:
    """The least objective for each combination of the kept nodes' choices.

    Args:
        minimum: one dim per kept node, in the order asked for; infinite where impossible. Equal to
            the objective of the traced-back assignment if `exact`, else a lower bound of it.
        exact: whether every conversion was priced exactly.
    """

    minimum: FloatArray
    exact: bool
    _assignment: Callable[[tuple[int, ...]], Assignment]

    def assignment(self, kept: Sequence[int] = ()) -> Assignment:
        """The assignment behind one entry. Raises InfeasibleError where it is infinite."""
        if not np.isfinite(self.minimum[tuple(kept)]):
            raise InfeasibleError(f"kept choices {tuple(kept)} have no assignment of finite cost")
        return self._assignment(tuple(kept))


def table(problem: Problem, keep: Sequence[int] = (), dense: int | None = None) -> Table:
    """The least objective over all other nodes, for each combination of the kept nodes' choices.

    Args:
        dense: number of reading nodes up to which a shared conversion is priced exactly; as many as
            keep the tables small if None.

    Raises:
        WidthError: a table would be too large; says over which nodes.
        InfeasibleError: forbidden conversions leave a node without a choice.
        PlanError: the problem has memory rows; add their price to the costs.
    """
    plan = _Elimination.of(problem, keep, dense)
    minimum, buckets = plan.run([group.equal_shares() for group in plan.shared])
    where = [int(plan.reduced.node_of[node]) for node in keep]

    def assignment(choices: tuple[int, ...]) -> Assignment:
        return plan.reduced.expand(plan.assignment(buckets, dict(zip(where, choices, strict=True))))

    exact = all(len(group.needed) <= plan.dense for group in plan.shared)
    return Table(_spread(minimum, [plan.kept.index(v) for v in where]), exact, assignment)


def _spread(minimum: FloatArray, places: Sequence[int]) -> FloatArray:
    """One dim per kept node, where tied ones share one of `minimum`: inf off the diagonal."""
    grid = np.indices([minimum.shape[place] for place in places], sparse=True)
    first = {place: grid[places.index(place)] for place in places}
    agree = np.ones([minimum.shape[place] for place in places], np.bool_)
    for place, index in zip(places, grid, strict=True):
        agree &= index == first[place]
    entry = minimum[tuple(first[place] for place in sorted(first))]
    return np.where(agree, entry, np.inf)


def solve(
    problem: Problem,
    dense: int | None = None,
    iterations: int = 20,
    relative_gap: float = 1e-9,
    seconds: float = math.inf,
) -> Solution:
    """The best assignment found, with a proven bound; learns the shares of shared conversions.

    Each iteration moves the shares towards the nodes that used the copy, until bound and objective
    are within `relative_gap` or `seconds` are over, after one iteration at least. Other arguments
    and errors as of `table`.
    """
    begin = time.perf_counter()
    plan = _Elimination.of(problem, (), dense)
    small = plan.reduced.problem
    shares = [group.equal_shares() for group in plan.shared]
    bound, found = -math.inf, (math.inf, Assignment(()))
    hope, stalled = math.nan, 0  # by how much the next bound might be higher
    for iteration in range(iterations):
        minimum, buckets = plan.run(shares)
        if not np.isfinite(minimum):
            raise InfeasibleError(
                "no assignment has only allowed conversions: every combination of choices needs a "
                "forbidden one. Allow another conversion or choice"
            )
        assignment = plan.assignment(buckets, {})
        if iteration == 0:
            hope = _HOPE * abs(float(minimum))
        stalled = 0 if minimum > bound + 1e-4 * hope else stalled + 1
        if stalled == _PATIENCE:
            hope, stalled = hope / 2, 0
        bound = max(bound, float(minimum))
        found = min(found, (evaluate(small, assignment).objective, assignment), key=lambda f: f[0])
        if found[0] - bound <= max(relative_gap, _ROUNDING) * max(1.0, abs(found[0])):
            break
        if time.perf_counter() - begin > seconds:
            break
        missing = bound + hope - float(minimum)
        if not learn(plan.shared, shares, assignment.choices, plan.dense, missing):
            break
    assignment = plan.reduced.expand(found[1])
    objective = evaluate(problem, assignment).objective
    phases = {"elimination": time.perf_counter() - begin}
    return Solution.of(objective, bound, assignment, max(relative_gap, _ROUNDING), phases)


@dataclass(frozen=True, eq=False)
class _Elimination:
    """What does not depend on the shares: the reduced problem, and the order."""

    reduced: Reduced
    kept: tuple[int, ...]
    shared: tuple[Shared, ...]
    sizes: tuple[int, ...]
    dense: int
    steps: Steps

    @classmethod
    def of(cls, problem: Problem, keep: Sequence[int], dense: int | None) -> Self:
        if problem.rows:
            raise PlanError(
                f"elimination knows no memory rows, the problem has {len(problem.rows)}: add their "
                "price to the costs, or solve the integer program"
            )
        reduced = reduce(problem, keep)
        small = reduced.problem
        kept = tuple(sorted({int(reduced.node_of[node]) for node in keep}))
        shared = tuple(shared_conversions(small))
        sizes = tuple(len(cost) for cost in small.costs)
        most = max((len(group.needed) for group in shared), default=1)
        for number in (dense,) if dense is not None else range(most, 0, -1):
            steps = order(sizes, scopes_of(shared, number), kept)
            if largest_table(sizes, steps) <= _DENSE_TABLE:
                break
        require_width(sizes, [*steps, *([(kept[0], kept[1:])] if kept else [])], small.names)
        return cls(reduced, kept, shared, sizes, number, steps)

    def run(self, shares: Sequence[FloatArray]) -> tuple[FloatArray, list[list[Factor]]]:
        factors = factors_of(self.reduced.problem, self.shared, shares, self.dense)
        return contract(self.sizes, factors, self.steps, self.kept)

    def assignment(self, buckets: list[list[Factor]], kept: Mapping[int, int]) -> Assignment:
        choice = trace_back(self.steps, buckets, kept)
        return Assignment(tuple(choice[v] for v in range(len(self.sizes))))
