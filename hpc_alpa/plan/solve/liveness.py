"""Memory that follows time: bytes of terms that are live from one point of time to another.

    for every point t,  sum of the bytes of the active terms with start <= t < stop  <=  limit

It stands for one memory row per point, of which a solver makes only those that it needs. Points
whose live terms are all live at another one say nothing, and neither do those that even the largest
choices cannot fill: `compressed()` leaves them out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from hpc_alpa.errors import PlanError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Liveness:
    """One entry per term and interval; the arrays are of one length.

    Args:
        start, stop: of the interval; nothing is live where they are equal.
        term: of the problem that this is part of.
        nbytes: while the term is live, not negative.
        limit: bytes at every point.
        name: what a point is called in messages.
        times: of the points, where `start` and `stop` count points instead of time.
    """

    start: IntArray
    stop: IntArray
    term: IntArray
    nbytes: FloatArray
    limit: float
    name: Callable[[int], str] = "memory at time {}".format
    times: IntArray | None = None

    def __post_init__(self) -> None:
        kinds = {"start": np.int64, "stop": np.int64, "term": np.int64, "nbytes": np.float64}
        for name, kind in kinds.items():
            object.__setattr__(self, name, np.asarray(getattr(self, name), kind).ravel())
        sizes = {len(getattr(self, name)) for name in kinds}
        wrong = len(sizes) > 1 or (self.stop < self.start).any() or (self.start < 0).any()
        if wrong or not np.isfinite(self.nbytes).all() or (self.nbytes < 0).any():
            raise PlanError(
                f"liveness of {len(self.term)} terms: expected as many starts, stops from there "
                "on, and byte counts, finite and not negative"
            )

    @property
    def num_points(self) -> int:
        """Points of time from 0 on, up to where nothing is live any more."""
        return int(self.stop.max(initial=0))

    def usage(self, activity: FloatArray) -> FloatArray:
        """Bytes at each point, for an activity (0 to 1) of every term of the problem."""
        return self.over_time(self.nbytes * activity[self.term])

    def over_time(self, nbytes: FloatArray) -> FloatArray:
        """Bytes at each point, for those of each entry."""
        size = self.num_points + 1
        change = np.bincount(self.start, nbytes, size) - np.bincount(self.stop, nbytes, size)
        usage: FloatArray = np.maximum(0.0, np.cumsum(change)[:-1])
        return usage

    def rows(self, points: Sequence[int] | IntArray, num_terms: int) -> scipy.sparse.csr_array:
        """Bytes [point, term] of these points."""
        live = [np.flatnonzero((self.start <= t) & (t < self.stop)) for t in points]
        entry = np.concatenate([*live, np.empty(0, np.int64)]).astype(np.int64)
        row = np.repeat(np.arange(len(live)), [len(part) for part in live])
        where = (row, self.term[entry])
        shape = (len(live), num_terms)
        return scipy.sparse.csr_array(
            scipy.sparse.coo_array((self.nbytes[entry], where), shape=shape)
        )

    def name_of(self, point: int) -> str:
        """What a point is called."""
        return self.name(int(point if self.times is None else self.times[point]))

    def at(self, terms: IntArray, kept: NDArray[np.bool_]) -> "Liveness":
        """The entries that are kept, with other numbers of their terms."""
        return replace(
            self,
            start=self.start[kept],
            stop=self.stop[kept],
            term=terms[kept],
            nbytes=self.nbytes[kept],
        )

    def compressed(self, most: FloatArray) -> "Liveness":
        """The same without the points that cannot bind.

        Args:
            most: the largest bytes that each entry can add to those of all others, which is its own
                for one choice of each node, and 0 for the other choices.
        """
        live = self.stop > self.start
        begins, ends = np.unique(self.start[live]), np.unique(self.stop[live])
        # the live terms are most at the last beginning before the next end
        next_end = ends[np.searchsorted(ends, begins, side="right")] if len(ends) else ends
        largest = np.append(begins[1:], np.iinfo(np.int64).max) >= next_end
        points = begins[largest]
        if len(points):
            points = points[self.over_time(most)[points] > self.limit]
        start = np.searchsorted(points, self.start)
        stop = np.searchsorted(points, self.stop)
        times = points if self.times is None else self.times[points]
        kept = start < stop
        return replace(
            self,
            start=start[kept],
            stop=stop[kept],
            term=self.term[kept],
            nbytes=self.nbytes[kept],
            times=times,
        )
