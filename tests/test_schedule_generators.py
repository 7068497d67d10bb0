"""Every schedule over many sizes: valid, as long and as large as its source says."""

from __future__ import annotations

import functools
import inspect
import random
import textwrap

import pytest

from hpc_alpa.schedule import (
    SCHEDULES,
    Action,
    Pass,
    Schedule,
    flush,
    interleaved,
    pass_seconds,
    replay,
    zero_bubble,
)
from hpc_alpa.schedule.check import check, peak_in_flight, peak_on_submeshes, ticks, timeline
from hpc_alpa.schedule.replay import NEEDS

NAMES = sorted(SCHEDULES)
TRAINING = [n for n in NAMES if SCHEDULES[n].trains]
PER_SUBMESH = {"interleaved_1f1b": (1, 2, 3), "inference": (1, 2, 3)}
SIZES = [(p, b) for p in (1, 2, 3, 4, 6) for b in (1, 2, 3, 4, 5, 7, 8, 13)]


@pytest.mark.parametrize("name", NAMES)
def test_all_sizes_are_valid_and_print(name: str) -> None:
    for p, b in SIZES:
        for v in PER_SUBMESH.get(name, (None,)):
            schedule = SCHEDULES[name](p, b, v)
            check(schedule)
            assert Schedule.parse(str(schedule)) == schedule
            stages = p * (v or SCHEDULES[name].per_submesh)
            found = schedule.num_submeshes, schedule.num_stages, schedule.num_microbatches
            assert found == (p, stages, b)
            assert schedule.placement == SCHEDULES[name].placement(p, v)
            assert SCHEDULES[name].on(schedule.placement, b) == schedule


@pytest.mark.parametrize("name", NAMES)
def test_microbatches_keep_their_order(name: str) -> None:
    """So what sums over microbatches sums in one order under every schedule."""
    for p, b in SIZES:
        schedule = SCHEDULES[name](p, b)
        for stage in range(schedule.num_stages):
            for kind in schedule.passes:
                row = schedule[schedule.placement[stage]]
                mine = [a.microbatch for a in row if (a.stage, a.kind) == (stage, kind)]
                assert mine == list(range(b))


def test_placements() -> None:
    assert SCHEDULES["interleaved_1f1b"].placement(2, 3) == (0, 1, 0, 1, 0, 1)
    assert SCHEDULES["zb_v"].placement(3) == (0, 1, 2, 2, 1, 0)
    assert SCHEDULES["zb_h1"].placement(3) == (0, 1, 2)


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "eager_1f1b"])
def test_flushes_take_2_s_plus_b_minus_1_ticks(name: str) -> None:
    for p, b in SIZES:
        assert ticks(SCHEDULES[name](p, b)) == 2 * (p + b - 1)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("gpipe", (8, 8, 8, 8)),
        ("1f1b", (4, 3, 2, 1)),
        ("eager_1f1b", (7, 5, 3, 1)),
        ("inference", (1, 1, 1, 1)),
        ("zb_h1", (4, 4, 4, 4)),
    ],
)
def test_peak_in_flight(name: str, peak: tuple[int, ...]) -> None:
    assert peak_in_flight(SCHEDULES[name](4, 8)) == peak


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "eager_1f1b", "zb_h1"])
def test_peak_in_flight_depends_on_the_distance_from_the_end(name: str) -> None:
    """What the stage slicing relies on: one list serves pipelines of every length."""
    longest = peak_in_flight(SCHEDULES[name](6, 4), Pass.BACKWARD)[::-1]
    for p in range(1, 7):
        shorter = peak_in_flight(SCHEDULES[name](p, 4), Pass.BACKWARD)[::-1]
        assert shorter == longest[:p]


def test_peaks_count_every_moment() -> None:
    """Against a plain count over all prefixes of a row."""
    for name in TRAINING:
        schedule = SCHEDULES[name](3, 7)
        for kind in schedule.passes - {Pass.FORWARD}:
            for k, row in enumerate(schedule):
                held = [
                    len([a for a in row[:i] if a.kind == Pass.FORWARD])
                    - len([a for a in row[:i] if a.kind == kind])
                    for i in range(len(row) + 1)
                ]
                assert max(held) == peak_on_submeshes(schedule, kind)[k]


# ------------------------------------------------------------------------------- time and memory
@pytest.mark.parametrize("name", NAMES)
def test_replay_is_the_longest_path(name: str) -> None:
    """Against one action after another, by random seconds."""
    schedule = SCHEDULES[name](3, 5)
    rng = random.Random(name)
    seconds = {a: rng.uniform(0.5, 2) for row in schedule for a in row}
    before = {b: a for row in schedule for a, b in zip(row, row[1:], strict=False)}

    @functools.cache
    def end(a: Action) -> float:
        needs = [*NEEDS[a.kind](a, schedule.num_stages), *filter(None, [before.get(a)])]
        return max(map(end, needs), default=0.0) + seconds[a]

    found = replay(schedule, seconds.__getitem__)
    assert found.ends == pytest.approx({a: end(a) for a in seconds})
    assert found.end == max(found.ends.values())
    assert found.bubble == pytest.approx(1 - sum(seconds.values()) / (3 * found.end))


def idle(name: str, p: int, b: int, seconds: tuple[float, float, float]) -> float:
    """Seconds of a step that are not a submesh's own work; a submesh has the same work always."""
    schedule = SCHEDULES[name](p, b)
    parts = schedule.num_stages // p
    each = pass_seconds(schedule, *(s / parts for s in seconds))
    return replay(schedule, lambda a: each[a.kind]).end - b * sum(seconds)


@pytest.mark.parametrize("seconds", [(1.0, 1.0, 1.0), (1.0, 1.25, 0.75)])
def test_bubbles_are_those_of_the_sources(seconds: tuple[float, float, float]) -> None:
    """Seconds of forward, input half, weight half: Qi 2023 Table 2, Narayanan 2021 SC Sec. 2.2."""
    f, b, w = seconds
    for p in (1, 2, 3, 4, 6):
        for n in (2 * p, 3 * p, 4 * p):
            whole = (p - 1) * (f + b + w)
            for name in ("gpipe", "1f1b", "eager_1f1b"):
                assert idle(name, p, n, seconds) == pytest.approx(whole)
            assert idle("zb_h1", p, n, seconds) == pytest.approx((p - 1) * (f + b - w))
            assert idle("interleaved_1f1b", p, n, seconds) == pytest.approx(whole / 2)
            if f == b == w:
                assert idle("zb_v", p, n, seconds) == pytest.approx((p - 1) * f / 2)


def test_interleaving_holds_more() -> None:
    """Forwards before the first backward, and one more (Narayanan 2021 SC, Sec. 2.2)."""
    for p in (2, 3, 4, 6):
        for v in (2, 3):
            expected = tuple((v - 1) * p + 2 * (p - 1 - k) + 1 for k in range(p))
            assert peak_on_submeshes(SCHEDULES["interleaved_1f1b"](p, 2 * p, v)) == expected


def test_zero_bubbles_hold_what_1f1b_holds() -> None:
    """ZB-H1 at the first stage's microbatches; ZB-V at as many, of two halves each."""
    for p in (2, 3, 4, 6):
        for n in (p, 2 * p, 4 * p):
            plain = peak_on_submeshes(SCHEDULES["1f1b"](p, n))
            h1 = SCHEDULES["zb_h1"](p, n)
            assert peak_on_submeshes(h1, Pass.BACKWARD) == plain
            assert max(peak_on_submeshes(h1, Pass.WEIGHT)) == max(plain)
            assert max(peak_on_submeshes(SCHEDULES["zb_v"](p, n))) <= 2 * max(plain)


def test_more_stages_of_a_submesh_leave_less_bubble() -> None:
    found = []
    for v in (1, 2, 3):
        schedule = SCHEDULES["interleaved_1f1b"](4, 8, v)
        found.append(replay(schedule, lambda a, v=v: 1 / v).bubble)  # type: ignore[misc]
    assert found == sorted(found, reverse=True) and len(set(found)) == 3


# -------------------------------------------------------------------------------- the docstrings
def drawn(function: object) -> list[list[str]]:
    """The columns of the table in a generator's docstring, one list per submesh."""
    text = textwrap.dedent(inspect.getdoc(function) or "")
    return [line.split() for line in text.splitlines() if line.startswith("    ")]


@pytest.mark.parametrize(
    ("function", "name", "p", "b", "v"),
    [
        (flush.gpipe, "gpipe", 2, 3, 1),
        (flush.one_forward_one_backward, "1f1b", 2, 3, 1),
        (flush.eager, "eager_1f1b", 2, 3, 1),
        (interleaved.interleaved_1f1b, "interleaved_1f1b", 2, 2, 2),
        (interleaved.inference, "inference", 2, 3, 1),
        (zero_bubble.zb_h1, "zb_h1", 2, 3, 1),
        (zero_bubble.zb_v, "zb_v", 2, 3, 2),
    ],
)
def test_drawings(function: object, name: str, p: int, b: int, v: int) -> None:
    schedule = SCHEDULES[name](p, b, v)
    columns = timeline(schedule)
    for row, cells in zip(schedule, drawn(function), strict=True):
        at = {str(a): t for t, column in enumerate(columns) for a in column if a in row}
        assert {cell: t for t, cell in enumerate(cells) if cell != "."} == at
        assert len(cells) == len(columns)
