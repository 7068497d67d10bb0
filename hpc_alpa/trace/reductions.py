"""NumPy's reductions as canonical operators: signatures as in NumPy, alphabetical in `ROWS`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_index, normalize_axis_tuple

from hpc_alpa.errors import TracingError
from hpc_alpa.trace.array import TracedArray
from hpc_alpa.trace.dtypes import common_dtype, reduced_dtype, require_no_promotion
from hpc_alpa.trace.shapes import broadcast_along, reshape_to

Axis = int | tuple[int, ...] | None


def axes_of(x: TracedArray, axis: Axis) -> tuple[int, ...]:
    """The dims that an `axis` argument names, rising; None names all."""
    every = range(x.ndim) if axis is None else normalize_axis_tuple(axis, x.ndim)
    return tuple(sorted(every))


def _reduce(op: str, x: TracedArray, axis: Axis, keepdims: bool = False) -> TracedArray:
    axes = axes_of(x, axis)
    if op != "reduce_sum" and any(x.shape[d] == 0 for d in axes):
        raise ValueError("a maximum or minimum of no elements does not exist")
    made = x.recording.emit(op, x, dims=axes) if axes else x
    return _kept(made, x, axis, keepdims)


def _kept(made: TracedArray, x: TracedArray, axis: Axis, keepdims: bool) -> TracedArray:
    """A reduction of x, with unit dims in the place of the reduced ones if they are kept."""
    axes = axes_of(x, axis)
    return reshape_to(made, _with_units(x, axes)) if keepdims else made


def _with_units(x: TracedArray, axes: tuple[int, ...]) -> list[int]:
    return [1 if d in axes else n for d, n in enumerate(x.shape)]


def _count(x: TracedArray, axis: Axis) -> int:
    return math.prod(x.shape[d] for d in axes_of(x, axis))


def total(
    a: TracedArray, axis: Axis = None, dtype: Any = None, out: None = None, keepdims: bool = False
) -> TracedArray:
    wanted = np.dtype(dtype) if dtype is not None else reduced_dtype("sum", a.dtype)
    return _reduce("reduce_sum", a.recording.lift(a, wanted), axis, keepdims)


def _accurate(name: str, a: TracedArray, dtype: Any) -> tuple[TracedArray, np.dtype[Any]]:
    """The array in the dtype in which a mean is computed, and the dtype of the result."""
    result = np.dtype(dtype) if dtype is not None else reduced_dtype(name, a.dtype)
    # As NumPy does for float16: the sum of 16-bit values overflows.
    wide = np.dtype(np.float32) if result.itemsize == 2 else result
    return a.recording.lift(a, wide), result


def mean(
    a: TracedArray, axis: Axis = None, dtype: Any = None, out: None = None, keepdims: bool = False
) -> TracedArray:
    x, result = _accurate("mean", a, dtype)
    s = _reduce("reduce_sum", x, axis)
    made = a.recording.lift(a.recording.emit("div", s, float(_count(a, axis))), result)
    return _kept(made, a, axis, keepdims)


def _variance(x: TracedArray, axis: Axis, ddof: float) -> TracedArray:
    count, emit = _count(x, axis), x.recording.emit
    center = emit("div", _reduce("reduce_sum", x, axis), float(count))
    dims = [d for d in range(x.ndim) if d not in axes_of(x, axis)]
    d = emit("sub", x, broadcast_along(center, x.shape, dims))
    return emit("div", _reduce("reduce_sum", emit("mul", d, d), axis), float(max(count - ddof, 0)))


def var(
    a: TracedArray, axis: Axis = None, dtype: Any = None, out: None = None, ddof: float = 0,
    keepdims: bool = False,
) -> TracedArray:  # fmt: skip
    x, result = _accurate("var", a, dtype)
    return _kept(a.recording.lift(_variance(x, axis, ddof), result), a, axis, keepdims)


def std(
    a: TracedArray, axis: Axis = None, dtype: Any = None, out: None = None, ddof: float = 0,
    keepdims: bool = False,
) -> TracedArray:  # fmt: skip
    x, result = _accurate("std", a, dtype)
    made = a.recording.emit("sqrt", _variance(x, axis, ddof))
    return _kept(a.recording.lift(made, result), a, axis, keepdims)


def _extreme(op: str) -> Callable[..., TracedArray]:
    def row(
        a: TracedArray, axis: Axis = None, out: None = None, keepdims: bool = False
    ) -> TracedArray:
        return _reduce(op, a.recording.lift(a, a.dtype), axis, keepdims)

    return row


def _truth(op: str) -> Callable[..., TracedArray]:
    def row(
        a: TracedArray, axis: Axis = None, out: None = None, keepdims: bool = False
    ) -> TracedArray:
        if 0 in (a.shape[d] for d in axes_of(a, axis)):
            shape = [n for d, n in enumerate(a.shape) if d not in axes_of(a, axis)]
            return a.recording.full(tuple(shape), op == "reduce_min", "bool")
        return _reduce(op, a.recording.lift(a, "bool"), axis, keepdims)

    return row


def count_nonzero(a: TracedArray, axis: Axis = None, *, keepdims: bool = False) -> TracedArray:
    truth = a.recording.lift(a.recording.lift(a, "bool"), "int64")
    return _reduce("reduce_sum", truth, axis, keepdims)


def _reversed_order(x: TracedArray) -> TracedArray:
    """An array whose largest element is where the smallest of x is; never overflows."""
    emit = x.recording.emit
    if x.type.is_floating:
        return emit("neg", x)
    if x.type.dtype == "bool":
        return emit("compare", x, False, direction="eq")
    return emit("sub", int(np.iinfo(x.dtype).max) if x.dtype.kind == "u" else -1, x)


def _position(smallest: bool) -> Callable[..., TracedArray]:
    def row(
        a: TracedArray, axis: int | None = None, out: None = None, *, keepdims: bool = False
    ) -> TracedArray:
        x = reshape_to(a, (a.size,)) if axis is None or not a.ndim else a
        d = 0 if axis is None else normalize_axis_index(axis, max(a.ndim, 1))
        if x.shape[d] == 0:
            raise ValueError("the position of an extreme of no elements does not exist")
        x = _reversed_order(x) if smallest else x
        made = x.recording.emit("argmax", x, dim=d)
        if not keepdims:
            return made
        kept = [1 if axis is None or k == d else n for k, n in enumerate(a.shape)]
        return reshape_to(made, kept)

    return row


def cumsum(
    a: TracedArray, axis: int | None = None, dtype: Any = None, out: None = None
) -> TracedArray:
    wanted = np.dtype(dtype) if dtype is not None else reduced_dtype("sum", a.dtype)
    x = reshape_to(a, (a.size,)) if axis is None or not a.ndim else a
    d = 0 if axis is None else normalize_axis_index(axis, x.ndim)
    return a.recording.emit("cumsum", a.recording.lift(x, wanted), dim=d)


def average(
    a: TracedArray, axis: Axis = None, weights: Any = None, *, keepdims: bool = False
) -> TracedArray:
    if weights is None:
        return mean(a, axis, keepdims=keepdims)
    if np.shape(weights) != np.shape(a):
        raise TracingError("np.average: weights of another shape; write (x * w).sum() / w.sum()")
    trace = next(x for x in (a, weights) if isinstance(x, TracedArray)).recording
    dtype = np.result_type(common_dtype([a, weights]), reduced_dtype("mean", common_dtype([a])))
    require_no_promotion(trace, "average", [a, weights], dtype)
    x, w = trace.lift(a, dtype), trace.lift(weights, dtype)
    weighted = total(trace.emit("mul", x, w), axis, keepdims=keepdims)
    return trace.emit("div", weighted, total(w, axis, keepdims=keepdims))


def ptp(a: TracedArray, axis: Axis = None, out: None = None, keepdims: bool = False) -> TracedArray:
    low, high = _reduce("reduce_min", a, axis, keepdims), _reduce("reduce_max", a, axis, keepdims)
    return a.recording.emit("sub", high, low)


def _norm(x: TracedArray, axis: Axis, keepdims: bool) -> TracedArray:
    x = x if x.type.is_floating else x.recording.lift(x, "float64")
    squares = x.recording.emit("mul", x, x)
    return x.recording.emit("sqrt", _reduce("reduce_sum", squares, axis, keepdims))


def norm(x: TracedArray, ord: Any = None, axis: Axis = None, keepdims: bool = False) -> TracedArray:
    num_axes = x.ndim if axis is None else np.size(axis)
    if not (ord is None or (ord == 2 and num_axes == 1) or (ord == "fro" and num_axes == 2)):
        raise TracingError(f"np.linalg.norm: ord {ord!r} has no operator; the 2-norm has")
    return _norm(x, axis, keepdims)


def vector_norm(
    x: TracedArray, /, *, axis: Axis = None, keepdims: bool = False, ord: Any = 2
) -> TracedArray:
    if ord != 2:
        raise TracingError(f"np.linalg.vector_norm: ord {ord!r} has no operator; the 2-norm has")
    return _norm(x, axis, keepdims)


ROWS: dict[str, Callable[..., TracedArray]] = {  # alphabetical
    "all": _truth("reduce_min"),
    "amax": _extreme("reduce_max"),
    "amin": _extreme("reduce_min"),
    "any": _truth("reduce_max"),
    "argmax": _position(smallest=False),
    "argmin": _position(smallest=True),
    "average": average,
    "count_nonzero": count_nonzero,
    "cumsum": cumsum,
    "linalg.norm": norm,
    "linalg.vector_norm": vector_norm,
    "max": _extreme("reduce_max"),
    "mean": mean,
    "min": _extreme("reduce_min"),
    "ptp": ptp,
    "std": std,
    "sum": total,
    "var": var,
}
