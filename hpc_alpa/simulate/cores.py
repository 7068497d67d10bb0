"""Cores that ranks share while they compute."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from hpc_alpa.cluster import Cluster
from hpc_alpa.errors import ClusterError


class SharedCores:
    """The ranks of one host on fewer cores: k busy ranks on c cores each run at min(1, c/k).

    Between two events the rates are constant, so one clock is enough: the seconds of work that each
    busy rank has got so far. A rank that starts W seconds of work when the clock shows V is done
    when it shows V + W, however the rates change on the way (virtual time; Demers, Keshav and
    Shenker, "Analysis and Simulation of a Fair Queueing Algorithm", 1989, Sec. 2).

    Attributes:
        version: changes whenever `next_end` may.
    """

    def __init__(self, cores: int) -> None:
        self.cores = cores
        self.version = 0
        self._clock = 0.0
        self._time = 0.0
        self._busy: list[tuple[float, int]] = []  # heap: what the clock shows at its end, rank

    def start(self, rank: int, seconds: float, now: float) -> None:
        """A rank has `seconds` of work from now on."""
        self._advance(now)
        heapq.heappush(self._busy, (self._clock + seconds, rank))
        self.version += 1

    def next_end(self) -> float | None:
        """When the first of the busy ranks will be done, if none starts before."""
        if not self._busy:
            return None
        left = self._busy[0][0] - self._clock
        return self._time + max(0.0, left) / self._rate()

    def finish(self, now: float) -> list[int]:
        """The ranks that are done at `now`, a time that `next_end` has told."""
        self._advance(now)
        # Exactly, so that rounding neither leaves work over nor adds up.
        self._clock = self._busy[0][0]
        done = []
        while self._busy and self._busy[0][0] <= self._clock:
            done.append(heapq.heappop(self._busy)[1])
        if not self._busy:
            self._clock = 0.0
        self.version += 1
        return done

    def _advance(self, now: float) -> None:
        if self._busy:
            self._clock += (now - self._time) * self._rate()
        self._time = now

    def _rate(self) -> float:
        return min(1.0, self.cores / len(self._busy))


def shared_cores(
    ranks: Sequence[int], cluster: Cluster, cores: Sequence[int | None] | None
) -> dict[int, SharedCores]:
    """The cores of every rank whose host has more ranks than cores.

    Args:
        cores: per host; None for as many as there are ranks; without it the cluster's own.

    Raises:
        ClusterError: a rank is no device of the cluster, or `cores` does not fit its hosts.
    """
    limits = [h.cores for h in cluster.hosts] if cores is None else list(cores)
    if len(limits) != cluster.num_hosts or any(n is not None and n < 1 for n in limits):
        raise ClusterError(
            f"cores {limits} for the {cluster.num_hosts} hosts of cluster {cluster.name!r}: give a "
            "number of at least 1, or None, for each"
        )
    on_host: dict[int, list[int]] = {}
    for r in ranks:
        on_host.setdefault(cluster.host_of(r), []).append(r)
    found: dict[int, SharedCores] = {}
    for host, there in on_host.items():
        limit = limits[host]
        if limit is not None and limit < len(there):
            found.update(dict.fromkeys(there, SharedCores(limit)))
    return found
