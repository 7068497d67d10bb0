"""Layer clustering: cut a sequence of operators into layers (Alpa, OSDI 2022, Sec. 5.2).

Alpa's recurrence, with C(i, k) the bytes that the layer of operators i..k receives:

    G(k, r) = min over i of max(G(i-1, r-1), C(i, k))
              with FLOP(i..k) <= (1 + tolerance) FLOP_total / layers

and among its solutions the most uniform one. Here C(i, k) is `cut_nbytes`, all that crosses the
position before operator i, so the bottleneck is the largest cut that is used. Ties are broken by
the total of the cuts, then by the variance of the layers' flops, in two passes, since a smallest
maximum followed by a smallest sum has no optimal substructure in one:

    1. the smallest bound under which some clustering exists      -> _bottleneck()
    2. cuts within the bound: smallest (total, sum of squares)    -> _most_uniform()
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpc_alpa.errors import InfeasibleError, PlanError

# flops are sums of floats; a layer that meets the bound up to rounding meets it
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Clustering:
    """Layers as half-open ranges of operators; the largest and the total bytes of their cuts."""

    layers: tuple[tuple[int, int], ...]
    largest_nbytes: float
    total_nbytes: float


def cluster(
    flops: Sequence[float], cut_nbytes: Sequence[float], num_layers: int, tolerance: float
) -> Clustering:
    """The clustering into `num_layers` layers whose largest cut is smallest.

    Args:
        flops: of each operator, in execution order, not negative.
        cut_nbytes: [i] = bytes that cross the position between operators i and i + 1.
        tolerance: no layer has more than (1 + tolerance) times the average flops.

    Raises:
        InfeasibleError: no clustering is balanced enough; says which tolerance would do.
    """
    work = np.concatenate([[0.0], np.cumsum(np.asarray(flops, float))])
    cuts = np.asarray(cut_nbytes, float)
    num_operators = len(work) - 1
    if len(cuts) != num_operators - 1 or not 1 <= num_layers <= num_operators:
        raise PlanError(
            f"{num_layers} layers of {num_operators} operators with {len(cuts)} cut sizes: "
            f"expected 1 to {num_operators} layers and {num_operators - 1} cut sizes"
        )
    limit = (1 + tolerance) * work[-1] / num_layers * (1 + _ROUNDING)
    bound = _bottleneck(work, cuts, num_layers, limit)
    if bound is None:
        needed = smallest_tolerance(flops, num_layers)
        raise InfeasibleError(
            f"no {num_layers} layers of {num_operators} operators are balanced within tolerance "
            f"{tolerance:g}: the largest layer has at least {1 + needed:.4g} times the average "
            f"flops, the limit is {1 + tolerance:g} times. The nearest fit has tolerance "
            f"{needed:.4g}; raise the tolerance or ask for fewer layers"
        )
    ends = _most_uniform(work, cuts, num_layers, limit, bound)
    used = cuts[np.array(ends[:-1], int) - 1]
    return Clustering(
        tuple(zip([0, *ends[:-1]], ends, strict=True)),
        float(used.max(initial=0.0)),
        float(used.sum()),
    )


def smallest_tolerance(flops: Sequence[float], num_layers: int) -> float:
    """The least tolerance for which `cluster` finds a clustering, whatever its cuts cost."""
    work = np.concatenate([[0.0], np.cumsum(np.asarray(flops, float))])
    everywhere = np.zeros(len(work) - 2)
    if work[-1] == 0:
        return 0.0
    # the largest layer is a difference of two prefix sums
    starts, stops = np.triu_indices(len(work), 1)
    sizes = np.unique(work[stops] - work[starts])
    sizes = sizes[sizes >= work[-1] / num_layers * (1 - _ROUNDING)]
    low, high = 0, len(sizes) - 1
    while low < high:
        middle = (low + high) // 2
        if _bottleneck(work, everywhere, num_layers, sizes[middle] * (1 + _ROUNDING)) is None:
            low = middle + 1
        else:
            high = middle
    return max(0.0, float(sizes[low] * num_layers / work[-1] - 1))


def _bottleneck(
    work: NDArray[np.float64], cuts: NDArray[np.float64], num_layers: int, limit: float
) -> float | None:
    """The smallest bound on the cuts under which a clustering exists; None if there is none."""
    bounds = np.unique(np.append(cuts, 0.0))
    if not _exists(work, cuts, num_layers, limit, bounds[-1]):
        return None
    low, high = 0, len(bounds) - 1
    while low < high:
        middle = (low + high) // 2
        if _exists(work, cuts, num_layers, limit, bounds[middle]):
            high = middle
        else:
            low = middle + 1
    return float(bounds[low])


def _exists(
    work: NDArray[np.float64],
    cuts: NDArray[np.float64],
    num_layers: int,
    limit: float,
    bound: float,
) -> bool:
    """Cutting at every allowed position gives the most layers, longest steps the fewest."""
    allowed = np.concatenate([[0], 1 + np.flatnonzero(cuts <= bound), [len(work) - 1]])
    if len(allowed) - 1 < num_layers:
        return False
    farthest = _farthest(work[allowed], limit)
    fewest, here = 0, 0
    while here < len(allowed) - 1:
        if farthest[here] <= here:
            return False
        here, fewest = int(farthest[here]), fewest + 1
    # every number of layers between the fewest and the most is possible: split a layer at a cut
    return fewest <= num_layers


def _farthest(work: NDArray[np.float64], limit: float) -> NDArray[np.int64]:
    """The last position that a layer from each position may reach."""
    return np.searchsorted(work, work + limit, side="right") - 1


def _most_uniform(
    work: NDArray[np.float64],
    cuts: NDArray[np.float64],
    num_layers: int,
    limit: float,
    bound: float,
) -> list[int]:
    """Ends of the layers with cuts within `bound`, smallest (total, sum of squared flops)."""
    allowed = np.concatenate([[0], 1 + np.flatnonzero(cuts <= bound), [len(work) - 1]])
    price = np.concatenate([[0.0], cuts, [0.0]])[allowed]
    reached = work[allowed] / work[-1] if work[-1] else work[allowed]
    # the first position from which a layer may reach position k
    first = np.searchsorted(_farthest(work[allowed], limit), np.arange(len(allowed)))
    total = np.full(len(allowed), np.inf)
    squares = np.full(len(allowed), np.inf)
    total[0] = squares[0] = 0.0
    parents = []
    for _ in range(num_layers):
        next_total = np.full(len(allowed), np.inf)
        next_squares = np.full(len(allowed), np.inf)
        parent = np.zeros(len(allowed), int)
        for k in range(1, len(allowed)):
            window = slice(first[k], k)
            if not np.isfinite(least := total[window].min(initial=np.inf)):
                continue
            spread = squares[window] + (reached[k] - reached[window]) ** 2
            i = first[k] + int(np.where(total[window] == least, spread, np.inf).argmin())
            parent[k], next_total[k] = i, least + price[k]
            next_squares[k] = spread[i - first[k]]
        total, squares = next_total, next_squares
        parents.append(parent)
    ends = [len(allowed) - 1]
    for parent in reversed(parents[1:]):
        ends.append(int(parent[ends[-1]]))
    return [int(allowed[k]) for k in reversed(ends)]
