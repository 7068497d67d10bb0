"""Coordinate descent under memory that follows time: nodes change one by one, compiled.

A choice is judged by its seconds, by a price for each byte over the limit at each point, and by the
number of its forbidden pairs, each of which costs more than anything else. Starting from whatever
prices on the memory have chosen, it gives up the few bytes too many where they cost least.
"""

from functools import cache
from typing import Any

import numpy as np

from hpc_alpa.plan.solve.intervals import Intervals
from hpc_alpa.plan.solve.messages import Messages
from hpc_alpa.plan.solve.problem import FloatArray, IntArray

_SWEEPS = 12
_BLOCK = 64  # points whose largest excess is known


def repair(
    messages: Messages,
    intervals: Intervals,
    choices: IntArray,
    price: float,
    rng: np.random.Generator,
) -> tuple[IntArray, float, bool]:
    """Choices near the given ones, their seconds (infinite where forbidden), and whether they fit.

    Args:
        price: seconds for a byte over the limit at one point.
    """
    x = choices.copy()
    over = intervals.usage(x) - intervals.limit
    blocks = np.zeros(len(over) // _BLOCK + 1)
    _kernel()(
        *messages.shape,
        *(intervals.of_node, intervals.begin, intervals.end, intervals.first, intervals.nbytes),
        *(over, blocks, x, price, rng.permutation(len(x)), _SWEEPS),
    )
    return x, messages.seconds(x), bool(intervals.fits(x))


@cache
def _kernel() -> Any:
    import numba  # here and not above: see `messages`

    return numba.njit(cache=True)(_descend)


def _descend(
    node: FloatArray,
    start: IntArray,
    ends: IntArray,
    table: FloatArray,
    first: IntArray,
    pairs: IntArray,
    pairs_start: IntArray,
    of_node: IntArray,
    begin: IntArray,
    end: IntArray,
    first_bytes: IntArray,
    nbytes: FloatArray,
    over: FloatArray,
    blocks: FloatArray,
    x: IntArray,
    price: float,
    order: IntArray,
    sweeps: int,
) -> None:
    """`over`: bytes over the limit at each point; `blocks`: their largest, of 64 points each."""
    for b in range(len(blocks)):
        blocks[b] = -np.inf
        for t in range(64 * b, min(64 * b + 64, len(over))):
            blocks[b] = max(blocks[b], over[t])
    seconds = np.zeros(np.max(start[1:] - start[:-1]))
    forbidden = np.zeros(len(seconds))
    excess = np.zeros(len(seconds))
    total = 0.0
    for t in range(len(over)):
        total += max(over[t], 0.0)
    for _ in range(sweeps):
        changed = 0
        for v in order:
            size = start[v + 1] - start[v]
            if size == 1:
                continue
            for k in range(size):
                seconds[k] = node[start[v] + k]
                forbidden[k] = 0.0
                if seconds[k] == np.inf:
                    seconds[k] = 0.0
                    forbidden[k] = 1e6
            for q in range(pairs_start[v], pairs_start[v + 1]):
                e = pairs[q]
                a, b = ends[e, 0], ends[e, 1]
                size_b = start[b + 1] - start[b]
                for k in range(size):
                    if a == v:
                        entry = table[first[e] + k * size_b + x[b]]
                    else:
                        entry = table[first[e] + x[a] * size_b + k]
                    if entry == np.inf:
                        forbidden[k] += 1.0
                    else:
                        seconds[k] += entry
            old = x[v]
            best = old
            excess[:size] = 0.0  # seconds for the bytes over the limit, against the choice of now
            for k in range(size):
                if k == old or forbidden[k] > forbidden[best]:
                    continue
                worth = np.inf  # the excess from which on the choice is no better
                if forbidden[k] == forbidden[best]:
                    worth = seconds[best] + excess[best] - seconds[k]
                    worth -= 1e-12 * abs(seconds[best])
                more_excess, given_up = 0.0, price * total
                if more_excess - given_up >= worth:
                    continue
                for j in range(of_node[v], of_node[v + 1]):
                    more = nbytes[first_bytes[j] + k] - nbytes[first_bytes[j] + old]
                    if more == 0.0 or price == 0.0 or more_excess - given_up >= worth:
                        continue
                    t = begin[j]
                    while t < end[j]:
                        if t % 64 == 0:
                            if more_excess - given_up >= worth:
                                break
                            if (
                                t + 64 <= end[j]
                                and max(blocks[t // 64], blocks[t // 64] + more) <= 0
                            ):
                                t += 64
                                continue
                        before, after = over[t], over[t] + more
                        change = price * (max(after, 0.0) - max(before, 0.0))
                        if change > 0.0:
                            more_excess += change
                        else:
                            excess[k] += change
                        t += 1
                excess[k] += more_excess
                if excess[k] < worth:
                    best = k
            if best != old:
                changed += 1
                x[v] = best
                for j in range(of_node[v], of_node[v + 1]):
                    more = nbytes[first_bytes[j] + best] - nbytes[first_bytes[j] + old]
                    if more == 0.0:
                        continue
                    for t in range(begin[j], end[j]):
                        total += max(over[t] + more, 0.0) - max(over[t], 0.0)
                        over[t] += more
                    for b in range(begin[j] // 64, (end[j] - 1) // 64 + 1):
                        blocks[b] = -np.inf
                        for t in range(64 * b, min(64 * b + 64, len(over))):
                            blocks[b] = max(blocks[b], over[t])
        if changed == 0:
            break
