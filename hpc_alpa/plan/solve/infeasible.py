"""Why a choice program has no assignment: which limit is missed, by how much, the nearest fit."""

from dataclasses import replace

import numpy as np
import scipy.sparse

from hpc_alpa.errors import InfeasibleError
from hpc_alpa.plan.solve.lazy import LazyProgram
from hpc_alpa.plan.solve.model import Model, build
from hpc_alpa.plan.solve.problem import (
    FloatArray,
    Problem,
    Window,
    complete,
    evaluate,
    needed_cells,
)

_SECONDS = 20.0  # for each of the programs below
_GAP = 1e-6


def explain(problem: Problem, model: Model) -> InfeasibleError:
    """The error for a problem without ties that HiGHS proved infeasible."""
    if problem.rows:
        error = _explain_memory(problem, model)
        if error is not None:
            return error
    return _explain_conversions(problem)


def _explain_memory(problem: Problem, model: Model) -> InfeasibleError | None:
    """Minimise the largest relative excess over all limits; None if the rows are not to blame."""
    scale = np.where(problem.limits > 0, problem.limits, 1.0)
    slack = scipy.sparse.csr_array(-scale[:, None])
    elastic = replace(
        model,
        cost=np.append(np.zeros_like(model.cost), 1.0),
        bound=np.append(model.bound, np.inf),
        matrix=scipy.sparse.hstack(
            [model.matrix, scipy.sparse.csr_array((model.matrix.shape[0], 1))], format="csr"
        ),
        memory=scipy.sparse.hstack([model.memory, slack], format="csr"),
    )
    columns, _ = _minimise(elastic)
    if columns is None:
        return None
    nearest = _memory(problem, columns)
    worst = int((nearest / scale - problem.limits / scale).argmax())
    row = problem.rows[worst]

    alone, least = _minimise(
        replace(
            model,
            cost=model.memory[[worst]].toarray().ravel(),
            memory=model.memory[:0],
            limits=model.limits[:0],
        )
    )
    if least > row.limit:
        missing = _bytes(least - row.limit)
        why = f"every choice needs at least {_bytes(least)}, {missing} too many"
    elif alone is not None and _memory(problem, alone)[worst] <= row.limit:
        why = f"it can be met alone, with {_bytes(least)}, but not together with the other limits"
    else:
        why = f"the best that was found misses it by {_bytes(nearest[worst] - row.limit)}"
    over = [
        f"{r.name!r} {_bytes(n)} of {_bytes(r.limit)}"
        for r, n in zip(problem.rows, nearest, strict=True)
        if n > r.limit
    ]
    listed = ", ".join(over[:3]) + (f" and {len(over) - 3} more" if len(over) > 3 else "")
    return InfeasibleError(
        f"memory limit {row.name!r} of {_bytes(row.limit)} cannot be met: {why}.\n"
        f"  nearest fit: {listed}\n"
        f"  Raise the limit to {_bytes(nearest[worst])}, use more devices, or smaller "
        "microbatches.",
        missing=float(nearest[worst] - row.limit),
    )


def _explain_conversions(problem: Problem) -> InfeasibleError:
    """Count forbidden conversions at one each: the fewest that some assignment needs, by name."""
    values = tuple(
        replace(value, conversion=np.where(np.isfinite(value.conversion), 0.0, 1.0), holdable=False)
        for value in problem.values
    )
    free = tuple(np.zeros_like(cost) for cost in problem.costs)
    counted = Problem(free, values, names=problem.names)
    columns, _ = _minimise(build(counted))
    if columns is None:
        return InfeasibleError("no assignment was found without forbidden conversions")
    choices = _choices(problem, columns)
    cells = np.concatenate([needed_cells(problem, choices, window) for window in Window])
    owners = np.searchsorted(problem.cell_offset, cells, side="right") - 1
    conversion = np.concatenate([value.conversion.ravel() for value in problem.values])
    wrong = sorted({problem.values[k].name for k in owners[np.isinf(conversion[cells])]})
    return InfeasibleError(
        "every assignment needs a forbidden conversion; the nearest fit those of "
        f"{', '.join(wrong)}. Allow one of them, or other choices of the nodes around these values"
    )


def _minimise(model: Model) -> tuple[FloatArray | None, float]:
    """Columns of the best solution in the time, and the bound."""
    outcome, bound = LazyProgram(model).solve(_SECONDS, _GAP, 0.0, None)
    return outcome.columns, bound


def _choices(problem: Problem, columns: FloatArray) -> list[int]:
    share = np.split(columns[: problem.choice_offset[-1]], problem.choice_offset[1:-1])
    return [int(part.argmax()) for part in share]


def _memory(problem: Problem, columns: FloatArray) -> FloatArray:
    """Bytes per row of the choices; of copies that might be held, none is."""
    return evaluate(problem, complete(problem, _choices(problem, columns))).memory


def _bytes(number: float) -> str:
    return f"{number:,.0f} bytes"
