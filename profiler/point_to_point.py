"""Messages between two ranks: half of a round trip, within a host and between hosts."""

from collections.abc import Iterator

import numpy as np

from hpc_alpa.comm import Communicator
from hpc_alpa.cost import parameters
from hpc_alpa.profiler.collectives import message_levels, timed_together
from hpc_alpa.profiler.point import Measure, Point
from hpc_alpa.profiler.setting import Setting


def pairs(setting: Setting) -> dict[int, tuple[int, int]]:
    """Rank 0 and a partner, by the number of hosts that the pair is on."""
    first = setting.ranks_by_host[0]
    found = {1: (first[0], first[1])} if len(first) > 1 else {}
    if len(setting.ranks_by_host) > 1:
        found[2] = (first[0], setting.ranks_by_host[1][0])
    return found


def points(setting: Setting, max_bytes: int) -> Iterator[Point]:
    """A point per pair and bytes."""
    for hosts, pair in pairs(setting).items():
        for nbytes, level in message_levels(max_bytes).items():
            values = parameters(
                "point_to_point", nbytes=nbytes, hosts=hosts, ranks=setting.world.size, clock="wall"
            )
            yield Point("point_to_point", "send", values, level, pair, _measure(nbytes))


def _measure(nbytes: int) -> Measure:
    def measure(setting: Setting, pair: Communicator) -> list[float] | None:
        x = np.zeros(nbytes // 4, np.float32)

        def there_and_back() -> None:
            first, second = (pair.send, pair.recv) if pair.rank == 0 else (pair.recv, pair.send)
            first(x, 1 - pair.rank).wait()
            second(x, 1 - pair.rank).wait()

        found = timed_together(setting, pair, there_and_back)
        return None if found is None else [seconds / 2 for seconds in found]

    return measure
