"""Who shares a host with whom, and how many cores they have."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class HostMap:
    """Ranks per host (hosts by their lowest rank), and the cores usable by each host's ranks."""

    ranks: tuple[tuple[int, ...], ...]
    cores: tuple[int, ...]

    def of(self, rank: int) -> int:
        """Index of the host of `rank`."""
        return next(i for i, ranks in enumerate(self.ranks) if rank in ranks)


def host_map(leaders: Sequence[int], cores: Sequence[frozenset[int]]) -> HostMap:
    """The hosts, from each rank's host leader (its lowest rank) and each rank's usable cores.

    A host has the union of its ranks' cores: launchers may bind each rank to cores of its own.
    """
    order = sorted(set(leaders))
    ranks = tuple(tuple(r for r, its in enumerate(leaders) if its == leader) for leader in order)
    usable = tuple(len(frozenset().union(*(cores[r] for r in host))) for host in ranks)
    return HostMap(ranks, usable)


def usable_cores() -> frozenset[int]:
    """The cores on which this process may run (all of them where the system cannot tell)."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))
