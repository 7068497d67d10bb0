"""The sweep: points from coarse to fine until the time is up, each kept as soon as it is measured.

Rank 0 chooses the points and keeps the samples. The others follow; who takes no part in a point
waits asleep, so that the ranks that are measured have the cores to themselves.
"""

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from hpc_alpa.cost import Sample
from hpc_alpa.profiler.point import Point
from hpc_alpa.profiler.setting import Setting


def ordered(points: Iterable[Point]) -> list[Point]:
    """Coarse before fine, and within that all names in step: whenever the time is up, each operator
    and each collective has had its share."""
    lists: dict[tuple[int, int, str, str], list[Point]] = {}
    for p in points:
        lists.setdefault((p.level, p.turn, p.group, p.name), []).append(p)
    placed = [
        ((level, turn, i / len(its)), p)
        for (level, turn, _, _), its in lists.items()
        for i, p in enumerate(its)
    ]
    return [p for _, p in sorted(placed, key=lambda item: item[0])]


@dataclass(frozen=True)
class Outcome:
    """How far a sweep came: points measured now, known before, and left for the next run."""

    measured: int
    known: int
    left: int

    @property
    def total(self) -> int:
        return self.measured + self.known + self.left


def sweep(
    setting: Setting,
    points: list[Point],
    *,
    seconds: float,
    known: Collection[Any] = (),
    keep: Callable[[Sample], None] = lambda sample: None,
    report: Callable[[int, Point], None] = lambda number, point: None,
) -> Outcome:
    """Measure `points` in their order for about `seconds`, the coarsest ones in any case.

    Collective over the setting's world.

    Args:
        known: keys of points that need no measurement. Read on rank 0.
        keep: called on rank 0 with each sample.
        report: called on rank 0 before each point with its number.
    """
    world = setting.world
    end = time.monotonic() + seconds
    todo = [i for i, p in enumerate(points) if p.key not in known] if world.rank == 0 else []
    # A planner needs every operator and collective: the coarsest points are measured in any case.
    coarsest = min((p.level for p in points), default=0)
    done = 0
    while True:
        number = None
        if (
            world.rank == 0
            and done < len(todo)
            and (time.monotonic() < end or points[todo[done]].level == coarsest)
        ):
            number = todo[done]
            report(number, points[number])
        number = world.broadcast_object(number)  # who waits here sleeps
        if number is None:
            break
        point = points[number]
        me = world.ranks[world.rank]
        if me in point.ranks:
            found = point.measure(setting, world.group(point.ranks))
            if found is not None:
                keep(point.sample(found))
        done += 1
    done, size = world.broadcast_object((done, len(todo)))
    return Outcome(done, len(points) - size, size - done)
