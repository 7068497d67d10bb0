"""Memory limits as prices, each priced program solved to its end: bound and assignments that fit.

For prices mu >= 0, in seconds per byte of each memory row, the least of

    objective(x) + mu @ (memory(x) - limits)

over all assignments x is a lower bound of the optimum, whatever mu (Lagrange), and with the prices
it is a choice program without rows (`prices.priced`), which the first road solves. `cuts` says at
which prices to look next. Rows are added where an assignment holds too much: of thousands of points
of a step a few bind.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hpc_alpa.errors import InfeasibleError, PlanError
from hpc_alpa.plan.solve.cuts import Cuts
from hpc_alpa.plan.solve.join import join
from hpc_alpa.plan.solve.limits import Apart, Rows
from hpc_alpa.plan.solve.options import Clock
from hpc_alpa.plan.solve.presolve import Reduced, reduce
from hpc_alpa.plan.solve.prices import hold, priced
from hpc_alpa.plan.solve.problem import (
    Assignment,
    FloatArray,
    IntArray,
    Problem,
    complete,
    evaluate,
    holdable_copies,
)
from hpc_alpa.plan.solve.solution import Solution

log = logging.getLogger(__name__)
_ROUNDS, _GRACE = 60, 12  # the second: after the time, while nothing fits
_CONVERGED = 0.02  # of the gap: what the dual may still rise by when its search ends
_PRICED_GAP, _PRICED_SHARE = 1e-6, 0.3  # of each priced program; of the gap that is asked for
_PATIENCE = 3  # rounds before the fewest bytes are looked for
_JOINED = 6  # of the last ones seen, with a new best
_MIXED = 3  # of those that fit, and of those that are cheaper
_PUSHES, _FIRST_PUSH, _NARROW, _SHARE_OF_OTHERS, _LEAST_PUSHED = 12, 0.05, 0.02, 0.01, 1e-4
_LEAST_SECONDS, _MOST_SECONDS, _SHARE = 2.0, 5.0, 0.5  # of a priced program; of the time left
_ROUNDING = 1e-9

Free = Callable[[Problem, float, float], Solution]


@dataclass
class Dual:
    """The search of one problem.

    Attributes:
        problem: its rows are those found so far.
        rows_of: the rows that an assignment does not meet, none if it fits; the same object for
            the same row.
        solve_free: solves a problem without rows to a relative gap, within some seconds.
        best, objective: the best assignment that fits.
        bound: no assignment that fits has a smaller objective.
    """

    problem: Problem
    rows_of: Rows
    solve_free: Free
    bound: float = -math.inf
    best: Assignment | None = None
    objective: float = math.inf
    _seen: list[Assignment] = field(default_factory=list)
    _cuts: Cuts = field(default_factory=Cuts)
    _reduced: Reduced | None = None
    _block: IntArray | None = None
    _priced_gap: float = _PRICED_GAP
    _prices: FloatArray = field(default_factory=lambda: np.empty(0))  # at the bound

    def search(self, first: Solution, relative_gap: float, clock: Clock) -> None:
        """Raise the bound and lower the objective until they meet, or neither moves, or time ends.

        Args:
            first: of the problem without rows.

        Raises:
            InfeasibleError: nothing fits.
        """
        self.bound = first.bound
        self._priced_gap = max(_PRICED_GAP, _PRICED_SHARE * relative_gap)
        self._offer(first.assignment)
        self._raise(relative_gap, clock)
        self._push(relative_gap, clock)

    def search_apart(self, apart: Apart, relative_gap: float, clock: Clock) -> None:
        """The search of the same problem with fewer ties, from what is known of it."""
        self.problem = replace(apart.problem, rows=self.problem.rows)
        self._block = np.array(apart.block)
        self._reduced = None
        self._mix()
        self.bound = -math.inf
        self._cheapest(self._prices / self._limits[: len(self._prices)], clock)
        known = len(self._seen)
        self._raise(relative_gap, clock)
        if len(self._seen) > known:
            self._mix()

    def _raise(self, relative_gap: float, clock: Clock) -> None:
        """Prices towards the dual's maximum."""
        last = np.empty(0)
        for number in range(_ROUNDS):
            late = clock.left == 0 and (self.best is not None or number > _GRACE)
            if late or self._proven(relative_gap):
                return
            prices, hope = self._cuts.highest()
            if self.best is not None:
                missing = self.objective - self.bound
                again = len(prices) == len(last) and np.allclose(prices, last)
                if again or min(hope, self.objective) - self.bound <= _CONVERGED * missing:
                    return
            last = prices
            if self.best is None and number >= _PATIENCE and number % 2:
                self._smallest(prices / self._limits, clock)
            else:
                self._cheapest(prices / self._limits, clock)
            log.info(
                "%d rows, %.1f s left: best %.6f s, bound %.6f s, prices of a whole limit %s s",
                *(len(prices), clock.left, self.objective, self.bound, prices.round(6).tolist()),
            )

    def _push(self, relative_gap: float, clock: Clock) -> None:
        """Prices above the best ones, until what is cheapest fits; then as little above as can be.

        At the dual's maximum what is cheapest is over one limit or the other.
        """
        low, high = 0.0, math.inf
        for _ in range(_PUSHES):
            if clock.left == 0 or self._proven(relative_gap) or high - low < _NARROW:
                return
            more = (low + high) / 2 if math.isfinite(high) else max(2 * low, _FIRST_PUSH)
            prices = np.pad(self._prices, (0, len(self.problem.rows) - len(self._prices)))
            least = max(_SHARE_OF_OTHERS * prices.max(), _LEAST_PUSHED * abs(self.bound))
            prices = np.maximum(prices, least) * (1 + more)
            self._cheapest(prices / self._limits, clock)
            over = evaluate(self.problem, self._seen[-1]).memory > self.problem.limits
            low, high = (more, high) if over.any() else (low, more)
            log.info("prices %.3g higher: best %.6f s", more, self.objective)

    def _proven(self, relative_gap: float) -> bool:
        gap = max(relative_gap, _ROUNDING) * abs(self.objective)
        return self.best is not None and self.objective - self.bound <= gap

    @property
    def _limits(self) -> FloatArray:
        return np.maximum(self.problem.limits, 1.0)

    @property
    def reduced(self) -> Reduced:
        """The problem with its rows so far, presolved."""
        if self._reduced is None:
            self._reduced = reduce(self.problem)
        return self._reduced

    def _cheapest(self, per_byte: FloatArray, clock: Clock) -> None:
        """The cheapest assignment at some prices, and the bound that these give."""
        limits = self.problem.limits
        per_byte = np.pad(per_byte, (0, len(limits) - len(per_byte)))
        least = self._solve(self.reduced, per_byte, clock)
        bound = least - float(per_byte @ limits)
        if bound >= self.bound:
            self.bound, self._prices = bound, per_byte * np.maximum(limits, 1.0)

    def _smallest(self, per_byte: FloatArray, clock: Clock) -> None:
        """The assignment of fewest bytes, weighed by the prices.

        Raises:
            InfeasibleError: that is too much, so that nothing fits.
        """
        weights = per_byte if per_byte.any() else 1.0 / self._limits
        weights = weights / float(weights @ self._limits)
        limits = self.problem.limits
        no_time = replace(
            self.problem,
            costs=tuple(np.where(np.isfinite(cost), 0.0, cost) for cost in self.problem.costs),
            values=tuple(
                replace(v, conversion=np.where(np.isfinite(v.conversion), 0.0, np.inf))
                for v in self.problem.values
            ),
        )
        least = self._solve(reduce(no_time), weights, clock)
        if least > float(weights @ limits) * (1 + _ROUNDING):
            raise self._nothing_fits(least)

    def _solve(self, reduced: Reduced, per_byte: FloatArray, clock: Clock) -> float:
        """Offer the cheapest assignment at some prices. Returns the bound of the priced program."""
        small = reduced.problem
        seconds = max(_LEAST_SECONDS, min(_MOST_SECONDS, _SHARE * clock.left))
        try:
            found = self.solve_free(priced(small, per_byte), self._priced_gap, seconds)
        except PlanError as error:
            log.info("nothing is known at these prices: %s", error)
            return -math.inf
        choices = found.assignment.choices
        held = worth_holding(small, choices, per_byte)
        self._offer(reduced.expand(complete(small, choices, held)))
        return found.bound

    def _offer(self, assignment: Assignment) -> None:
        """Take it for a cut; keep it if it fits, else what fits of it."""
        rows = [row for row in self.rows_of(assignment) if row not in self.problem.rows]
        if rows:
            self.problem = replace(self.problem, rows=(*self.problem.rows, *rows))
            self._reduced = None
            self._cuts = Cuts(most=self._cuts.most)
            for other in self._seen:
                self._cut(other)
        self._seen.append(assignment)
        self._cut(assignment)
        better = self._keep(assignment)
        for other in self._seen[-_JOINED:] if better else (assignment,):
            self._join(other)

    def _cut(self, assignment: Assignment) -> None:
        result = evaluate(self.problem, assignment)
        self._cuts.add(result.objective, (result.memory - self.problem.limits) / self._limits)

    def _join(self, other: Assignment) -> None:
        """What the best can take over from another."""
        if self.best is None or other is self.best:
            return
        small = self.reduced.problem
        ends = self.reduced.shrink(self.best), self.reduced.shrink(other)
        if ends[0] is not None and ends[1] is not None:
            self._keep(self.reduced.expand(join(small, ends[0], ends[1])))

    def _mix(self) -> None:
        """What fits in some blocks of layers, what is cheaper in those before or behind them."""
        if self._block is None or self.best is None:
            return
        per_byte = np.pad(self._prices, (0, len(self._limits) - len(self._prices))) / self._limits
        results = [evaluate(self.problem, a) for a in self._seen]
        order = sorted(
            range(len(results)),
            key=lambda k: results[k].objective + float(per_byte @ results[k].memory),
        )
        over = [bool((r.memory > self.problem.limits).any()) for r in results]
        for k in [k for k in order if not over[k]][:_MIXED]:
            for other in [j for j in order if over[j]][:_MIXED]:
                for before in (True, False):
                    self._mix_two(self._seen[k], self._seen[other], before)

    def _mix_two(self, fits: Assignment, cheaper: Assignment, before: bool) -> None:
        """As many blocks of the cheaper one as fit, by bisection."""
        assert self._block is not None, "blocks are known where layers are apart"
        low, high = 0, int(self._block.max()) + 1
        while high - low > 1:
            size = (low + high) // 2
            first = size if before else int(self._block.max()) + 1 - size
            there = (self._block >= 0) & ((self._block < first) == before)
            choices = np.where(there, cheaper.choices, fits.choices).tolist()
            mixed = complete(self.problem, choices, fits.held | cheaper.held)
            memory = evaluate(self.problem, mixed).memory
            if (memory > self.problem.limits * (1 + _ROUNDING)).any():
                high = size
            else:
                low = size
                self._keep(mixed)

    def _keep(self, assignment: Assignment) -> bool:
        """Whether it fits and is better than the best; with all that can be held beside it."""
        result = evaluate(self.problem, assignment)
        room = self.problem.limits - result.memory
        if (room < -_ROUNDING * self._limits).any() or self.rows_of(assignment):
            return False
        fuller = hold(self.problem, assignment, room)
        if fuller != assignment and self.rows_of(fuller):
            fuller = assignment
        objective = evaluate(self.problem, fuller).objective
        if objective >= self.objective:
            return False
        self.best, self.objective = fuller, objective
        return True

    def _nothing_fits(self, least: float) -> InfeasibleError:
        """What is over which limit in the nearest fit.

        Args:
            least: part of the limits, weighed by some prices, that every assignment needs.
        """
        limits = self.problem.limits
        held = [evaluate(self.problem, a).memory for a in self._seen]
        nearest = min(held, key=lambda memory: float((memory / self._limits).max()))
        worst = int((nearest / self._limits).argmax())
        row = self.problem.rows[worst]
        return InfeasibleError(
            f"memory limit {row.name!r} of {limits[worst]:,.0f} bytes cannot be met: every choice "
            f"needs at least {100 * least:.4g} % of the limits at {len(limits)} points of a step, "
            f"weighed against each other.\n"
            f"  nearest fit: {nearest[worst]:,.0f} bytes of {limits[worst]:,.0f}\n"
            f"  Raise the limit to {nearest[worst]:,.0f} bytes, use more devices, or smaller "
            "microbatches.",
            missing=float(nearest[worst] - limits[worst]),
        )


def worth_holding(
    problem: Problem, choices: Sequence[int], per_byte: FloatArray
) -> list[tuple[int, int]]:
    """The copies that cost more to make again than to hold, at these prices."""
    price = problem.row_matrix.T @ per_byte
    return [
        (k, t)
        for k, t, term in holdable_copies(problem, choices)
        if price[term] + problem.term_costs[term] < 0
    ]
