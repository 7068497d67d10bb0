"""Windows that slide over the spatial dims of (batch, *spatial, channels): for conv and pool.

Parameters of their operators: `strides`, one number a spatial dim, and `padding`, a pair (before,
after) a spatial dim.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
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


# What an operand needs of its neighbours' tiles where windows reach over their borders:
#   below  rows of x, for the windows of its own tile
#   above  windows of y, for the rows of its own tile
#   both   rows of x, for all windows that a row of its own tile is in
#   none   its own tile is enough
NEEDS = ("above", "below", "both", "none")


def halo(need: str, window: int, stride: int, before: int) -> tuple[int, int]:
    """Rows before and after a tile that an operand needs: of x, or windows of y for `above`.

    A tile of windows from p on starts at row p * stride of x and has stride rows for each window;
    `before` is the padding before the dim.
    """
    above = (window - 1 - before) // stride, -(-before // stride)
    return {
        "above": above,
        "below": (before, window - stride - before),
        "both": (above[0] * stride + before, (above[1] - 1) * stride + window - before),
        "none": (0, 0),
    }[need]


def _fewest(needs: Iterable[str], window: int, stride: int, before: int) -> int:
    """Windows that a tile has at least, so that only direct neighbours are needed."""
    fewest = 1
    for need in needs:
        rows = max(halo(need, window, stride, before))
        fewest = max(fewest, rows if need == "above" else -(-rows // stride))
    return fewest


@dataclass(frozen=True)
class SpatialFactors:
    """A rule's text of the spatial dims, padded below, and the factors that shapes do not give.

    Windows that do not overlap and leave nothing out split with their dim: `(p0 t0^) -> p0`, with
    t0 rows a window. Windows that reach into the next tile run with rows of both neighbours, in
    phases: `(p0! v0^ t0^) -> (p0! v0^)`, with at least v0 windows a tile. Where the rows are no
    multiple of the windows, the dim stays whole: `h0^ -> p0^`.
    """

    below: tuple[str, ...]
    above: tuple[str, ...]
    sizes: tuple[tuple[str, int], ...]

    @classmethod
    def of(
        cls,
        spatial: Extents,
        window: Extents,
        windows: Extents,
        params: Params,
        needs: tuple[str, ...],
        mark: str = "",
    ) -> SpatialFactors:
        """The factors of an operator.

        Args:
            needs: of its operands that are in tiles, in `NEEDS`.
            mark: what a split of windows means where they are not in the output.
        """
        below, above, sizes = [], [], []
        rows = zip(spatial, window, windows, params["strides"], params["padding"], strict=True)
        for d, (n, k, count, stride, (before, after)) in enumerate(rows):
            overlaps = k > stride or before > 0 or after > 0
            if n != count * stride or (overlaps and k < stride + before):
                below.append(f"h{d}^")
                above.append(f"p{d}^")
                continue
            fewest = _fewest(needs, k, stride, before) if overlaps else 1
            least = next(v for v in range(fewest, count + fewest) if count % v == 0 or v > count)
            unit = min(least, count)
            factors = [(f"p{d}{'!' if overlaps else ''}{mark}", count // unit)]
            factors += [(f"v{d}^", unit), (f"t{d}^", stride)]
            kept = [(f, size) for k, (f, size) in enumerate(factors) if k == 0 or size > 1]
            below.append(_group([f for f, _ in kept]))
            above.append(_group([f for f, _ in kept if not f.startswith("t")]))
            sizes += [(f.rstrip("!+^"), size) for f, size in kept]
        return cls(tuple(below), tuple(above), tuple(sizes))


def _group(factors: list[str]) -> str:
    return factors[0] if len(factors) == 1 else f"({' '.join(factors)})"
