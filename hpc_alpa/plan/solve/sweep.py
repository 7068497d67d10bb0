"""The dynamic program of stage slicing, and the exact search over the bound on the largest stage.

    least[s, k, p, d]    least fill of s stages that run layers k.. on exactly d devices, when the
                         first takes class p and no stage's period is above the bound
    onward[s, k, q, d]   the same for what follows a stage that leaves class q at the cut before
                         layer k: min over p of transfer[k, q, p] + least[s, k, p, d]

least[1.., 0, :, D] falls as the bound rises, so an interval (a, b] of bounds has total at least
least(b) + weight * a: best-first bisection over the sorted periods is exact in a score of sweeps
(performance notes of the planner, Sec. 2).
"""

import heapq
import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_alpa.plan.solve.problem import FloatArray, IntArray

_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class Choices:
    """What may be one stage, one entry each; ports are classes at a cut, on all submeshes.

    Args:
        first, last: layers of the stage.
        devices: that it uses.
        entering, leaving: its ports.
        seconds: for one microbatch, finite.
        room: microbatches in flight that its memory holds.
        transfer: time [cut, leaving port, entering port].
    """

    first: IntArray
    last: IntArray
    devices: IntArray
    entering: IntArray
    leaving: IntArray
    seconds: FloatArray
    room: IntArray
    transfer: FloatArray

    @property
    def num_layers(self) -> int:
        return len(self.transfer) - 1

    def select(self, which: NDArray[np.bool_] | IntArray) -> "Choices":
        """The choices at these places."""
        columns = {
            f.name: getattr(self, f.name)[which] for f in fields(self) if f.name != "transfer"
        }
        return replace(self, **columns)


@dataclass(frozen=True)
class Weights:
    """Of a stage and of a transfer in the fill, and of a transfer in its sender's period."""

    fill: float
    fill_transfer: float
    period_transfer: float


@dataclass(frozen=True, eq=False)
class Found:
    """The choices of a slicing, in the order of the layers, and the transfers between them."""

    choices: tuple[int, ...]
    transfers: tuple[float, ...]


class Sweep:
    """The dynamic program for given choices; its tables are those of the last bound."""

    def __init__(
        self,
        choices: Choices,
        num_devices: int,
        need: IntArray,
        weights: Weights,
        num_stages: int | None,
    ) -> None:
        """`need[s - 1]`: microbatches in flight on the stage that is s-th from the end."""
        order = np.argsort(choices.first, kind="stable")
        self._order, self._choices = order, choices.select(order)
        self._need, self._weights, self._num_devices = need, weights, num_devices
        self._last_stages = len(need) if num_stages is None else num_stages
        self._first_stages = 1 if num_stages is None else num_stages
        num_layers, num_leaving, num_entering = choices.num_layers, *choices.transfer.shape[1:]
        self._start = np.searchsorted(self._choices.first, np.arange(num_layers + 1))
        shape = (self._last_stages + 1, num_layers + 1)
        self._least = np.full((*shape, num_entering, num_devices + 1), np.inf)
        # one port and free transfers: what follows a stage is what starts at its cut
        self._plain = num_leaving == num_entering == 1 and not choices.transfer.any()
        self._onward = self._least
        if not self._plain:
            self._onward = np.full((*shape, num_leaving, num_devices + 1), np.inf)
        self._onward[0, num_layers, :, 0] = 0.0
        self._reached = 0  # the most stages that the last sweep came to

    def periods(self) -> FloatArray:
        """Every value that the largest period can have, in increasing order."""
        c, weight = self._choices, self._weights.period_transfer
        if not weight:
            return np.unique(c.seconds)
        final = c.last == c.last.max(initial=0)
        times = c.transfer[c.last[~final] + 1, c.leaving[~final]]
        periods = c.seconds[~final, None] + weight * times
        return np.unique(np.concatenate([c.seconds[final], periods[np.isfinite(periods)]]))

    def least(self, bound: float) -> float:
        """The least fill of a whole slicing with no period above the bound; infinite if none."""
        c, w = self._choices, self._weights
        self._reached = _compiled()(
            *(self._start, c.last + 1, c.devices, c.entering, c.leaving, c.seconds, c.room),
            *(self._need, c.transfer, w.fill, w.fill_transfer, w.period_transfer, bound),
            *(self._plain, self._least, self._onward),
        )
        return float(self._whole().min(initial=np.inf))

    def _whole(self) -> FloatArray:
        """[stages - first, port] of all layers on all devices; rows beyond were not reached."""
        return self._least[self._first_stages : self._reached + 1, 0, :, self._num_devices]

    def trace(self, bound: float) -> Found:
        """The slicing behind `least(bound)`, which was the last call and was finite."""
        whole = self._whole()
        stages, port = divmod(int(whole.argmin()), whole.shape[1])
        left, layer, devices = stages + self._first_stages, 0, self._num_devices
        picked, transfers = [], []
        while left:
            choice, transfer, next_port = self._step(left, layer, port, devices, bound)
            picked.append(int(self._order[choice]))
            layer = int(self._choices.last[choice]) + 1
            devices -= int(self._choices.devices[choice])
            left, port = left - 1, next_port
            if left:
                transfers.append(transfer)
        return Found(tuple(picked), tuple(transfers))

    def _step(
        self, left: int, layer: int, port: int, devices: int, bound: float
    ) -> tuple[int, float, int]:
        """The first of `left` stages, the transfer after it and the port that this enters."""
        c, w = self._choices, self._weights
        best = (math.inf, 0, 0.0, 0)
        for k in range(self._start[layer], self._start[layer + 1]):
            cut, rest = int(c.last[k]) + 1, devices - int(c.devices[k])
            fits = c.entering[k] == port and c.room[k] >= self._need[left - 1] and rest >= 0
            if not fits or c.seconds[k] > bound:
                continue
            if left == 1:
                ends = cut == c.num_layers and rest == 0
                onward = np.array([0.0 if ends else np.inf])
                times = np.zeros(1)
            else:
                times = c.transfer[cut, c.leaving[k]]
                onward = np.full(len(times), np.inf)
                ports = np.flatnonzero(np.isfinite(times))
                ports = ports[c.seconds[k] + w.period_transfer * times[ports] <= bound]
                onward[ports] = (
                    w.fill_transfer * times[ports] + self._least[left - 1, cut, ports, rest]
                )
            into = int(onward.argmin())
            best = min(best, (w.fill * c.seconds[k] + onward[into], k, float(times[into]), into))
        return best[1:]


def best_slicing(sweep: Sweep, weight: float) -> Found | None:
    """The slicing of least fill + weight * largest period; None if there is none."""
    periods = sweep.periods()
    bound = _least_sum(sweep.least, periods, weight) if len(periods) else None
    if bound is None:
        return None
    sweep.least(bound)
    return sweep.trace(bound)


def smallest_excess(sweep_for: Callable[[int], Sweep], most: int) -> tuple[int, Found] | None:
    """The least x, at most `most`, for which `sweep_for(x)` has a slicing, and its fastest one.

    `sweep_for(x)`: the sweep whose stages may exceed their memory by x microbatches.
    """

    def exists(excess: int) -> bool:
        sweep = sweep_for(excess)
        periods = sweep.periods()
        return len(periods) > 0 and math.isfinite(sweep.least(float(periods[-1])))

    if not exists(most):
        return None
    excess = bisect_left(range(most), True, key=exists)
    found = best_slicing(sweep_for(excess), 0.0)
    assert found is not None
    return excess, found


def _least_sum(least: Callable[[float], float], bounds: FloatArray, weight: float) -> float | None:
    """The bound x with the smallest least(x) + weight * x, for a function that never rises."""
    end = len(bounds) - 1
    value = least(bounds[end])
    if not math.isfinite(value):
        return None
    best = (value + weight * bounds[end], end)
    heap = [(value + weight * bounds[0], 0, end, value)]  # no sum in a..b is below; least(b)
    while heap and heap[0][0] < best[0] - _ROUNDING * abs(best[0]):
        _, a, b, value = heapq.heappop(heap)
        middle = (a + b) // 2
        halfway = least(bounds[middle])
        best = min(best, (halfway + weight * bounds[middle], middle))
        if math.isfinite(halfway) and a < middle:
            heapq.heappush(heap, (halfway + weight * bounds[a], a, middle, halfway))
        if middle + 1 < b:
            heapq.heappush(heap, (value + weight * bounds[middle + 1], middle + 1, b, value))
    return float(bounds[best[1]])


@cache
def _compiled() -> Callable[..., Any]:
    import numba  # here and not above: only a search for stages pays for its import

    compiled: Callable[..., Any] = numba.njit(cache=True)(_sweep)
    return compiled


def _sweep(
    start: Any,
    stop: Any,
    devices: Any,
    entering: Any,
    leaving: Any,
    seconds: Any,
    room: Any,
    need: Any,
    transfer: Any,
    fill: float,
    fill_transfer: float,
    period_transfer: float,
    bound: float,
    plain: bool,
    least: Any,
    onward: Any,
) -> int:
    """Fill `least` and `onward`; the most stages that something was reached with."""
    num_layers, num_devices = least.shape[1] - 1, least.shape[3] - 1
    lowest = np.full(num_layers + 1, num_devices + 1)  # devices reached with s - 1 stages, per cut
    highest = np.full(num_layers + 1, -1)
    lowest[num_layers] = highest[num_layers] = 0
    for s in range(1, least.shape[0]):
        low, high = np.full(num_layers + 1, num_devices + 1), np.full(num_layers + 1, -1)
        for k in range(num_layers - 1, -1, -1):
            least[s, k] = np.inf
            for c in range(start[k], start[k + 1]):
                cut, n = stop[c], devices[c]
                if seconds[c] > bound or room[c] < need[s - 1] or highest[cut] < 0:
                    continue
                begin, end = lowest[cut], min(highest[cut], num_devices - n)
                if begin > end:
                    continue
                target = least[s, k, entering[c]]
                if period_transfer == 0.0 or s == 1:
                    source = onward[s - 1, cut, leaving[c]]
                    for d in range(begin, end + 1):
                        target[d + n] = min(target[d + n], source[d] + fill * seconds[c])
                else:
                    for p in range(least.shape[2]):
                        time = transfer[cut, leaving[c], p]
                        if seconds[c] + period_transfer * time <= bound:
                            source, more = least[s - 1, cut, p], fill_transfer * time
                            for d in range(begin, end + 1):
                                value = source[d] + more + fill * seconds[c]
                                target[d + n] = min(target[d + n], value)
                low[k], high[k] = min(low[k], begin + n), max(high[k], end + n)
            if plain:
                continue
            onward[s, k] = np.inf
            for q in range(onward.shape[2]):
                for p in range(least.shape[2]):
                    time = fill_transfer * transfer[k, q, p]
                    if time < np.inf:
                        for d in range(low[k], high[k] + 1):
                            onward[s, k, q, d] = min(onward[s, k, q, d], least[s, k, p, d] + time)
        lowest, highest = low, high
        if highest.max() < 0:
            return s - 1
    most: int = least.shape[0] - 1
    return most
