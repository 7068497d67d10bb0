"""Schedules: the text form, and a checker that rejects what is mutated and marks the cell."""

import re

import pytest

from hpc_alpa.errors import ScheduleError
from hpc_alpa.schedule.action import Action, Pass, Schedule
from hpc_alpa.schedule.check import check, timeline
from hpc_alpa.schedule.replay import NEEDS
from hpc_alpa.schedule.table import SCHEDULES

NAMES = sorted(SCHEDULES)
TEXT = """\
0F0 0F1 0F2 0F3 0B0 0F4 0B1 0F5 0B2 0B3 0B4 0B5
1F0 1F1 1F2 1B0 1F3 1B1 1F4 1B2 1F5 1B3 1B4 1B5
2F0 2F1 2B0 2F2 2B1 2F3 2B2 2F4 2B3 2F5 2B4 2B5
3F0 3B0 3F1 3B1 3F2 3B2 3F3 3B3 3F4 3B4 3F5 3B5"""
TIMELINE = (
    "0F0 | 0F1 1F0 | 0F2 1F1 2F0 | 0F3 1F2 2F1 3F0 | 3B0 | 2B0 3F1 | 1B0 2F2 3B1 | "
    "0B0 1F3 2B1 3F2 | 1B1 2F3 3B2 | 0B1 2B2 3F3 | 1B2 3B3 | 0B2 2B3 | 1B3 | 0B3"
)


def swapped(schedule: Schedule, row: int, a: int, b: int) -> Schedule:
    actions = list(schedule[row])
    actions[a], actions[b] = actions[b], actions[a]
    return with_row(schedule, row, actions)


def with_row(schedule: Schedule, row: int, actions: list[Action]) -> Schedule:
    return Schedule([*schedule[:row], actions, *schedule[row + 1 :]])


def test_text() -> None:
    assert str(SCHEDULES["1f1b"](4, 6)) == TEXT
    assert Schedule.parse(TEXT) == SCHEDULES["1f1b"](4, 6)


def test_timeline_of_the_acceptance_page() -> None:
    per_tick = timeline(SCHEDULES["1f1b"](4, 4))
    assert " | ".join(" ".join(map(str, actions)) for actions in per_tick) == TIMELINE


@pytest.mark.parametrize("text", ["2X0", "F0", "2F", "2F0 ", "-1F0", "2f0", ""])
def test_what_is_not_an_action_is_named(text: str) -> None:
    with pytest.raises(ScheduleError, match="is not an action"):
        Action.parse(text)


def test_every_pass_says_what_it_needs() -> None:
    assert NEEDS.keys() == set(Pass)


def test_deadlock_says_where_every_stage_waits_and_for_what() -> None:
    schedule = SCHEDULES["1f1b"](4, 6)
    actions = list(schedule[1])
    late = with_row(schedule, 1, [actions[-1], *actions[:-1]])
    with pytest.raises(ScheduleError) as error:
        check(late)
    assert str(error.value) == (
        "schedule deadlocks at tick 4: stage 0 waits at 0B0, stage 1 waits at 1B5, "
        "stage 2 waits at 2F0, stage 3 waits at 3F0\n"
        "submesh 0: 0F0 0F1 0F2 0F3 [0B0] 0F4 0B1 0F5 0B2 0B3 0B4 ...\n"
        "submesh 1: [1B5] 1F0 1F1 1F2 1B0 1F3 1B1 ...\n"
        "submesh 2: [2F0] 2F1 2B0 2F2 2B1 2F3 2B2 ...\n"
        "submesh 3: [3F0] 3B0 3F1 3B1 3F2 3B2 3F3 ...\n"
        "0B0 needs 1B0; 1B5 needs 1F5 and 2B5; 2F0 needs 1F0; 3F0 needs 2F0"
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("row", range(3))
def test_mutated_schedules_are_rejected(name: str, row: int) -> None:
    """Each cell in turn: left out, there twice, on another submesh, after what needs it."""
    schedule = SCHEDULES[name](3, 3)
    actions = list(schedule[row])
    for k, action in enumerate(actions):
        without = actions[:k] + actions[k + 1 :]
        with pytest.raises(ScheduleError, match=f"submesh {row}: stage .* misses {action}"):
            check(with_row(schedule, row, without))
        at = len(actions)
        where = f"submesh {row}, position {at}, {action}: .* repeats {action}"
        with pytest.raises(ScheduleError, match=f"{where}.* position {k} too") as error:
            check(with_row(schedule, row, [*actions, action]))
        assert marks(error.value) == {(row, str(action))}
        foreign = schedule[(row + 1) % 3][k]
        where = f"submesh {row}, position {at - 1}, {foreign}: stage {foreign.stage} runs on"
        with pytest.raises(ScheduleError, match=f"{where} submesh {(row + 1) % 3}") as error:
            check(with_row(schedule, row, [*without, foreign]))
        assert marks(error.value) == {(row, str(foreign))}
        for later in actions[k + 1 :]:
            if action in NEEDS[later.kind](later, schedule.num_stages):
                with pytest.raises(ScheduleError, match="schedule deadlocks at tick") as error:
                    check(swapped(schedule, row, k, actions.index(later)))
                assert (row, str(later)) in marks(error.value)


def marks(error: ScheduleError) -> set[tuple[int, str]]:
    """(submesh, action) of the marked cells of a message."""
    return {
        (int(line[1]), cell)
        for line in re.finditer(r"^submesh +(\d+): (.*\[.*)$", str(error), re.MULTILINE)
        for cell in re.findall(r"\[(.*?)\]", line[2])
    }


def test_a_weight_half_alone_is_missing_its_others() -> None:
    """One W says that all backward passes are split."""
    schedule = SCHEDULES["1f1b"](2, 2)
    mixed = with_row(schedule, 1, [*schedule[1], Action(1, Pass.WEIGHT, 0)])
    with pytest.raises(ScheduleError, match="stage 0 misses 0W0 0W1"):
        check(mixed)


def test_a_schedule_needs_stages_and_microbatches() -> None:
    for name in NAMES:
        with pytest.raises(ScheduleError, match="not 0 stages and 4 microbatches"):
            SCHEDULES[name](0, 4)
        with pytest.raises(ScheduleError, match="0 microbatches"):
            SCHEDULES[name](2, 0)


def test_stages_that_a_family_does_not_place_are_named() -> None:
    with pytest.raises(ScheduleError, match="1f1b needs one stage on each submesh, not 2"):
        SCHEDULES["1f1b"](2, 4, 2)
    with pytest.raises(ScheduleError, match="zb_v needs two stages on each submesh, not 1"):
        SCHEDULES["zb_v"](2, 4, 1)
    for name, placement in {"1f1b": (0, 0, 1), "zb_v": (0, 1, 0, 1), "zb_h1": (1, 0)}.items():
        with pytest.raises(ScheduleError, match=r"stages \[0, 1.*\] of the plan lie on"):
            SCHEDULES[name].on(placement, 4)
