"""Events and timelines: totals against a count on a grid of time."""

from typing import Any

import numpy as np
import pytest

from hpc_alpa.errors import DataError
from hpc_alpa.simulate.timeline import STREAMS, Event, Timeline


def _event(start: float, duration: float, rank: int = 0, stream: str = "compute") -> Event:
    return Event(rank, stream, "2F0", "forward", start, duration)


def random_events(seed: int, num_events: int, num_ranks: int = 3) -> tuple[Event, ...]:
    """Events on a grid of whole milliseconds, many of them at the same time."""
    random = np.random.default_rng(seed)
    return tuple(
        Event(
            rank=int(random.integers(num_ranks)),
            stream=STREAMS[random.integers(2)],
            name=f"event {i}",
            category=str(random.choice(["forward", "all_reduce"])),
            start=int(random.integers(60)) / 1000,
            duration=int(random.integers(8)) / 1000,
            args={"microbatch": i % 4, "bytes": i},
        )
        for i in range(num_events)
    )


@pytest.mark.parametrize("seed", range(20))
def test_totals_equal_a_count_on_a_grid(seed: int) -> None:
    timeline = Timeline(random_events(seed, num_events=5 * seed), "predicted")
    busy = np.zeros((3, 2, 80), dtype=bool)
    for event in timeline.events:
        first, last = round(event.start * 1000), round(event.end * 1000)
        busy[event.rank, STREAMS.index(event.stream), first:last] = True
    for rank in timeline.ranks:
        for index, stream in enumerate(STREAMS):
            assert timeline.busy[rank, stream] == pytest.approx(busy[rank, index].sum() / 1000)
        exposed = (busy[rank, 1] & ~busy[rank, 0]).sum() / 1000
        assert timeline.exposed_communication[rank] == pytest.approx(exposed, abs=1e-12)
    assert timeline.ranks == tuple(sorted({e.rank for e in timeline.events}))
    ends = [e.end for e in timeline.events] or [0.0]
    starts = [e.start for e in timeline.events] or [0.0]
    assert timeline.makespan == pytest.approx(max(ends) - min(starts))


def test_a_small_timeline_by_hand() -> None:
    #   compute        [0 .... 4]       [6 7]
    #   communication        [3 .. 5] [5.5 ...... 8]
    compute = _event(6, 1), _event(0, 4)
    communication = _event(3, 2, stream="communication"), _event(5.5, 2.5, stream="communication")
    timeline = Timeline(compute + communication, "measured")
    assert timeline.makespan == 8
    assert timeline.busy == {(0, "compute"): 5, (0, "communication"): 4.5}
    assert timeline.exposed_communication == {0: 2.5}
    assert [e.start for e in timeline.events] == [0, 3, 5.5, 6]


def test_aligned_starts_at_zero() -> None:
    timeline = Timeline((_event(7, 1), _event(5, 2)), "measured").aligned()
    assert [(e.start, e.duration) for e in timeline.events] == [(0, 2), (2, 1)]
    assert Timeline((), "measured").aligned().makespan == 0


def test_values_are_compared_and_hashed() -> None:
    assert _event(1, 2) == _event(1, 2) != _event(1, 3)
    assert len({_event(1, 2), _event(1, 2)}) == 1
    assert Timeline((_event(1, 2), _event(0, 1)), "measured") == Timeline(
        (_event(0, 1), _event(1, 2)), "measured"
    )
    assert _event(1, 2).args == {"op": "2F0", "bytes": 0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": -1.0}, "starts at -1.0 s"),
        ({"duration": -1e-9}, "lasts -1e-09 s"),
        ({"duration": float("nan")}, "lasts nan s"),
        ({"start": float("inf")}, "starts at inf s"),
        ({"stream": "copy"}, "no stream 'copy'. Use one of compute, communication"),
    ],
)
def test_bad_events_are_named_errors(changes: dict[str, Any], message: str) -> None:
    good = {"rank": 3, "stream": "compute", "name": "2F0", "category": "forward"}
    with pytest.raises(DataError, match=f"event '2F0' of rank 3.*{message}"):
        Event(**{**good, "start": 0.0, "duration": 1.0, **changes})


def test_a_bad_origin_is_a_named_error() -> None:
    with pytest.raises(DataError, match="no origin 'guessed' .* predicted, measured"):
        Timeline((), "guessed")
