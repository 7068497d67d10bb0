"""When every action of a schedule runs.

An action starts as soon as its submesh has run what stands before it and what it needs has ended:
a forward needs the forward of the stage before, a backward needs the backward of the stage after
and its own forward, and the weight half of a backward needs its other half.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hpc_alpa.errors import ScheduleError
from hpc_alpa.schedule.action import Action, Pass, Schedule
from hpc_alpa.schedule.grid import marked

# [action, num_stages] -> the actions that must have ended before it
NEEDS: dict[Pass, Callable[[Action, int], list[Action]]] = {
    Pass.FORWARD: lambda a, n: [Action(a.stage - 1, a.kind, a.microbatch)] if a.stage else [],
    Pass.BACKWARD: lambda a, n: (
        [Action(a.stage, Pass.FORWARD, a.microbatch)]
        + ([Action(a.stage + 1, a.kind, a.microbatch)] if a.stage + 1 < n else [])
    ),
    Pass.WEIGHT: lambda a, n: [Action(a.stage, Pass.BACKWARD, a.microbatch)],
}


@dataclass(frozen=True)
class Replay:
    """When the actions of a schedule run.

    Attributes:
        starts, ends: of every action, from 0.
        busy: what the actions of each submesh take together.
    """

    schedule: Schedule
    starts: Mapping[Action, float]
    ends: Mapping[Action, float]
    busy: tuple[float, ...]

    @property
    def end(self) -> float:
        """When the last action ends."""
        return max(self.ends.values(), default=0.0)

    @property
    def bubble(self) -> float:
        """Share of the submeshes' time in which they wait, from 0 to the end of the last."""
        return 1 - sum(self.busy) / (len(self.busy) * self.end) if self.end else 0.0


def pass_seconds(
    schedule: Schedule, forward: float = 1.0, backward: float = 1.0, weight: float = 1.0
) -> dict[Pass, float]:
    """Seconds of each pass, where a backward that is not split does both halves.

    Args:
        backward, weight: of the two halves.
    """
    whole = backward if Pass.WEIGHT in schedule.passes else backward + weight
    return {Pass.FORWARD: forward, Pass.BACKWARD: whole, Pass.WEIGHT: weight}


def replay(schedule: Schedule, seconds: Callable[[Action], float] = lambda action: 1.0) -> Replay:
    """Run a schedule without messages' time.

    Args:
        seconds: of an action; one tick each unless given.

    Raises:
        ScheduleError: no submesh can go on; marks where each waits.
    """
    starts: dict[Action, float] = {}
    ends: dict[Action, float] = {}
    position = [0] * len(schedule)
    free = [0.0] * len(schedule)
    going = True
    while going:
        going = False
        for k, row in enumerate(schedule):
            while position[k] < len(row):
                action = row[position[k]]
                needs = NEEDS[action.kind](action, schedule.num_stages)
                if any(n not in ends for n in needs):
                    break
                starts[action] = max([free[k], *(ends[n] for n in needs)])
                ends[action] = free[k] = starts[action] + seconds(action)
                position[k] += 1
                going = True
    if any(i < len(row) for i, row in zip(position, schedule, strict=True)):
        raise _deadlock(schedule, position, ends)
    busy = tuple(sum(seconds(a) for a in row) for row in schedule)
    return Replay(schedule, starts, ends, busy)


def _deadlock(
    schedule: Schedule, position: list[int], ends: Mapping[Action, float]
) -> ScheduleError:
    cells = {(k, i) for k, i in enumerate(position) if i < len(schedule[k])}
    waiting = [schedule[k][i] for k, i in sorted(cells)]
    where = ", ".join(f"stage {a.stage} waits at {a}" for a in waiting)
    needs = "; ".join(
        f"{a} needs "
        + " and ".join(str(n) for n in NEEDS[a.kind](a, schedule.num_stages) if n not in ends)
        for a in waiting
    )
    tick = max(ends.values(), default=0.0)
    return ScheduleError(
        f"schedule deadlocks at tick {tick:g}: {where}\n{marked(schedule, cells)}\n{needs}"
    )
