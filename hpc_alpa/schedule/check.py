"""Checks and replays of schedules, one tick per action.

An action starts as soon as the stage has run what stands before it and what it needs was finished
in an earlier tick: a forward needs the forward of the stage before, a backward needs the backward
of the stage after and its own forward.
"""

from collections import Counter
from collections.abc import Callable, Iterator

from hpc_alpa.errors import ScheduleError
from hpc_alpa.schedule.action import Action, Pass, Schedule

# [action, num_stages] -> the actions that must have finished before it
NEEDS: dict[Pass, Callable[[Action, int], list[Action]]] = {
    Pass.FORWARD: lambda a, n: [Action(a.stage - 1, a.kind, a.microbatch)] if a.stage else [],
    Pass.BACKWARD: lambda a, n: (
        [Action(a.stage, Pass.FORWARD, a.microbatch)]
        + ([Action(a.stage + 1, a.kind, a.microbatch)] if a.stage + 1 < n else [])
    ),
}


def check(schedule: Schedule) -> None:
    """Raise ScheduleError unless every stage runs each of its actions once, without deadlock."""
    for k, stage in enumerate(schedule):
        expected = {Action(k, p, m) for p in Pass for m in range(schedule.num_microbatches)}
        count = Counter(stage)
        for problem, actions in {
            "runs another stage's": {a for a in count if a.stage != k},
            "repeats": {a for a, n in count.items() if n > 1},
            "misses": expected - count.keys(),
        }.items():
            if actions:
                raise ScheduleError(f"stage {k} {problem} {' '.join(map(str, sorted(actions)))}")
    for _ in _replay(schedule):
        pass


def _replay(schedule: Schedule) -> Iterator[tuple[Action, ...]]:
    """The actions of each tick. Raises ScheduleError where no stage can go on."""
    done: set[Action] = set()
    position = [0] * len(schedule)
    for tick in range(sum(map(len, schedule))):
        waiting = [s[i] for s, i in zip(schedule, position, strict=True) if i < len(s)]
        if not waiting:
            return
        ready = tuple(a for a in waiting if done.issuperset(NEEDS[a.kind](a, len(schedule))))
        if not ready:
            where = ", ".join(f"stage {a.stage} waits at {a}" for a in waiting)
            raise ScheduleError(f"schedule deadlocks at tick {tick}: {where}")
        yield ready
        done.update(ready)
        for action in ready:
            position[action.stage] += 1


def timeline(schedule: Schedule) -> tuple[tuple[Action, ...], ...]:
    """The actions that run in each tick, by stage. Raises ScheduleError as `check` does."""
    check(schedule)
    return tuple(_replay(schedule))


def ticks(schedule: Schedule) -> int:
    """Number of ticks until the last action has finished, from the replay, not from a formula."""
    return len(timeline(schedule))


def peak_in_flight(schedule: Schedule) -> tuple[int, ...]:
    """Largest number of microbatches per stage whose forward has run and whose backward has not.

    A backward releases its microbatch when it has finished.
    """
    step = {Pass.FORWARD: 1, Pass.BACKWARD: -1}

    def peak(stage: tuple[Action, ...]) -> int:
        held = highest = 0
        for action in stage:
            held += step[action.kind]
            highest = max(highest, held)
        return highest

    return tuple(map(peak, schedule))
