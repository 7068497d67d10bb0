"""Collectives over groups of every size, alone and as disjoint groups at once.

A repetition begins with a barrier of all that take part, and lasts until the last rank is done.
Seconds are wall seconds, with as many ranks on a host as there are.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from hpc_alpa.comm import Communicator
from hpc_alpa.cost import COLLECTIVES, parameters
from hpc_alpa.profiler.clock import repetitions
from hpc_alpa.profiler.point import Measure, Point
from hpc_alpa.profiler.setting import Setting

SMALLEST = 2**10
Groups = tuple[tuple[int, ...], ...]


def message_levels(max_bytes: int) -> dict[int, int]:
    """Sizes from 1 KiB to `max_bytes` by factors of 4, with their levels: 1 KiB, 64 KiB, 4 MiB
    first."""
    sizes = []
    size = SMALLEST
    while size < max_bytes:
        sizes.append(size)
        size *= 4
    sizes.append(max_bytes)
    order = {0: 0, 1: 2, 2: 1}
    return {s: order[i % 3] if s < max_bytes else 1 for i, s in enumerate(sizes)}


def group_sizes(ranks: int) -> list[int]:
    """Every size up to 8; then powers of two, three times them, and all ranks."""
    few = range(2, min(ranks, 8) + 1)
    more = (f * 2**e for f in (1, 3) for e in range(16))
    return sorted({*few, *(n for n in more if 8 < n <= ranks), *([ranks] if ranks > 1 else [])})


def disjoint_groups(ranks_by_host: Sequence[Sequence[int]], size: int, hosts: int) -> Groups:
    """As many disjoint groups of `size` ranks as fit, each with equally many on each of `hosts`
    hosts; none if that does not divide."""
    if size % hosts or hosts > len(ranks_by_host):
        return ()
    each = size // hosts
    groups = []
    for first in range(0, len(ranks_by_host) - hosts + 1, hosts):
        block = ranks_by_host[first : first + hosts]
        for slot in range(min(map(len, block)) // each):
            at = slice(slot * each, (slot + 1) * each)
            groups.append(tuple(r for ranks in block for r in ranks[at]))
    return tuple(groups)


def points(setting: Setting, max_bytes: int) -> Iterator[Point]:
    """A point per group size, hosts spanned, number of groups at once, kind and bytes."""
    places = setting.ranks_by_host
    for size in group_sizes(setting.world.size):
        for hosts in range(1, len(places) + 1):
            fit = disjoint_groups(places, size, hosts)
            for number in sorted({min(1, len(fit)), len(fit)} - {0}):
                for kind in COLLECTIVES:
                    for nbytes, level in message_levels(max_bytes).items():
                        yield _point(setting, kind, nbytes, fit[:number], hosts, level)


def _point(
    setting: Setting, kind: str, nbytes: int, groups: Groups, hosts: int, level: int
) -> Point:
    values = parameters(
        "collectives", nbytes=nbytes, size=len(groups[0]), hosts=hosts, groups=len(groups),
        ranks=setting.world.size, clock="wall",
    )  # fmt: skip
    ranks = tuple(r for group in groups for r in group)
    measure = _measure(kind, nbytes, groups)
    # Several groups at once refine what one group costs.
    return Point("collectives", kind, values, level + (len(groups) > 1), ranks, measure)


def _measure(kind: str, nbytes: int, groups: Groups) -> Measure:
    def measure(setting: Setting, everyone: Communicator) -> list[float] | None:
        me = everyone.ranks[everyone.rank]
        mine = next(group for group in groups if me in group)
        call = CALLS[kind](setting.world.group(mine), nbytes)
        return timed_together(setting, everyone, call)

    return measure


def timed_together(
    setting: Setting, everyone: Communicator, call: Callable[[], object]
) -> list[float] | None:
    """Seconds of each repetition until the slowest rank was done, on rank 0. Collective."""

    def once() -> float:
        everyone.barrier()
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    once()
    start = time.perf_counter()
    once()
    number = repetitions(time.perf_counter() - start, setting.seconds)
    number = everyone.broadcast_object(number)
    found = everyone.gather_objects([once() for _ in range(number)])
    return None if found is None else [max(seconds) for seconds in zip(*found)]


def _zeros(*shape: int) -> Any:
    # Zeros stay zeros: sums of random numbers would overflow in some thousand repetitions.
    return np.zeros(shape, np.float32)


def _all_reduce(comm: Communicator, nbytes: int) -> Callable[[], object]:
    x = _zeros(nbytes // 4)
    return lambda: comm.all_reduce(x)


def _all_gather(comm: Communicator, nbytes: int) -> Callable[[], object]:
    x, out = _zeros(_part(comm, nbytes)), _zeros(comm.size, _part(comm, nbytes))
    return lambda: comm.all_gather(x, out)


def _reduce_scatter(comm: Communicator, nbytes: int) -> Callable[[], object]:
    x, out = _zeros(comm.size, _part(comm, nbytes)), _zeros(_part(comm, nbytes))
    return lambda: comm.reduce_scatter(x, out)


def _all_to_all(comm: Communicator, nbytes: int) -> Callable[[], object]:
    part = max(1, _part(comm, nbytes) // comm.size)  # a rank holds nbytes / size in all
    x, out = _zeros(comm.size, part), _zeros(comm.size, part)
    return lambda: comm.all_to_all(x, out)


def _broadcast(comm: Communicator, nbytes: int) -> Callable[[], object]:
    x = _zeros(nbytes // 4)
    return lambda: comm.broadcast(x)


def _part(comm: Communicator, nbytes: int) -> int:
    return max(1, nbytes // 4 // comm.size)


CALLS: dict[str, Callable[[Communicator, int], Callable[[], object]]] = {  # alphabetical
    "all_gather": _all_gather,
    "all_reduce": _all_reduce,
    "all_to_all": _all_to_all,
    "broadcast": _broadcast,
    "reduce_scatter": _reduce_scatter,
}
assert tuple(CALLS) == COLLECTIVES
