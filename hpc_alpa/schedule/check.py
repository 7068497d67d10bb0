"""Checks of schedules, and what they hold."""

from __future__ import annotations

from collections import Counter

from hpc_alpa.errors import ScheduleError
from hpc_alpa.schedule.action import Action, Pass, Schedule
from hpc_alpa.schedule.grid import marked
from hpc_alpa.schedule.replay import replay


def check(schedule: Schedule) -> None:
    """Check that each submesh runs its stages' actions once, and that all come to the end.

    Raises:
        ScheduleError: names the submesh, the position in its row and the action, and marks it in
            the schedule's text.
    """
    _check_cells(schedule)
    _check_whole(schedule)
    replay(schedule)


def _check_cells(schedule: Schedule) -> None:
    """Every stage has one submesh, and no action comes twice."""
    on: dict[int, Counter[int]] = {}
    for k, row in enumerate(schedule):
        for a in row:
            on.setdefault(a.stage, Counter())[k] += 1
    home = {stage: count.most_common(1)[0][0] for stage, count in on.items()}
    for k, row in enumerate(schedule):
        seen: dict[Action, int] = {}
        for i, a in enumerate(row):
            if home[a.stage] != k:
                problem = f"stage {a.stage} runs on submesh {home[a.stage]}"
            elif a in seen:
                problem = f"the submesh repeats {a}, which stands at position {seen[a]} too"
            else:
                seen[a] = i
                continue
            raise ScheduleError(
                f"submesh {k}, position {i}, {a}: {problem}\n{marked(schedule, {(k, i)})}"
            )


def _check_whole(schedule: Schedule) -> None:
    """No action is missing."""
    for stage in range(schedule.num_stages):
        k = schedule.placement[stage]
        expected = {
            Action(stage, p, m)
            for p in schedule.passes | {Pass.FORWARD}
            for m in range(schedule.num_microbatches)
        }
        if missing := sorted(expected.difference(schedule[k])):
            last = {(k, len(schedule[k]) - 1)} if schedule[k] else set()
            raise ScheduleError(
                f"submesh {k}: stage {stage} misses {' '.join(map(str, missing))}\n"
                f"{marked(schedule, last)}"
            )


def timeline(schedule: Schedule) -> tuple[tuple[Action, ...], ...]:
    """The actions that start in each tick, by submesh, one tick each. Raises as `check` does."""
    check(schedule)
    found = replay(schedule)
    columns: list[list[Action]] = [[] for _ in range(int(found.end))]
    for row in schedule:
        for a in row:
            columns[int(found.starts[a])].append(a)
    return tuple(map(tuple, columns))


def ticks(schedule: Schedule) -> int:
    """Number of ticks until the last action has ended, from the replay, not from a formula."""
    return len(timeline(schedule))


def peak_in_flight(schedule: Schedule, released_by: Pass | None = None) -> tuple[int, ...]:
    """Largest number of microbatches that each stage holds: forward has run, and backward has not.

    An action releases its microbatch when it has ended.

    Args:
        released_by: BACKWARD counts what is held until B, all that forward keeps; WEIGHT what is
            held until W, of which B has released what only it needs. None takes the last pass of
            the schedule.
    """
    return tuple(
        _peak([a for a in schedule[k] if a.stage == stage], released_by or schedule.last_pass)
        for stage, k in enumerate(schedule.placement)
    )


def peak_on_submeshes(schedule: Schedule, released_by: Pass | None = None) -> tuple[int, ...]:
    """As `peak_in_flight`, the stages of each submesh together: microbatches times stages."""
    return tuple(_peak(row, released_by or schedule.last_pass) for row in schedule)


def _peak(actions: list[Action] | tuple[Action, ...], released_by: Pass) -> int:
    held = highest = 0
    for action in actions:
        held += action.kind == Pass.FORWARD
        highest = max(highest, held)
        held -= action.kind == released_by
    return highest
