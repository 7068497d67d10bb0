"""NumPy's reshapes, transposes and broadcasts: signatures as in NumPy, alphabetical in `ROWS`."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_index, normalize_axis_tuple

from hpc_alpa.errors import TracingError
from hpc_alpa.trace.array import TracedArray
from hpc_alpa.trace.recording import recording_of
from hpc_alpa.trace.shapes import (
    broadcast_along,
    broadcast_to,
    reshape_to,
    transpose_to,
)

Axes = int | Sequence[int]


# ---------------------------------------------------------------------------------------- reshapes
def reshape(
    a: TracedArray, /, shape: Any = None, order: str = "C", *, newshape: Any = None,
    copy: Any = None,
) -> TracedArray:  # fmt: skip
    _only_c(order)
    return reshape_to(a, filled_shape(a, newshape if shape is None else shape))


def _only_c(order: str) -> None:
    if order not in ("C", "K", "A"):
        raise TracingError(
            f"order {order!r}: traced arrays are in row-major order; transpose first"
        )


def filled_shape(x: TracedArray, shape: Any) -> tuple[int, ...]:
    """A shape argument as a tuple, with one -1 filled in."""
    several = isinstance(shape, Iterable)
    dims = tuple(operator.index(d) for d in (shape if several else (shape,)))
    rest = math.prod(d for d in dims if d != -1)
    if dims.count(-1) == 1 and rest and x.size % rest == 0:
        dims = tuple(x.size // rest if d == -1 else d for d in dims)
    if -1 in dims or math.prod(dims) != x.size:
        raise ValueError(f"cannot reshape {x.type} into shape {dims}")
    return dims


def ravel(a: TracedArray, order: str = "C") -> TracedArray:
    _only_c(order)
    return reshape_to(a, (a.size,))


def expand_dims(a: TracedArray, axis: Axes) -> TracedArray:
    count = a.ndim + (1 if isinstance(axis, int) else len(axis))
    new = normalize_axis_tuple(axis, count)
    old = iter(a.shape)
    return reshape_to(a, [1 if d in new else next(old) for d in range(count)])


def squeeze(a: TracedArray, axis: Axes | None = None) -> TracedArray:
    units = [d for d, n in enumerate(a.shape) if n == 1]
    chosen = units if axis is None else list(normalize_axis_tuple(axis, a.ndim))
    if set(chosen) - set(units):
        raise ValueError(f"squeeze of {a.type}: only dims of extent 1 can go, not {axis}")
    return reshape_to(a, [n for d, n in enumerate(a.shape) if d not in chosen])


def atleast(ndim: int) -> Callable[..., Any]:
    def one(x: Any) -> Any:
        if not isinstance(x, TracedArray):
            return getattr(np, f"atleast_{ndim}d")(x)
        if x.ndim >= ndim:
            return x
        if ndim == 3:  # (1, N, 1) and (M, N, 1), as NumPy
            return reshape_to(
                x, (1, *x.shape, 1) if x.ndim == 1 else (*x.shape, *(1,) * (3 - x.ndim))
            )
        return reshape_to(x, (1,) * (ndim - x.ndim) + x.shape)

    def row(*arrays: Any) -> Any:
        return one(arrays[0]) if len(arrays) == 1 else tuple(map(one, arrays))

    return row


# -------------------------------------------------------------------------------------- transposes
def transpose(a: TracedArray, axes: Axes | None = None) -> TracedArray:
    perm = range(a.ndim)[::-1] if axes is None else normalize_axis_tuple(axes, a.ndim)
    if len(perm) != a.ndim:
        raise ValueError(f"axes {axes} do not match the dims of {a.type}")
    return transpose_to(a, perm)


def swapaxes(a: TracedArray, axis1: int, axis2: int) -> TracedArray:
    perm = list(range(a.ndim))
    i, j = normalize_axis_index(axis1, a.ndim), normalize_axis_index(axis2, a.ndim)
    perm[i], perm[j] = j, i
    return transpose_to(a, perm)


def moveaxis(a: TracedArray, source: Axes, destination: Axes) -> TracedArray:
    src, dst = normalize_axis_tuple(source, a.ndim), normalize_axis_tuple(destination, a.ndim)
    if len(src) != len(dst):
        raise ValueError("moveaxis takes as many sources as destinations")
    perm = [d for d in range(a.ndim) if d not in src]
    for d, s in sorted(zip(dst, src)):
        perm.insert(d, s)
    return transpose_to(a, perm)


def matrix_transpose(x: TracedArray, /) -> TracedArray:
    if x.ndim < 2:
        raise ValueError(f"matrix_transpose takes at least two dims, not {x.type}")
    return swapaxes(x, -1, -2)


# -------------------------------------------------------------------------------------- broadcasts
def _broadcast_to(array: TracedArray, shape: Any, subok: bool = False) -> TracedArray:
    return broadcast_to(array, (shape,) if isinstance(shape, int) else tuple(shape))


def broadcast_arrays(*args: Any, subok: bool = False) -> tuple[TracedArray, ...]:
    shape, trace = np.broadcast_shapes(*map(np.shape, args)), recording_of(*args)
    return tuple(broadcast_to(trace.lift(x), shape) for x in args)


def repeat(a: TracedArray, repeats: int, axis: int | None = None) -> TracedArray:
    if not isinstance(repeats, (int, np.integer)):
        raise TracingError(
            "np.repeat: repeats is one Python int; a count per element is not static"
        )
    x = reshape_to(a, (a.size,)) if axis is None else a
    d = 0 if axis is None else normalize_axis_index(axis, x.ndim)
    lead, tail = x.shape[: d + 1], x.shape[d + 1 :]
    dims = [k if k <= d else k + 1 for k in range(x.ndim)]
    spread_out = broadcast_along(x, (*lead, int(repeats), *tail), dims)
    return reshape_to(spread_out, (*x.shape[:d], x.shape[d] * int(repeats), *tail))


def tile(A: TracedArray, reps: Any) -> TracedArray:
    counts = (reps,) if isinstance(reps, int) else tuple(reps)
    ndim = max(A.ndim, len(counts))
    counts = (1,) * (ndim - len(counts)) + counts
    x = reshape_to(A, (1,) * (ndim - A.ndim) + A.shape)
    wide = [n for pair in zip(counts, x.shape) for n in pair]
    spread_out = broadcast_along(x, wide, range(1, 2 * ndim, 2))
    return reshape_to(spread_out, [c * n for c, n in zip(counts, x.shape)])


ROWS: dict[str, Callable[..., Any]] = {  # alphabetical
    "atleast_1d": atleast(1),
    "atleast_2d": atleast(2),
    "atleast_3d": atleast(3),
    "broadcast_arrays": broadcast_arrays,
    "broadcast_to": _broadcast_to,
    "expand_dims": expand_dims,
    "linalg.matrix_transpose": matrix_transpose,
    "matrix_transpose": matrix_transpose,
    "moveaxis": moveaxis,
    "ravel": ravel,
    "repeat": repeat,
    "reshape": reshape,
    "squeeze": squeeze,
    "swapaxes": swapaxes,
    "tile": tile,
    "transpose": transpose,
}
