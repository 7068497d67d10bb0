"""HiGHS behind a few methods: the one file that imports highspy.

Traps that are handled here: the banner that the first constructor of a process prints before any
option can be set; the thread count of the first run, which a later run may not change without a
reset; tolerances, which are absolute, so costs are scaled before they are handed over; an optimum
that is none, after a start from a partial solution.
"""

import ctypes
import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import highspy
import numpy as np
import scipy.sparse

from hpc_alpa.plan.solve.model import Model
from hpc_alpa.plan.solve.problem import FloatArray, IntArray

# The largest cost after scaling: far above HiGHS's dual tolerance of 1e-7, so that costs a million
# times smaller still count, and below the 1e7 or so from which its arithmetic suffers.
_LARGEST_COST = 2.0**20

# every objective here is bounded below
_INFEASIBLE = (
    highspy.HighsModelStatus.kInfeasible,
    highspy.HighsModelStatus.kUnboundedOrInfeasible,
)
_SAME = 1e-6  # relative, of two ways to the same objective
_silence = threading.Lock()


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a run ended with.

    Args:
        bound: of the objective; minus infinity where the run proved none.
        columns: of the solution; None where the run found none.
        prices: of a relaxation, seconds per unit of each added row.
    """

    optimal: bool
    infeasible: bool
    bound: float
    columns: FloatArray | None
    prices: FloatArray


class Engine:
    """One model in HiGHS, first relaxed, then with rows added, then integral."""

    def __init__(self, model: Model) -> None:
        self._model = model
        largest = np.abs(model.cost).max(initial=0.0)
        self._scale = 2.0 ** math.floor(math.log2(_LARGEST_COST / largest)) if largest else 1.0
        self._highs = _new_highs()
        self._integral = False
        program = highspy.HighsLp()
        columns = model.matrix.tocsc()
        program.num_row_, program.num_col_ = model.matrix.shape
        program.col_cost_ = model.cost * self._scale
        program.col_lower_ = np.zeros(len(model.cost))
        program.col_upper_ = model.bound
        program.row_lower_, program.row_upper_ = model.lower, model.upper
        program.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        program.a_matrix_.start_ = columns.indptr.astype(np.int32)
        program.a_matrix_.index_ = columns.indices.astype(np.int32)
        program.a_matrix_.value_ = columns.data
        self._highs.passModel(program)

    def add_rows(self, matrix: scipy.sparse.csr_array, upper: FloatArray) -> None:
        """Add rows matrix @ x <= upper; the basis stays, so that the next run starts from it."""
        self._highs.addRows(
            len(upper),
            np.full(len(upper), -np.inf),
            upper,
            matrix.nnz,
            matrix.indptr[:-1].astype(np.int32),
            matrix.indices.astype(np.int32),
            matrix.data,
        )

    def relax(self, seconds: float) -> Outcome:
        """Solve the linear relaxation."""
        return self._run(seconds)

    def solve(
        self, seconds: float, relative_gap: float, absolute_gap: float, start: IntArray | None
    ) -> Outcome:
        """Solve with integer columns, from the choices whose columns `start` lists."""
        integer = self._model.integer.astype(np.int32)
        if not self._integral:
            kinds = np.full(len(integer), int(highspy.HighsVarType.kInteger), np.uint8)
            self._highs.changeColsIntegrality(len(integer), integer, kinds)
            self._integral = True
        self._highs.setOptionValue("mip_rel_gap", relative_gap)
        self._highs.setOptionValue("mip_abs_gap", absolute_gap * self._scale)
        if start is not None:
            one = np.zeros(self._model.num_choices)
            one[start] = 1.0
            columns = np.arange(len(one), dtype=np.int32)
            self._highs.setSolution(len(one), columns, one)
        begin = time.perf_counter()
        outcome = self._run(seconds)
        if start is not None and not self._consistent(outcome):
            self._highs.clearSolver()
            outcome = self._run(seconds - (time.perf_counter() - begin))
        return outcome

    def _consistent(self, outcome: Outcome) -> bool:
        """Whether the solution costs what HiGHS says; from a start it may not (seen in 1.16)."""
        if outcome.columns is None:
            return True
        said = self._highs.getInfo().objective_function_value / self._scale
        cost = float(self._model.cost @ outcome.columns)
        return bool(abs(cost - said) <= _SAME * max(abs(cost), abs(said)))

    def _run(self, seconds: float) -> Outcome:
        self._highs.setOptionValue("time_limit", max(seconds, 1e-3))
        self._highs.run()
        status, info = self._highs.getModelStatus(), self._highs.getInfo()
        known = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
        optimal = status == highspy.HighsModelStatus.kOptimal
        bound = info.mip_dual_bound if self._integral else -math.inf
        if optimal and not self._integral:
            bound = info.objective_function_value
        solution = self._highs.getSolution()
        prices = -np.array(solution.row_dual)[len(self._model.lower) :] / self._scale
        return Outcome(
            optimal=optimal and known,
            infeasible=status in _INFEASIBLE,
            bound=bound / self._scale if math.isfinite(bound) else -math.inf,
            columns=np.array(solution.col_value) if known else None,
            prices=prices,
        )


def _new_highs() -> Any:
    with _silence:
        _swallow_banner()
        highspy.Highs.resetGlobalScheduler(True)
    highs = highspy.Highs()
    highs.setOptionValue("output_flag", False)
    highs.setOptionValue("threads", 1)
    highs.setOptionValue("parallel", "off")
    highs.setOptionValue("mip_feasibility_tolerance", 1e-9)
    return highs


@cache
def _swallow_banner() -> None:
    """Let the first constructor of the process print its banner to nowhere."""
    with _no_stdout():
        highspy.Highs()


@contextmanager
def _no_stdout() -> Iterator[None]:
    """File descriptor 1 goes to the null device; what C has buffered goes there with it."""
    flush = ctypes.CDLL(None).fflush
    sys.stdout.flush()
    flush(None)
    try:
        saved = os.dup(1)
    except OSError:  # closed: there is nothing to print to
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        flush(None)
        os.dup2(saved, 1)
        os.close(saved)
        os.close(nowhere)
