"""`x[...]` and NumPy's functions that read at positions."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_index

from hpc_alpa.errors import TracingError
from hpc_alpa.ir import TensorType
from hpc_alpa.trace.array import TracedArray
from hpc_alpa.trace.dtypes import common_dtype, require_no_promotion
from hpc_alpa.trace.elementwise import compare, select
from hpc_alpa.trace.movement import moveaxis
from hpc_alpa.trace.recording import Recording, recording_of
from hpc_alpa.trace.shapes import broadcast_to, reshape_to, spread, window


# ---------------------------------------------------------------------------------- rows of a table
def _rows(x: TracedArray, indices: TracedArray) -> TracedArray:
    """x[indices] for indices into dim 0 that are in range."""
    rest = x.shape[1:]
    table = reshape_to(x, (x.shape[0], int(np.prod(rest, dtype=np.int64))))
    made = x.recording.emit("gather", table, indices)
    return reshape_to(made, (*indices.shape, *rest))


def _in_range(trace: Recording, index: Any, extent: int) -> TracedArray | np.ndarray:
    """Indices with negative ones counted from the end. Those of a plain array are checked."""
    if isinstance(index, TracedArray):
        _require_integers(index)
        # A small index dtype may not hold the extent itself.
        traced = trace.lift(index, None if index.dtype.itemsize > 2 else "int64")
        if traced.dtype.kind == "u":
            return traced
        fixed = trace.emit("add", traced, extent)
        return select(compare(traced, 0, "lt"), fixed, traced)
    plain = np.asarray(index)
    _require_integers(plain)
    if ((plain < -extent) | (plain >= extent)).any():
        raise IndexError(f"index out of bounds for a dim of extent {extent}")
    return np.where(plain < 0, plain + extent, plain).astype(np.int64)


def _require_integers(index: Any) -> None:
    if index.dtype.kind == "b":
        raise TracingError(
            "a boolean mask as an index: the shape of the result would depend on values; write "
            "np.where(mask, x, 0)"
        )
    if index.dtype.kind not in "iu":
        raise IndexError(f"indices are integers, not {index.dtype}")


def take_along(x: TracedArray, index: Any, axis: int) -> TracedArray:
    """Elements at integer indices along one dim; their dims take its place."""
    found = _in_range(x.recording, index, x.shape[axis])
    if isinstance(found, np.ndarray) and _is_run(found):
        starts = [int(found[0]) if d == axis else 0 for d in range(x.ndim)]
        return window(x, starts, [len(found) if d == axis else n for d, n in enumerate(x.shape)])
    indices = x.recording.lift(found)
    made = _rows(moveaxis(x, axis, 0), indices)
    new = tuple(range(indices.ndim))
    return moveaxis(made, new, tuple(axis + k for k in new))


def _is_run(index: np.ndarray) -> bool:
    """A plain slice in disguise, `np.arange(n)`."""
    return index.ndim == 1 and len(index) > 0 and bool((np.diff(index) == 1).all())


def _strided(x: TracedArray, axis: int, start: int, count: int, step: int) -> TracedArray:
    """Every step-th element, by a gather at counted positions."""
    emit = x.recording.emit
    counted = emit("iota", type=TensorType((count,), "int64"), dim=0)
    positions = emit("add", emit("mul", counted, step), start)
    return moveaxis(_rows(moveaxis(x, axis, 0), positions), 0, axis)


# ---------------------------------------------------------------------------------------- x[...]
@dataclass(frozen=True)
class _Advanced:
    """An index array, and the dim of the sliced array that it reads."""

    dim: int
    index: Any


def getitem(trace: Recording, x: TracedArray, key: Any) -> TracedArray:
    """`x[key]` as NumPy, for ints, slices, None, Ellipsis and adjacent integer arrays."""
    items = _complete(key if isinstance(key, tuple) else (key,), x)
    starts, shape, strides = [0] * x.ndim, list(x.shape), []
    result: list[int] = []
    advanced: list[_Advanced] = []
    groups: list[bool] = []  # for each item, whether it is an index array or a number
    d = 0
    for item in items:
        groups.append(_is_index(item))
        if item is None:
            result.append(1)
            continue
        n = x.shape[d]
        if isinstance(item, slice):
            start, stop, step = item.indices(n)
            count = len(range(start, stop, step))
            if step == 1:
                starts[d], shape[d] = (start if count else 0), count
            else:
                strides.append((d, start, count, step))
                shape[d] = n
            result.append(count)
        elif _is_static(item):
            i = operator.index(item)
            if not -n <= i < n:
                raise IndexError(f"index {i} is out of bounds for dim {d} of {x.type}")
            starts[d], shape[d] = i % n, 1
        else:
            advanced.append(_Advanced(len(result), item))
            result.append(n)
        d += 1
    x = window(x, starts, shape)
    for d, start, count, step in strides:
        x = _strided(x, d, start, count, step)
    x = reshape_to(x, result)
    return _advanced(x, advanced, groups) if advanced else x


def _is_index(item: Any) -> bool:
    return item is not None and not isinstance(item, slice)


def _is_static(item: Any) -> bool:
    """A number that is known while tracing."""
    return not isinstance(item, TracedArray) and np.ndim(item) == 0


def _complete(key: tuple[Any, ...], x: TracedArray) -> list[Any]:
    """One item for each dim, and None for each new one."""
    items = [np.asarray(i) if isinstance(i, list) else i for i in key]
    for item in items:
        if isinstance(item, (bool, np.bool_)) or getattr(item, "dtype", None) == np.bool_:
            _require_integers(np.asarray(item) if not isinstance(item, TracedArray) else item)
    used = sum(1 for i in items if i is not None and i is not Ellipsis)
    if used > x.ndim:
        raise IndexError(f"{used} indices for {x.type}")
    dots = [k for k, i in enumerate(items) if i is Ellipsis]
    if len(dots) > 1:
        raise IndexError("an index has at most one Ellipsis")
    where = dots[0] if dots else len(items)
    return [*items[:where], *[slice(None)] * (x.ndim - used), *items[where + len(dots) :]]


def _advanced(x: TracedArray, found: Sequence[_Advanced], groups: Sequence[bool]) -> TracedArray:
    """Index arrays; several must stand side by side, and are joined into one linear index."""
    dims = [a.dim for a in found]
    if dims != list(range(dims[0], dims[0] + len(dims))):
        raise TracingError(
            "index arrays with a slice between them; transpose the array so that they are adjacent"
        )
    picked = _picked(x, found)
    if picked is not None:
        return picked
    axis, index = dims[0], found[0].index
    if len(found) > 1:
        index = _linear(x, found)
        merged = int(np.prod([x.shape[d] for d in dims]))
        x = reshape_to(x, (*x.shape[:axis], merged, *x.shape[axis + len(dims) :]))
    made = take_along(x, index, axis)
    first, last = groups.index(True), len(groups) - 1 - list(groups)[::-1].index(True)
    if all(groups[first : last + 1]):
        return made
    # NumPy puts the dims of index arrays first when a slice separates them; a number counts as one.
    new = tuple(range(axis, axis + made.ndim - x.ndim + 1))
    return moveaxis(made, new, tuple(range(len(new))))


def _linear(x: TracedArray, found: Sequence[_Advanced]) -> TracedArray | np.ndarray:
    trace = x.recording
    parts = [_in_range(trace, a.index, x.shape[a.dim]) for a in found]
    if not any(isinstance(p, TracedArray) for p in parts):
        plain = np.broadcast_arrays(*parts)
        linear: np.ndarray = np.ravel_multi_index(plain, [x.shape[a.dim] for a in found])
        return linear
    traced = spread([trace.lift(p, "int64") for p in parts])
    total = traced[0]
    for a, part in zip(found[1:], traced[1:]):
        total = trace.emit("add", trace.emit("mul", total, x.shape[a.dim]), part)
    return total


def _picked(x: TracedArray, found: Sequence[_Advanced]) -> TracedArray | None:
    """`x[np.arange(n), labels]`, the logit of the label, has its own operator."""
    if x.ndim != 2 or len(found) != 2 or isinstance(found[0].index, TracedArray):
        return None
    rows, labels = found[0].index, found[1].index
    if np.shape(labels) != x.shape[:1] or not np.array_equal(rows, np.arange(x.shape[0])):
        return None
    columns = x.recording.lift(_in_range(x.recording, labels, x.shape[1]))
    return x.recording.emit("pick", x, columns)


# -------------------------------------------------------------------------------------- functions
def take(
    a: TracedArray, indices: Any, axis: int | None = None, out: None = None, mode: str = "raise"
) -> TracedArray:
    if mode != "raise":
        raise TracingError(f"np.take: mode {mode!r} has no operator; use np.clip on the indices")
    x = reshape_to(a, (a.size,)) if axis is None else a
    d = 0 if axis is None else normalize_axis_index(axis, x.ndim)
    index = indices if isinstance(indices, TracedArray) else np.asarray(indices)
    return take_along(x, index, d)


def take_along_axis(arr: TracedArray, indices: Any, axis: int | None = -1) -> TracedArray:
    trace = recording_of(arr, indices)
    x = trace.lift(arr)
    if axis is None:
        x, axis = reshape_to(x, (x.size,)), 0
    d = normalize_axis_index(axis, x.ndim)
    index = trace.lift(_in_range(trace, indices, x.shape[d]))
    x, index = moveaxis(x, d, -1), moveaxis(index, d, -1)
    lead = np.broadcast_shapes(x.shape[:-1], index.shape[:-1])
    x = broadcast_to(x, (*lead, x.shape[-1]))
    index = broadcast_to(index, (*lead, index.shape[-1]))
    count, rows = index.shape[-1], int(np.prod(lead, dtype=np.int64))
    columns = reshape_to(index, (rows, count))
    table = reshape_to(x, (rows, x.shape[-1]))
    picks = [
        trace.emit("pick", table, reshape_to(window(columns, (0, k), (rows, 1)), (rows,)))
        for k in range(count)
    ]
    return moveaxis(reshape_to(_beside(picks), (*lead, count)), -1, d)


def _beside(columns: Sequence[TracedArray]) -> TracedArray:
    if len(columns) == 1:
        return columns[0]
    units = [reshape_to(c, (*c.shape, 1)) for c in columns]
    return columns[0].recording.emit("concatenate", *units, dim=1)


def where(condition: Any, x: Any = None, y: Any = None, /) -> TracedArray:
    if x is None or y is None:
        raise TracingError("np.where(condition) alone: its shape depends on values; pass x and y")
    trace = recording_of(condition, x, y)
    dtype = common_dtype([x, y])
    require_no_promotion(trace, "where", [x, y], dtype)
    mask, a, b = spread([trace.lift(condition, "bool"), trace.lift(x, dtype), trace.lift(y, dtype)])
    return select(mask, a, b)


def _reversed(*axes: int) -> Callable[[TracedArray], TracedArray]:
    return lambda m: flip(m, axes)


def flip(m: TracedArray, axis: Any = None) -> TracedArray:
    axes = range(m.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    for a in axes:
        d = normalize_axis_index(a, m.ndim)
        m = _strided(m, d, m.shape[d] - 1, m.shape[d], -1)
    return m


ROWS: dict[str, Callable[..., TracedArray]] = {  # alphabetical
    "flip": flip,
    "fliplr": _reversed(1),
    "flipud": _reversed(0),
    "take": take,
    "take_along_axis": take_along_axis,
    "where": where,
}
