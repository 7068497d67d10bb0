"""The simulator against closed forms, and against a plain one in exact fractions."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import pytest

from hpc_alpa.cluster import Link
from hpc_alpa.errors import ClusterError, ProgramError
from hpc_alpa.lower.program import Program
from hpc_alpa.report.plots.figure import CATEGORIES
from hpc_alpa.simulate import Simulation, simulate
from hpc_alpa.simulate.timeline import Event, check_trace, to_chrome
from tests.helpers.plain_simulator import PlainSimulator
from tests.helpers.programs import (
    Rank,
    data_parallel,
    kernel,
    mixed,
    pipeline,
    random_programs,
    unit_cost,
)

SCHEDULES = ("gpipe", "1f1b")


def close(value: object) -> object:
    return pytest.approx(value, rel=1e-12, abs=1e-12)


# ---------------------------------------------------------------------------------- closed forms
def test_two_equal_ranks_and_an_all_reduce() -> None:
    link = Link("wire", 0.25, 1 / 64)
    got = simulate(data_parallel(2, 3), unit_cost(link=link))
    # ring of two: 2 messages, and 2 * 1/2 of the 16 bytes
    assert got.step_seconds == close(3 * 1.0 + 2 * 0.25 + 16 / 64)
    assert got.compute_seconds == close((3.0, 3.0))
    assert got.exposed_communication == close((0.75, 0.75))


def test_two_unequal_ranks() -> None:
    got = simulate(data_parallel(2, 2, seconds=[1.0, 2.5]), unit_cost())
    assert got.step_seconds == close(5.0)
    assert got.exposed_communication == close((3.0, 0.0))
    waits = [e for e in got.timeline.events if e.category == "wait"]
    assert [(e.rank, e.start, e.end) for e in waits] == [(0, 2.0, 5.0)]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("stages, microbatches", [(1, 1), (1, 4), (2, 1), (2, 5), (3, 2), (4, 9)])
def test_equal_stages(schedule: str, stages: int, microbatches: int) -> None:
    forward, backward = 1.25, 2.5
    programs = pipeline(stages, microbatches, schedule, [forward], [backward])
    got = simulate(programs, unit_cost())
    assert got.step_seconds == close((stages + microbatches - 1) * (forward + backward))
    assert got.compute_seconds == close((microbatches * (forward + backward),) * stages)
    # GPipe holds all microbatches, 1F1B on stage s no more than S - s.
    peaks = got.peak_bytes
    if schedule == "1f1b" and 1 < stages < microbatches:
        assert sorted(set(peaks), reverse=True) == list(peaks)


def test_a_slow_stage_sets_the_pace() -> None:
    """GPipe: f1 + B f2 forward, when the second stage is the slow one; backward likewise."""
    got = simulate(pipeline(2, 6, "gpipe", [1.0, 3.0], [2.0, 5.0]), unit_cost())
    assert got.step_seconds == close((1 + 6 * 3) + (6 * 5 + 2))


def stages_and_link(rng: random.Random) -> tuple[list[float], list[float], int, float]:
    """Seconds of forward and of backward of each stage, microbatches, seconds of a message."""
    count = rng.randint(1, 5)
    forward, backward = ([rng.randint(1, 9) / 2 for _ in range(count)] for _ in "fb")
    return forward, backward, rng.randint(1, 10), rng.choice([0.0, 0.5, 2.0])


@pytest.mark.parametrize("seed", range(40))
def test_gpipe_of_unequal_stages_with_links(seed: int) -> None:
    """Two flow shops of equal jobs: each stage once, and the slowest B - 1 times more.

    A stage asks for what it needs when it is free, so its message is part of its work.
    """
    f, b, slots, c = stages_and_link(random.Random(seed))
    got = simulate(pipeline(len(f), slots, "gpipe", f, b), unit_cost(link=Link("wire", c, 0.0)))
    there = [x + c * (s > 0) for s, x in enumerate(f)]
    back = [x + c * (s < len(b) - 1) for s, x in enumerate(b)]
    expected = sum(sum(times) + (slots - 1) * max(times) for times in (there, back))
    assert got.step_seconds == close(expected)
    idle = 1 - slots * (sum(f) + sum(b)) / (len(f) * expected)
    assert got.bubble + got.communication == close(idle)


@pytest.mark.parametrize("seed", range(40))
def test_1f1b_of_unequal_stages(seed: int) -> None:
    """No stage starts before the first microbatch is there; T (Alpa, Sec. 5.2) is an upper bound.

    Where the last stage is the slowest, both are the same.
    """
    f, b, slots, _ = stages_and_link(random.Random(seed))
    both = [x + y for x, y in zip(f, b, strict=True)]
    got = simulate(pipeline(len(f), slots, "1f1b", f, b), unit_cost()).step_seconds
    least = max(sum(both[:s]) + slots * t for s, t in enumerate(both))
    assert least - 1e-9 <= got <= sum(both) + (slots - 1) * max(both) + 1e-9
    if both[-1] == max(both) and f[-1] == max(f) and b[-1] == max(b):
        assert got == close(sum(both) + (slots - 1) * max(both))


@pytest.mark.parametrize("seed", range(20))
def test_1f1b_of_a_slow_last_stage_with_links(seed: int) -> None:
    """The last stage waits for each of its messages; the others are faster, theirs included."""
    f, b, slots, c = stages_and_link(random.Random(seed))
    f[-1], b[-1] = max(f) + 2 * c, max(b) + 2 * c
    got = simulate(pipeline(len(f), slots, "1f1b", f, b), unit_cost(link=Link("wire", c, 0.0)))
    hops = len(f) - 1
    pace = f[-1] + b[-1] + (c if hops else 0.0)
    assert got.step_seconds == close(sum(f) + sum(b) + 2 * hops * c + (slots - 1) * pace)


def test_messages_that_are_not_hidden() -> None:
    """A stage asks for a microbatch when it needs it: each costs its transfer, B times each way."""
    c, b = 0.5, 5
    got = simulate(pipeline(2, b, "gpipe", [1.0], [2.0]), unit_cost(link=Link("wire", c, 0.0)))
    assert got.step_seconds == close((b + 1) * (1 + 2) + 2 * b * c)


def test_a_message_starts_with_its_second_side() -> None:
    a = Rank(0).input("x").output("x").send("x", 1, "m.s").compute([], "y", 5.0).wait("m.s")
    b = Rank(1).compute([], "z", 2.0).allocate("x").recv("x", 0, "m.r").wait("m.r")
    programs = [a.free("y").program(), b.free("x", "z").program()]
    got = simulate(programs, unit_cost(link=Link("wire", 1.0, 0.5)))
    spans = {(e.rank, e.category): (e.start, e.end) for e in got.timeline.events if e.duration}
    assert spans == {
        (0, "run"): (0.0, 5.0),
        (1, "run"): (0.0, 2.0),
        (0, "send"): (2.0, 11.0),  # 1 + 16 / 2 seconds
        (1, "recv"): (2.0, 11.0),
    }
    assert got.step_seconds == 11.0 and got.exposed_communication == (6.0, 9.0)


# ---------------------------------------------------------------------------------- shared cores
def independent(seconds: Sequence[float]) -> list[Program]:
    return [
        Rank(r).compute([], "x", s).free("x").program() for r, s in enumerate(seconds)
    ]  # fmt: skip


def test_four_ranks_on_two_cores() -> None:
    got = simulate(independent([3.0] * 4), unit_cost(cores=2))
    assert got.step_seconds == close(6.0) and got.compute_seconds == close((6.0,) * 4)
    assert simulate(independent([3.0] * 4), unit_cost(cores=4)).step_seconds == 3.0
    assert simulate(independent([3.0] * 4), unit_cost(cores=2), cores=[None]).step_seconds == 3.0
    assert simulate(independent([3.0] * 4), unit_cost(), cores=[1]).step_seconds == close(12.0)


def test_unequal_work_on_one_core() -> None:
    """Processor sharing: the one with less work ends first, and the others speed up."""
    got = simulate(independent([1.0, 2.0, 4.0]), unit_cost(cores=1))
    assert got.compute_seconds == close((3.0, 5.0, 7.0))


def test_late_rank_on_shared_cores() -> None:
    """Rank 2 comes at 1 s: the others have 2 of 3 s left; three on two cores run at 2/3."""
    ranks = [Rank(r).compute([], "x", 3.0).free("x") for r in range(2)]
    late = Rank(2).allocate("y").recv("y", 3, "m.r").wait("m.r").compute([], "x", 1.0)
    sender = Rank(3).input("y").output("y").send("y", 2, "m.s").wait("m.s")
    programs = [r.program() for r in (*ranks, late.free("x", "y"), sender)]
    got = simulate(programs, unit_cost(cores=2, link=Link("wire", 1.0, 0.0)))
    # 1 s, then 1 s of work each in 1.5 s, then the last second of the first two
    assert got.compute_seconds == close((3.5, 3.5, 1.5, 0.0))


def test_a_rank_that_waits_uses_no_core() -> None:
    """Pipelines on one core: no more than one stage's work at once, so their sum."""
    for schedule in SCHEDULES:
        got = simulate(pipeline(3, 4, schedule), unit_cost(cores=1))
        assert got.step_seconds == close(3 * 4 * 3.0)
    # Hosts do not share: two of two ranks each.
    got = simulate(independent([2.0] * 4), unit_cost(2, 2, 1))
    assert got.step_seconds == close(4.0)


def test_launch_overhead_counts_per_kernel() -> None:
    r = Rank(0).body("b", kernel("full", [], "x", 1.0), kernel("neg", ["x"], "y", 1.0))
    program = r.run("b").free("x", "y").program()
    got = simulate([program], unit_cost(), launch_overhead=0.25)
    assert got.step_seconds == close(2.5)


# ---------------------------------------------------------------------------- against the plain one
@pytest.mark.parametrize("seed", range(40))
def test_random_programs_equal_the_plain_simulator(seed: int) -> None:
    rng = random.Random(seed)
    num_ranks = rng.randint(2, 6)
    hosts = rng.choice([1, 2, 3])
    devices = -(-num_ranks // hosts)
    link, network = (Link("wire", rng.choice([0.0, 0.125]), rng.choice([0, 2**-6])) for _ in "ab")
    cost = unit_cost(hosts, devices, rng.choice([1, 2, devices]), link, network)
    programs = random_programs(seed, num_ranks, 30)
    got = simulate(programs, cost)
    want = PlainSimulator(programs, cost, [h.cores for h in cost.cluster.hosts])
    assert got.step_seconds == close(float(max(want.ended.values())))
    assert got.compute_seconds == close(tuple(float(want.busy[p.rank]) for p in programs))
    ends = [b + e for b, e in zip(got.compute_seconds, got.exposed_communication, strict=True)]
    assert ends == close([float(want.ended[p.rank]) for p in programs])


@pytest.mark.parametrize("cores", [1, 2, 3])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_pipelines_equal_the_plain_simulator(schedule: str, cores: int) -> None:
    link = Link("wire", 0.1, 0.01)
    programs = pipeline(3, 4, schedule, [1.0, 1.5, 0.75], [2.0, 2.25, 3.0])
    cost = unit_cost(cores=cores, link=link)
    got, want = simulate(programs, cost), PlainSimulator(programs, cost, [cores])
    assert got.step_seconds == close(float(max(want.ended.values())))


# -------------------------------------------------------------------------------- what always holds
def some(seed: int) -> Simulation:
    link = Link("wire", 0.25, 0.01)
    cost = unit_cost(1, 5, 1 + seed % 5, link)
    return simulate(random_programs(seed, 5, 40), cost)


@pytest.mark.parametrize("seed", range(10))
def test_what_a_timeline_keeps(seed: int) -> None:
    got = some(seed)
    timeline = got.timeline
    busy, exposed = timeline.busy, timeline.exposed_communication
    for rank in range(5):
        assert got.compute_seconds[rank] == close(busy.get((rank, "compute"), 0.0))
        assert got.exposed_communication[rank] == close(exposed.get(rank, 0.0))
        blocking = [
            e
            for e in timeline.events
            if e.rank == rank and e.category not in ("send", "recv") and e.duration
        ]
        for a, b in zip(blocking, blocking[1:], strict=False):
            assert b.start >= a.end - 1e-12  # a rank does one thing at a time
    assert got.step_seconds >= max(got.compute_seconds)
    assert got.step_seconds == close(max(e.end for e in timeline.events))
    check_trace(to_chrome([timeline]))


@pytest.mark.parametrize("seed", range(10))
def test_no_event_before_its_cause(seed: int) -> None:
    events = some(seed).timeline.events

    def ends_before(e: Event, rank: int) -> float:
        """Latest end of what blocks a rank and began before the event did."""
        mine = [x.end for x in events if x.rank == rank and x.stream == "compute"]
        return max((t for t in mine if t <= e.start + 1e-12), default=0.0)

    meetings: dict[tuple[str, float, float], set[int]] = {}
    for e in events:
        if e.category == "all_reduce":
            meetings.setdefault((e.category, e.start, e.duration), set()).add(e.rank)
            # Nobody of the group computes while it communicates.
            overlapping = [
                x
                for x in events
                if x.rank == e.rank and x.stream == "compute" and x.start < e.end
                and x.end > e.start + 1e-12 and e.duration
            ]  # fmt: skip
            assert not overlapping
            assert e.start >= ends_before(e, e.rank) - 1e-12
    assert meetings and all(len(ranks) >= 2 for ranks in meetings.values())
    sends = sorted((e.start, e.end) for e in events if e.category == "send")
    assert sends == sorted((e.start, e.end) for e in events if e.category == "recv")


def test_the_same_twice_and_in_any_order() -> None:
    for seed in range(3):
        assert some(seed) == some(seed)
    programs, cost = pipeline(4, 5), unit_cost(cores=2)
    a, b = simulate(programs, cost), simulate(programs[::-1], cost)
    assert a.step_seconds == close(b.step_seconds)
    assert a.peak_bytes == b.peak_bytes[::-1]


def test_events_have_names_and_categories() -> None:
    got = simulate(pipeline(2, 2), unit_cost(link=Link("wire", 0.5, 0.0)))
    names = [e.name for e in got.timeline.events if e.rank == 1 and e.stream == "compute"]
    assert names == ["1F0", "1B0", "1F1", "1B1"]
    assert {e.category for e in got.timeline.events} == {
        "forward", "backward", "send", "recv", "wait",
    }  # fmt: skip
    assert all(e.args["action"] for e in got.timeline.events)
    got = simulate(mixed(), unit_cost())
    assert {e.category for e in got.timeline.events} <= set(CATEGORIES)
    reduced = [e for e in got.timeline.events if e.category == "reduce_scatter"]
    assert len(reduced) == 4 and {e.args["bytes"] for e in reduced} == {16}


# ----------------------------------------------------------------------------------------- errors
def test_errors() -> None:
    with pytest.raises(ClusterError, match="device 1 is not in cluster"):
        simulate(data_parallel(2), unit_cost(devices=1))
    with pytest.raises(ClusterError, match="for the 1 hosts"):
        simulate(data_parallel(2), unit_cost(), cores=[1, 2])
    programs = data_parallel(2)
    lonely = Rank(1).program()
    with pytest.raises(ProgramError, match="programs deadlock: rank 0 waits"):
        simulate([programs[0], lonely], unit_cost())


# -------------------------------------------------------------------------------------- how fast
def test_sixty_four_ranks_in_seconds() -> None:
    programs = pipeline(64, 100)
    cost = unit_cost(8, 8, 4, link=Link("wire", 1e-3, 0.0))
    start = time.process_time()
    got = simulate(programs, cost)
    assert time.process_time() - start < 6.0
    assert got.step_seconds >= (64 + 100 - 1) * 3.0
