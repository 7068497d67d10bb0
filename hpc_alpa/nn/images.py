"""Functions of images and other grids: x is (batch, *spatial, channels), one spatial dim or more.

Padding is "valid" (none), "same" (as many windows as strides fit, the odd one behind), a number for
all sides, or a pair (before, after) for each spatial dim; less than a window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hpc_alpa.errors import TracingError
from hpc_alpa.trace import apply

Extent = int | Sequence[int]
Padding = str | int | Sequence[tuple[int, int]]


def conv(x: Any, w: Any, stride: Extent = 1, padding: Padding = "same") -> Any:
    """Convolution without a bias; windows are not flipped (cross-correlation).

    Args:
        x: (batch, *spatial, channels), floating.
        w: (*window, channels / groups, out), of x's dtype. The number of groups follows from the
            shapes: group g of the outputs reads group g of the channels.
        stride: one number, or one for each spatial dim.

    Returns:
        (batch, *windows, out).
    """
    window = np.shape(w)[:-2]
    return apply("conv", x, w, **_sliding("conv", x, window, stride, padding))


def conv2d(x: Any, w: Any, stride: Extent = 1, padding: Padding = "same") -> Any:
    """`conv` of x (batch, height, width, channels) by w (rows, columns, channels / groups, out)."""
    if np.ndim(x) != 4 or np.ndim(w) != 4:
        raise TracingError(
            "conv2d takes x (batch, height, width, channels) and w (rows, columns, channels, out), "
            f"not shapes {np.shape(x)} and {np.shape(w)}; conv takes other numbers of spatial dims"
        )
    return conv(x, w, stride, padding)


def max_pool(
    x: Any, window: Extent, stride: Extent | None = None, padding: Padding = "valid"
) -> Any:
    """The largest element of each window; the gradient goes to the first of equal ones.

    Args:
        window, stride: one number, or one for each spatial dim; the stride is the window if None.
    """
    return _pool("max", x, window, stride, padding)


def avg_pool(
    x: Any, window: Extent, stride: Extent | None = None, padding: Padding = "valid"
) -> Any:
    """The mean of each window; padding counts as zeros. Arguments as of `max_pool`."""
    extents = _each("avg_pool", "window", window, np.ndim(x) - 2)
    total = _pool("sum", x, extents, stride, padding)
    return total * total.dtype.type(1 / math.prod(extents))


def _pool(kind: str, x: Any, window: Extent, stride: Extent | None, padding: Padding) -> Any:
    name = "max_pool" if kind == "max" else "avg_pool"
    extents = _each(name, "window", window, np.ndim(x) - 2)
    params = _sliding(name, x, extents, extents if stride is None else stride, padding)
    return apply("pool", x, kind=kind, window=extents, **params)


def _each(name: str, what: str, given: Extent, count: int) -> tuple[int, ...]:
    """One number for each spatial dim."""
    numbers = (given,) * max(count, 0) if isinstance(given, int) else tuple(map(int, given))
    if len(numbers) != count:
        raise TracingError(
            f"{name}: {what} {given!r} is for {len(numbers)} spatial dims, x has {max(count, 0)}"
        )
    return numbers


def _sliding(
    name: str, x: Any, window: tuple[int, ...], stride: Extent, padding: Padding
) -> dict[str, Any]:
    """The parameters `strides` and `padding` of the operators."""
    spatial = np.shape(x)[1:-1]
    strides = _each(name, "stride", stride, len(spatial))
    if isinstance(padding, int):
        pairs = ((padding, padding),) * len(spatial)
    elif padding == "valid":
        pairs = ((0, 0),) * len(spatial)
    elif padding == "same" and len(window) == len(spatial):
        pairs = tuple(map(_same, spatial, window, strides))
    elif isinstance(padding, str):
        raise TracingError(
            f"{name}: a window of {len(window)} dims with padding {padding!r} on x of shape "
            f"{np.shape(x)}; padding is 'same', 'valid', a number or a pair for each spatial dim"
        )
    else:
        pairs = tuple((int(before), int(after)) for before, after in padding)
    return {"strides": strides, "padding": pairs}


def _same(extent: int, window: int, stride: int) -> tuple[int, int]:
    """Padding with which ceil(extent / stride) windows fit."""
    missing = max((-(-extent // stride) - 1) * stride + window - extent, 0)
    return missing // 2, missing - missing // 2
