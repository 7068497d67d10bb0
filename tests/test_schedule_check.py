"""Schedules: the acceptance table, the text form, and a checker that rejects what is mutated."""

import pytest

from hpc_alpa.errors import ScheduleError
from hpc_alpa.schedule.action import Action, Pass, Schedule
from hpc_alpa.schedule.check import NEEDS, check, peak_in_flight, ticks, timeline
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


def swapped(schedule: Schedule, stage: int, a: int, b: int) -> Schedule:
    actions = list(schedule[stage])
    actions[a], actions[b] = actions[b], actions[a]
    return with_stage(schedule, stage, actions)


def with_stage(schedule: Schedule, stage: int, actions: list[Action]) -> Schedule:
    return Schedule([*schedule[:stage], actions, *schedule[stage + 1 :]])


@pytest.mark.parametrize("name", NAMES)
def test_both_take_2_s_plus_b_minus_1_ticks(name: str) -> None:
    for num_stages in range(1, 7):
        for num_microbatches in range(1, 9):
            schedule = SCHEDULES[name](num_stages, num_microbatches)
            check(schedule)
            assert ticks(schedule) == 2 * (num_stages + num_microbatches - 1)
            assert Schedule.parse(str(schedule)) == schedule
            assert (schedule.num_stages, schedule.num_microbatches) == (
                num_stages,
                num_microbatches,
            )


@pytest.mark.parametrize("name, peak", [("gpipe", (8, 8, 8, 8)), ("1f1b", (4, 3, 2, 1))])
def test_peak_in_flight(name: str, peak: tuple[int, ...]) -> None:
    assert peak_in_flight(SCHEDULES[name](4, 8)) == peak


def test_peak_in_flight_depends_on_the_distance_from_the_end() -> None:
    """What the stage slicing relies on: one list serves pipelines of every length."""
    for name in NAMES:
        longest = peak_in_flight(SCHEDULES[name](6, 4))[::-1]
        for num_stages in range(1, 7):
            shorter = peak_in_flight(SCHEDULES[name](num_stages, 4))[::-1]
            assert shorter == longest[:num_stages]


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


def test_deadlock_says_where_every_stage_waits() -> None:
    schedule = SCHEDULES["1f1b"](4, 6)
    actions = list(schedule[1])
    late = with_stage(schedule, 1, [actions[-1], *actions[:-1]])
    with pytest.raises(ScheduleError) as error:
        check(late)
    assert str(error.value) == (
        "schedule deadlocks at tick 4: stage 0 waits at 0B0, stage 1 waits at 1B5, "
        "stage 2 waits at 2F0, stage 3 waits at 3F0"
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stage", range(3))
def test_mutated_schedules_are_rejected(name: str, stage: int) -> None:
    schedule = SCHEDULES[name](3, 3)
    actions = list(schedule[stage])
    for k, action in enumerate(actions):
        without = actions[:k] + actions[k + 1 :]
        with pytest.raises(ScheduleError, match=f"stage {stage} misses {action}"):
            check(with_stage(schedule, stage, without))
        with pytest.raises(ScheduleError, match=f"stage {stage} repeats {action}"):
            check(with_stage(schedule, stage, [*actions, action]))
        other = Action((stage + 1) % 3, action.kind, action.microbatch)
        with pytest.raises(ScheduleError, match=f"stage {stage} runs another stage's {other}"):
            check(with_stage(schedule, stage, [*without, other]))
        later = actions.index(Action(stage, Pass.BACKWARD, action.microbatch))
        if action.kind == Pass.FORWARD:
            with pytest.raises(ScheduleError, match="schedule deadlocks at tick"):
                check(swapped(schedule, stage, k, later))


def test_a_schedule_needs_stages_and_microbatches() -> None:
    with pytest.raises(ScheduleError, match="not 0 stages and 4 microbatches"):
        SCHEDULES["gpipe"](0, 4)
