"""NumPy's joins, splits, pads and triangles: signatures as in NumPy, alphabetical in `ROWS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_index, normalize_axis_tuple

from hpc_alpa.errors import TracingError
from hpc_alpa.trace.array import TracedArray
from hpc_alpa.trace.dtypes import common_dtype, require_no_promotion
from hpc_alpa.trace.elementwise import compare, select
from hpc_alpa.trace.movement import Axes, atleast, expand_dims, ravel, squeeze
from hpc_alpa.trace.recording import recording_of
from hpc_alpa.trace.shapes import broadcast_to, padded, reshape_to, window


def joined(name: str, arrays: Sequence[Any]) -> list[TracedArray]:
    """Operands that become one array: lifted to their common dtype."""
    arrays = [x if isinstance(x, TracedArray) else np.asarray(x) for x in arrays]
    dtype = common_dtype(arrays)
    trace = recording_of(*arrays)
    require_no_promotion(trace, name, arrays, dtype)
    return [trace.lift(x, dtype) for x in arrays]


def concatenate(
    arrays: Sequence[Any], /, axis: int | None = 0, out: None = None, *, dtype: Any = None
) -> TracedArray:
    xs = joined("concatenate", arrays) if dtype is None else None
    if xs is None:
        xs = [recording_of(*arrays).lift(x, dtype) for x in arrays]
    if axis is None:
        xs, axis = [ravel(x) for x in xs], 0
    d = normalize_axis_index(axis, xs[0].ndim)
    return xs[0] if len(xs) == 1 else xs[0].recording.emit("concatenate", *xs, dim=d)


def stack(
    arrays: Sequence[Any], axis: int = 0, out: None = None, *, dtype: Any = None
) -> TracedArray:
    trace = recording_of(*arrays)
    shapes = {np.shape(x) for x in arrays}
    if len(shapes) != 1:
        raise ValueError(f"stack takes arrays of one shape, not {sorted(shapes)}")
    expanded = [
        expand_dims(x, axis) if isinstance(x, TracedArray) else np.expand_dims(x, axis)
        for x in arrays
    ]
    made = concatenate(expanded, axis, dtype=dtype)
    return trace.own(made)


def _stacked(name: str, axis: int, ndim: int) -> Callable[..., TracedArray]:
    def row(tup: Sequence[Any], *, dtype: Any = None) -> TracedArray:
        raised = [atleast(ndim)(x) for x in tup]
        along = 0 if name == "hstack" and raised[0].ndim == 1 else axis
        return concatenate(raised, along, dtype=dtype)

    return row


def array_split(ary: TracedArray, indices_or_sections: Any, axis: int = 0) -> list[TracedArray]:
    d = normalize_axis_index(axis, ary.ndim)
    extent = ary.shape[d]
    # Where NumPy itself cuts a line of that length.
    cuts = np.array_split(np.arange(extent), indices_or_sections)
    parts, start = [], 0
    for cut in cuts:
        start = int(cut[0]) if len(cut) else start
        shape = [len(cut) if k == d else n for k, n in enumerate(ary.shape)]
        starts = [min(start, extent - len(cut)) if k == d else 0 for k in range(ary.ndim)]
        parts.append(window(ary, starts, shape))
        start += len(cut)
    return parts


def split(ary: TracedArray, indices_or_sections: Any, axis: int = 0) -> list[TracedArray]:
    if isinstance(indices_or_sections, int) and ary.shape[axis] % indices_or_sections:
        raise ValueError(f"{ary.type} does not split into {indices_or_sections} equal parts")
    return array_split(ary, indices_or_sections, axis)


def _split_along(axis: int, ndim: int) -> Callable[..., list[TracedArray]]:
    def row(ary: TracedArray, indices_or_sections: Any) -> list[TracedArray]:
        if ary.ndim < ndim:
            raise ValueError(f"this split takes at least {ndim} dims, not {ary.type}")
        first = 0 if axis == 1 and ary.ndim == 1 else axis
        return split(ary, indices_or_sections, first)

    return row


def unstack(x: TracedArray, /, *, axis: int = 0) -> tuple[TracedArray, ...]:
    return tuple(squeeze(part, axis) for part in split(x, x.shape[axis], axis))


def roll(a: TracedArray, shift: Any, axis: Axes | None = None) -> TracedArray:
    if axis is None:
        return reshape_to(roll(ravel(a), shift, 0), a.shape)
    axes = normalize_axis_tuple(axis, a.ndim, allow_duplicate=True)
    shifts = np.broadcast_to(shift, (len(axes),))
    for d, s in zip(axes, shifts):
        cut = a.shape[d] - int(s) % a.shape[d] if a.shape[d] else 0
        if cut not in (0, a.shape[d]):
            head, tail = array_split(a, [cut], d)
            a = concatenate([tail, head], d)
    return a


def pad(
    array: TracedArray, pad_width: Any, mode: str = "constant", *, constant_values: Any = 0
) -> TracedArray:
    if mode != "constant" or not (isinstance(constant_values, int) and constant_values == 0):
        raise TracingError("np.pad pads with constant zeros; use np.concatenate for other values")
    widths = np.broadcast_to(pad_width, (array.ndim, 2)).tolist()
    shape = [b + n + a for n, (b, a) in zip(array.shape, widths)]
    return padded(array, [b for b, _ in widths], shape)


def _triangle(direction: str) -> Callable[..., TracedArray]:
    def row(m: TracedArray, k: int = 0) -> TracedArray:
        x = m if m.ndim > 1 else broadcast_to(m, (m.size, m.size))
        square, emit = x.type.with_shape(x.shape[-2:]).with_dtype("int64"), x.recording.emit
        diagonal = emit("add", emit("iota", type=square, dim=0), int(k))
        mask = compare(diagonal, emit("iota", type=square, dim=1), direction)
        zero = x.recording.constant(0, x.type.dtype)
        return select(broadcast_to(mask, x.shape), x, zero)

    return row


def diff(a: TracedArray, n: int = 1, axis: int = -1) -> TracedArray:
    d = normalize_axis_index(axis, a.ndim)
    for _ in range(n):
        shape = [m - 1 if k == d else m for k, m in enumerate(a.shape)]
        later = window(a, [1 if k == d else 0 for k in range(a.ndim)], shape)
        earlier = window(a, [0] * a.ndim, shape)
        changed = a.type.dtype == "bool"
        a = compare(later, earlier, "ne") if changed else a.recording.emit("sub", later, earlier)
    return a


ROWS: dict[str, Callable[..., Any]] = {  # alphabetical
    "array_split": array_split,
    "concatenate": concatenate,
    "diff": diff,
    "dsplit": _split_along(2, 3),
    "dstack": _stacked("dstack", 2, 3),
    "hsplit": _split_along(1, 1),
    "hstack": _stacked("hstack", 1, 1),
    "pad": pad,
    "roll": roll,
    "split": split,
    "stack": stack,
    "tril": _triangle("ge"),
    "triu": _triangle("le"),
    "unstack": unstack,
    "vsplit": _split_along(0, 2),
    "vstack": _stacked("vstack", 0, 2),
}
