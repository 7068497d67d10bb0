"""One integer program on HiGHS whose memory rows are added only where a solution violates them."""

import time

import numpy as np
import scipy.sparse

from hpc_alpa.plan.solve.engine import Engine, Outcome
from hpc_alpa.plan.solve.model import Model
from hpc_alpa.plan.solve.problem import FloatArray, IntArray

# The right-hand side of a memory row as HiGHS sees it: its tolerances are absolute, 1e-9 here.
_SCALED_LIMIT = 1024.0
_VIOLATED = 1e-9  # relative to the limit
_CLOSE = 0.05
_ROWS_AT_ONCE = 16


class LazyProgram:
    """A model in HiGHS and the memory rows that it holds so far."""

    def __init__(self, model: Model) -> None:
        largest = np.zeros(model.memory.shape[0])
        np.maximum.at(largest, *_row_entries(model.memory))
        positive = np.where(model.limits > 0, model.limits, np.where(largest > 0, largest, 1.0))
        scale = _SCALED_LIMIT / positive
        self._memory = scipy.sparse.csr_array(scipy.sparse.diags_array(scale) @ model.memory)
        self._limits = model.limits * scale
        self._scale = scale
        self._added: list[int] = []
        self._engine = Engine(model)

    @property
    def num_rows(self) -> int:
        """Memory rows added so far."""
        return len(self._added)

    def prices(self, outcome: Outcome) -> FloatArray:
        """Seconds per byte of each memory row, from a relaxation."""
        prices = np.zeros(len(self._scale))
        if len(outcome.prices) == len(self._added):
            prices[self._added] = np.maximum(0.0, outcome.prices) * self._scale[self._added]
        return prices

    def relax(self, seconds: float) -> tuple[Outcome, float]:
        """The linear relaxation under all memory rows, and the bound of the last that ended."""
        end, bound = time.perf_counter() + seconds, -np.inf
        while True:
            outcome = self._engine.relax(end - time.perf_counter())
            if not outcome.optimal or outcome.columns is None:
                return outcome, bound
            bound = max(bound, outcome.bound)
            if not self._add_violated(outcome.columns) or time.perf_counter() > end:
                return outcome, bound

    def solve(
        self, seconds: float, relative_gap: float, absolute_gap: float, start: IntArray | None
    ) -> tuple[Outcome, float]:
        """The integer program under all memory rows, and its bound. May time out in between."""
        end, bound = time.perf_counter() + seconds, -np.inf
        while True:
            left = end - time.perf_counter()
            outcome = self._engine.solve(left, relative_gap, absolute_gap, start)
            bound = max(bound, outcome.bound)
            if outcome.columns is None or not self._add_violated(outcome.columns):
                return outcome, bound
            if time.perf_counter() > end:
                return outcome, bound

    def _add_violated(self, columns: FloatArray) -> bool:
        """Add the worst violated rows that are not in yet; peaks only, as rows follow time."""
        excess = self._excess(columns)
        padded = np.concatenate([[-np.inf], excess, [-np.inf]])
        peak = (excess >= padded[:-2]) & (excess > padded[2:])
        return self._add(np.flatnonzero(peak & (excess > _VIOLATED * _SCALED_LIMIT)), excess)

    def add_close(self, columns: FloatArray) -> None:
        """Add the rows nearest to their limits: an integral solution is not the relaxed one."""
        excess = self._excess(columns)
        self._add(np.flatnonzero(excess > -_CLOSE * _SCALED_LIMIT), excess)

    def _excess(self, columns: FloatArray) -> FloatArray:
        """Scaled bytes over the limit; of rows that are in, minus infinity."""
        excess = np.asarray(self._memory @ columns - self._limits)
        excess[self._added] = -np.inf
        return excess

    def _add(self, rows: IntArray, excess: FloatArray) -> bool:
        new = np.sort(rows[np.argsort(-excess[rows])][:_ROWS_AT_ONCE])
        if new.size:
            self._added += new.tolist()
            self._engine.add_rows(self._memory[new], self._limits[new])
        return bool(new.size)


def _row_entries(matrix: scipy.sparse.csr_array) -> tuple[IntArray, FloatArray]:
    entries = matrix.tocoo()
    return entries.coords[0], entries.data
