"""Memory limits as prices: a proven bound, and assignments that fit, without HiGHS.

With prices mu >= 0, in seconds per byte of each memory row, the least of

    objective(x) + mu @ memory(x)  -  mu @ limits

over all assignments x is a lower bound of the optimum, whatever mu (Lagrange). The first two terms
are again a choice program, without rows, so elimination gives their minimum; where its tables are
too large, descent gives an assignment and no bound. Prices follow the excess of their rows by
Polyak's step; what fits is kept, and joined to what is cheaper but does not fit.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hpc_alpa.errors import InfeasibleError
from hpc_alpa.plan.solve import prune
from hpc_alpa.plan.solve.descend import descend
from hpc_alpa.plan.solve.presolve import reduce
from hpc_alpa.plan.solve.problem import (
    LOOP,
    Assignment,
    Evaluation,
    FloatArray,
    Problem,
    Value,
    Window,
    complete,
    evaluate,
    holdable_copies,
)

_ROUNDS = 40
_PRICED_GAP, _PRICED_SECONDS = 1e-5, 2.0  # of each problem under prices
_RISE = 2.0  # of the prices of rows over their limit, until something fits
_FIRST_PRICE = 0.05  # of the objective, for the whole of a limit
_IDLE, _NARROWER = 8, 0.95  # rounds that do not narrow the gap by so much end the search
_HOPE, _PATIENCE, _LITTLE = 0.1, 3, 1e-3  # of Polyak's adaptive target
_GRACE = 10.0  # seconds
_MIXES = 16  # places where an assignment that fits is joined to one that does not
_ROUNDING = 1e-9


def priced(problem: Problem, prices: FloatArray) -> Problem:
    """The problem without rows whose objective is `objective + prices @ memory`.

    A value that may be held pays per cell, with the price g of holding and k = max(0, C - g):

        (C - k) [a forward reader]  +  (C - k) [a backward reader]  +  k [any of them]
    """
    price = problem.row_matrix.T @ prices
    costs = tuple(
        cost + price[problem.choice_terms(node)] for node, cost in enumerate(problem.costs)
    )
    values: list[Value] = []
    for k, value in enumerate(problem.values):
        copies = {window: price[problem.copy_terms(k, window)] for window in Window}
        held = price[problem.held_terms(k)]
        if not held.any() and not any(copy.any() for copy in copies.values()):
            values.append(value)
            continue
        saved = np.zeros_like(value.conversion)
        if value.holdable:
            finite = np.isfinite(value.conversion)
            saved[finite] = np.maximum(0.0, value.conversion[finite] - held[finite])
            pair = [r for r in value.readers if r.window in LOOP]
            together = tuple(replace(r, window=Window.FORWARD) for r in pair)
            values.append(replace(value, readers=together, conversion=saved, holdable=False))
        for window, copy in copies.items():
            readers = tuple(r for r in value.readers if r.window == window)
            alone = value.conversion + copy - (saved if window in LOOP else 0.0)
            values.append(replace(value, readers=readers, conversion=alone, holdable=False))
    return Problem(costs, tuple(v for v in values if v.readers), names=problem.names)


def search(
    problem: Problem, prices: FloatArray | None, seconds: float, relative_gap: float
) -> tuple[Assignment | None, float]:
    """The best assignment found for a problem without ties but with rows, and the best bound.

    Args:
        prices: to start from, as a relaxation gives them.
        seconds: after which no other round is started, once something was found; where nothing
            fits at once, a few more are given, and the search ends without.

    Raises:
        InfeasibleError: forbidden conversions, not memory, exclude every assignment.
    """
    begin = time.perf_counter()
    best, price = _Best(problem), _Prices(problem, prices)
    x: Sequence[int] = [int(cost.argmin()) for cost in problem.costs]
    bound, narrowest, idle = -math.inf, math.inf, 0
    for _ in range(_ROUNDS):
        x, least = _cheapest(priced(problem, price.per_byte), x)
        value = least - price.of_limits
        price.judge(value, bound)
        bound = max(bound, value)
        result = best.offer(complete(problem, x))
        excess = (result.memory - problem.limits) / price.share
        late = time.perf_counter() - begin - seconds
        if best.assignment is None:
            if late > _GRACE:
                break
            price.rise(excess, result.objective)
            continue
        gap = best.objective - bound
        idle = 0 if gap < _NARROWER * narrowest else idle + 1
        narrowest = min(gap, narrowest)
        proven = gap <= max(relative_gap, _ROUNDING) * abs(best.objective)
        if proven or late > 0 or idle == _IDLE:
            break
        if not price.step(excess, value, bound, best.objective):
            break
    return best.assignment, bound


class _Prices:
    """Prices of whole limits, in seconds, and Polyak's adaptive target for the bound."""

    def __init__(self, problem: Problem, per_byte: FloatArray | None) -> None:
        self.share = np.maximum(problem.limits, 1.0)  # bytes of a whole limit
        self._limits = problem.limits
        self._price = np.zeros(len(self.share)) if per_byte is None else per_byte * self.share
        self._hope = math.nan  # by how much the next bound might be higher
        self._stalled = 0

    @property
    def per_byte(self) -> FloatArray:
        return self._price / self.share

    @property
    def of_limits(self) -> float:
        """Prices times limits."""
        return float(self._price @ (self._limits / self.share))

    def judge(self, value: float, bound: float) -> None:
        """Hope for less where the bound did not rise for some rounds."""
        self._stalled = 0 if value > bound + _LITTLE * self._hope else self._stalled + 1
        if self._stalled >= _PATIENCE:
            self._hope, self._stalled = self._hope / 2, 0

    def rise(self, excess: FloatArray, objective: float) -> None:
        """Raise the prices of the rows over their limit, as nothing fits yet."""
        usual = _FIRST_PRICE * (abs(objective) if math.isfinite(objective) else 1.0)
        raised = np.maximum(_RISE * self._price, usual)
        self._price = np.where(excess > _ROUNDING, raised, self._price)

    def step(self, excess: FloatArray, value: float, bound: float, objective: float) -> bool:
        """Polyak's step for a few rows: those with a price and the worst. False if none is left."""
        if math.isnan(self._hope):
            self._hope = _HOPE * abs(objective)
        moving = self._price > 0
        moving[excess.argmax()] = True
        length = float(excess[moving] @ excess[moving])
        if not math.isfinite(value) or length < _ROUNDING**2:
            return False
        size = (min(objective, bound + self._hope) - value) / length
        self._price = np.where(moving, np.maximum(0.0, self._price + size * excess), self._price)
        return True


def _cheapest(problem: Problem, x: Sequence[int]) -> tuple[Sequence[int], float]:
    """Choices of least objective for a problem without rows, and the bound of it."""
    reduced = reduce(problem)
    found = prune.search(reduced.problem, _PRICED_GAP, _PRICED_SECONDS)
    if found.best is None:
        if found.bound == math.inf:
            raise InfeasibleError("forbidden conversions exclude every assignment")
        return descend(problem, x).choices, found.bound
    return reduced.expand(found.best).choices, found.bound


class _Best:
    """The best assignment that fits."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self.assignment: Assignment | None = None
        self.objective = math.inf

    def offer(self, candidate: Assignment) -> Evaluation:
        """Keep it if it fits and is better; else what it and the best give when they are joined."""
        result, fits = self._keep(candidate)
        if not fits and self.assignment is not None:
            best = self.assignment.choices
            cuts = np.linspace(0, len(best), _MIXES, endpoint=False).astype(int)[1:]
            for cut in np.unique(cuts).tolist():
                for a, b in ((candidate.choices, best), (best, candidate.choices)):
                    self._keep(complete(self._problem, a[:cut] + b[cut:]))
        return result

    def _keep(self, candidate: Assignment) -> tuple[Evaluation, bool]:
        result = evaluate(self._problem, candidate)
        fits = bool((result.memory <= self._problem.limits * (1 + _ROUNDING)).all())
        if fits:
            candidate = hold(self._problem, candidate, self._problem.limits - result.memory)
            objective = evaluate(self._problem, candidate).objective
            if objective < self.objective:
                self.assignment, self.objective = candidate, objective
        return result, fits


def hold(problem: Problem, assignment: Assignment, room: FloatArray) -> Assignment:
    """Hold more copies in the bytes of `room` per row, the best seconds for their bytes first.

    Equal values hold alike (`Problem.holds`), so that their copies are taken together.
    """
    together: dict[tuple[int, int], list[int]] = {}
    for k, t, term in holdable_copies(problem, assignment.choices):
        if (k, t) not in assignment.held:
            together.setdefault((problem.holds[k], t), []).append(term)
    left = []
    for copy, terms in together.items():
        saved = float(problem.term_costs[terms].sum())
        if saved < 0:
            nbytes = problem.bytes_of_term[:, terms].sum(axis=1)
            share = float((nbytes / np.maximum(problem.limits, 1.0)).max(initial=0.0))
            left.append((saved / max(share, _ROUNDING), copy, nbytes))
    held = set(assignment.held)
    for _, copy, nbytes in sorted(left, key=lambda c: c[0]):
        if (nbytes <= room).all():
            room = room - nbytes
            held.add(copy)
    return complete(problem, assignment.choices, held)
