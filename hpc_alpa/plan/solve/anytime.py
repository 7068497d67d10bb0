"""The first road under memory rows: prices and messages, then neighbourhoods while time is left.

Gives an assignment that fits, a bound, and the choices that a better assignment may have, as
`prune` does without rows. It needs rows that speak of choices alone, of no copies.
"""

import math
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpc_alpa.plan.solve import lagrange, neighbourhoods
from hpc_alpa.plan.solve.intervals import Intervals
from hpc_alpa.plan.solve.messages import Messages
from hpc_alpa.plan.solve.pairwise import in_order, pairwise
from hpc_alpa.plan.solve.problem import IntArray, Problem, complete
from hpc_alpa.plan.solve.prune import Pruned

_ROUNDS = 300
_ROUNDING = 1e-9


@dataclass(eq=False)
class Anytime:
    """The search for one problem without ties; `start`, then `improve`."""

    problem: Problem

    def __post_init__(self) -> None:
        self._program, self._number = in_order(pairwise(self.problem))
        size = len(self._program.node)
        own = self._number[: len(self.problem.costs)]
        self._intervals = Intervals.of(self.problem, own, size)
        self._own = own
        self._rng = np.random.default_rng(0)  # the same answer in every run that has the time
        self.found: lagrange.Priced | None = None

    @property
    def possible(self) -> bool:
        """Whether the rows speak of choices alone."""
        return self._intervals is not None

    def start(self, relative_gap: float, seconds: float) -> Pruned:
        """Prices and messages."""
        assert self._intervals is not None
        messages = Messages(self._program, range(len(self._program.node)))
        end = time.perf_counter() + seconds
        self.found = found = lagrange.search(
            *(messages, self._intervals, 0.0, _ROUNDS, end, self._rng, None, relative_gap)
        )
        alive = np.ones(int(messages.start[-1]), np.bool_)
        if math.isfinite(found.bound) and found.above is not None:
            alive = ~(found.bound + found.above > found.seconds * (1 + _ROUNDING))
        return self._pruned(np.split(alive, messages.start[1:-1]))

    def improve(self, seconds: float) -> Pruned:
        """Neighbourhoods, from what `start` found."""
        found = self.found
        assert self._intervals is not None and found is not None and found.choices is not None
        end = time.perf_counter() + seconds
        found.choices = neighbourhoods.improve(
            *(self._program, self._intervals, found.choices, found.prices, end, self._rng)
        )
        return self._pruned([np.ones(len(cost), np.bool_) for cost in self._program.node])

    def _pruned(self, alive: list[NDArray[np.bool_]]) -> Pruned:
        found = self.found
        assert found is not None
        masks = tuple(alive[v] for v in self._own)
        if found.choices is None:
            return Pruned(None, found.bound, tuple(np.ones_like(mask) for mask in masks))
        choices: IntArray = found.choices[self._own]
        for mask, choice in zip(masks, choices, strict=True):
            mask[choice] = True
        return Pruned(complete(self.problem, choices.tolist()), found.bound, masks)
