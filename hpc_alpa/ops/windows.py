"""Windows that slide over the spatial dims of (batch, *spatial, channels): for conv and pool.

Parameters of their operators: `strides`, one number a spatial dim, and `padding`, a pair (before,
after) a spatial dim.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc_alpa.errors import GraphError
from hpc_alpa.ir.op import Params

Extents = tuple[int, ...]


def window_extents(name: str, spatial: Extents, window: Extents, params: Params) -> Extents:
    """How many windows fit along each spatial dim.

    Raises:
        GraphError: strides or padding do not fit the dims, or a window lies in the padding alone.
    """
    strides, padding = params["strides"], params["padding"]
    if not len(spatial) == len(window) == len(strides) == len(padding):
        raise GraphError(
            f"{name} over {len(spatial)} spatial dims takes as many window extents, strides and "
            f"pairs of padding, not {window}, {strides} and {padding}"
        )
    for k, s, (before, after) in zip(window, strides, padding, strict=True):
        if k < 1 or s < 1 or not (0 <= before < k and 0 <= after < k):
            raise GraphError(
                f"{name} takes windows and strides of at least 1 and less padding than its window, "
                f"not window {window}, strides {strides}, padding {padding}"
            )
    rows = zip(spatial, window, strides, padding, strict=True)
    out = tuple((n + sum(p) - k) // s + 1 for n, k, s, p in rows)
    if min(out, default=1) < 1:
        raise GraphError(
            f"{name}: a window {window} does not fit into {spatial} with padding {padding}"
        )
    return out


def pad(x: Any, params: Params, value: Any) -> Any:
    """x with its spatial dims padded by a value."""
    if not any(itertools.chain(*params["padding"])):
        return x
    return np.pad(x, ((0, 0), *params["padding"], (0, 0)), constant_values=value)


def unpad(x: Any, params: Params) -> Any:
    """A view of x without the padding of its spatial dims."""
    spatial = zip(x.shape[1:-1], params["padding"], strict=True)
    return x[(slice(None), *(slice(before, n - after) for n, (before, after) in spatial))]


def padded_shape(shape: Extents, params: Params) -> Extents:
    """The shape of `pad`'s result."""
    spatial = zip(shape[1:-1], params["padding"], strict=True)
    return (shape[0], *(n + sum(p) for n, p in spatial), shape[-1])


def taps(window: Extents, windows: Extents, params: Params) -> Iterator[tuple[slice, ...]]:
    """For each element of a window in row-major order, where all windows have it in `pad`'s result.

    Args:
        windows: how many there are along each spatial dim.
    """
    strides = params["strides"]
    for tap in itertools.product(*map(range, window)):
        rows = zip(tap, windows, strides, strict=True)
        yield (slice(None), *(slice(t, t + s * (n - 1) + 1, s) for t, n, s in rows))


@dataclass(frozen=True)
class SpatialFactors:
    """A rule's text of the spatial dims, padded below, and the factors that shapes do not give.

    Windows that do not overlap and leave nothing out split with their dim: `(p0 t0^) -> p0`. Others
    reach into the next tile, so that their dim stays whole: `h0^ -> p0^`.
    """

    below: tuple[str, ...]
    above: tuple[str, ...]
    sizes: tuple[tuple[str, int], ...]

    @classmethod
    def of(
        cls, spatial: Extents, window: Extents, windows: Extents, params: Params, mark: str = ""
    ) -> SpatialFactors:
        """`mark` is what a split of windows means where neither side is the output."""
        below, above, sizes = [], [], []
        rows = zip(spatial, window, windows, params["strides"], params["padding"], strict=True)
        for d, (n, k, count, stride, padding) in enumerate(rows):
            if k <= stride and n == count * stride and not any(padding):
                below.append(f"(p{d}{mark} t{d}^)" if stride > 1 else f"p{d}{mark}")
                above.append(f"p{d}{mark}")
                sizes += [(f"p{d}", count), (f"t{d}", stride)] if stride > 1 else []
            else:
                below.append(f"h{d}^")
                above.append(f"p{d}^")
        return cls(tuple(below), tuple(above), tuple(sizes))
