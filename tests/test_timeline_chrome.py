"""Chrome trace-event JSON of timelines: round trips, and a checker that rejects each mutation."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpc_alpa.errors import DataError
from hpc_alpa.simulate import timeline as tl
from hpc_alpa.simulate.timeline import Event, Timeline
from tests.test_timeline_events import random_events

Trace = dict[str, Any]


def _pair(seed: int, num_events: int = 40) -> tuple[Timeline, Timeline]:
    return (
        Timeline(random_events(seed, num_events), "predicted"),
        Timeline(random_events(seed + 1000, num_events), "measured"),
    )


@pytest.mark.parametrize("seed", range(10))
def test_round_trip(seed: int, tmp_path: Path) -> None:
    """Equal but for the order of events that begin at the same time on one rank and stream."""
    path = tmp_path / "timeline.json"
    before = _pair(seed, num_events=10 * seed)
    tl.save(path, before)
    after = tl.load(path)
    assert [t.origin for t in after] == ["predicted", "measured"]
    for one, other in zip(before, after, strict=True):
        assert sorted(one.events, key=str) == sorted(other.events, key=str)
    assert tl.to_chrome(after) == tl.to_chrome(before)
    assert list(tmp_path.iterdir()) == [path]


def test_rounding_never_makes_neighbours_overlap() -> None:
    ends = [0.0]
    for i in range(1, 400):
        ends.append(ends[-1] + i * 1.23456789e-7 / 3)
    spans = zip(ends, ends[1:], strict=False)
    events = tuple(Event(0, "compute", str(a), "forward", a, b - a) for a, b in spans)
    trace = tl.to_chrome([Timeline(events, "measured")])
    tl.check_trace(trace)
    assert len({e["tid"] for e in trace["traceEvents"] if e["ph"] == "X"}) == 1
    (after,) = tl.from_chrome(trace)
    for one, other in zip(events, after.events, strict=True):
        assert other.start == pytest.approx(one.start, abs=0.51e-9)


def test_processes_threads_and_units() -> None:
    events = (
        Event(1, "communication", "all_reduce grads", "all_reduce", 2e-3, 1e-3, {"bytes": 4096}),
        Event(1, "compute", "1F0", "forward", 0, 2e-3, {"op": "run", "microbatch": 0}),
        Event(0, "communication", "send", "send", 1e-3, 4e-3),
        Event(0, "communication", "recv", "recv", 2e-3, 1e-3),
    )
    trace = tl.to_chrome([Timeline(events, origin) for origin in tl.ORIGINS])
    rows = trace["traceEvents"]
    names = {r["pid"]: r["args"]["name"] for r in rows if r["name"] == "process_name"}
    assert list(names.values()) == ["predicted", "measured"]
    threads = {r["tid"]: r["args"]["name"] for r in rows if r["name"] == "thread_name"}
    assert list(threads.values()) == 2 * [
        "rank 0 communication",
        "rank 0 communication (lane 2)",  # the receive runs while the send does
        "rank 1 compute",
        "rank 1 communication",
    ]
    (row,) = (r for r in rows if r["name"] == "all_reduce grads" and names[r["pid"]] == "measured")
    assert (row["ts"], row["dur"], row["cat"]) == (2000.0, 1000.0, "all_reduce")
    assert row["args"] == {"op": "all_reduce grads", "bytes": 4096}
    assert threads[row["tid"]] == "rank 1 communication"
    numbers = {*names, *threads}
    assert len(numbers) == 10 and 0 not in numbers  # Perfetto treats 0 and equal numbers otherwise


@pytest.mark.parametrize("seed", range(10))
def test_what_we_write_passes_the_check(seed: int) -> None:
    trace = tl.to_chrome(_pair(seed, num_events=100))
    tl.check_trace(json.loads(json.dumps(trace, allow_nan=False)))


def _first(trace: Trace, phase: str, name: str = "") -> Trace:
    row: Trace = next(
        r for r in trace["traceEvents"] if r["ph"] == phase and name in ("", r["name"])
    )
    return row


def _overlap(trace: Trace) -> None:
    row = _first(trace, "X")
    trace["traceEvents"].append({**row, "name": "late", "ts": row["ts"] + row["dur"] / 2})


MUTATIONS: dict[str, tuple[Callable[[Trace], object], str]] = {
    "no list": (lambda t: t.pop("traceEvents"), "no list 'traceEvents'"),
    "row not an object": (lambda t: t["traceEvents"].append([1]), "it is list, not an object"),
    "no phase": (lambda t: _first(t, "X").pop("ph"), "phase 'None'"),
    "unknown phase": (lambda t: _first(t, "X").update(ph="B"), "phase 'B' is not one of M, X"),
    **{
        f"no {key}": (
            lambda t, key=key: _first(t, "X").pop(key),  # type: ignore[misc]
            f"key '{key}' is missing",
        )
        for key in tl.KEYS["X"]
    },
    "no op": (lambda t: _first(t, "X")["args"].pop("op"), "args: the key 'op' is missing"),
    "no bytes": (lambda t: _first(t, "X")["args"].pop("bytes"), "args: the key 'bytes'"),
    "negative bytes": (lambda t: _first(t, "X")["args"].update(bytes=-1), "'bytes' is -1"),
    "negative duration": (lambda t: _first(t, "X").update(dur=-0.5), "'dur' is -0.5, not a finite"),
    "negative start": (lambda t: _first(t, "X").update(ts=-1), "'ts' is -1"),
    "time is text": (lambda t: _first(t, "X").update(ts="5"), "'ts' is '5'"),
    "time is nan": (lambda t: _first(t, "X").update(ts=float("nan")), "'ts' is nan"),
    "time is a truth value": (lambda t: _first(t, "X").update(dur=True), "'dur' is True"),
    "process 0": (lambda t: _first(t, "X").update(pid=0), "'pid' is 0, not a whole number > 0"),
    "unnamed process": (lambda t: _first(t, "X").update(pid=9), "process 9 .* no process_name"),
    "unnamed thread": (lambda t: _first(t, "X").update(tid=99), "thread 99 has no thread_name"),
    "thread of nobody": (lambda t: _first(t, "M", "thread_name").pop("tid"), "key 'tid'"),
    "name is a number": (
        lambda t: _first(t, "M", "thread_name")["args"].update(name=3),
        "'name' is 3, not a string",
    ),
    "two names": (
        lambda t: t["traceEvents"].append(copy.deepcopy(_first(t, "M"))),
        "process 1 has a second process_name",
    ),
    "unknown metadata": (lambda t: _first(t, "M").update(name="colour"), "metadata 'colour'"),
    "overlap": (_overlap, "'late' at .* overlaps event .* which ends at"),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_checker_rejects(mutation: str) -> None:
    events = [Event(r, "compute", "0F0", "forward", 1e-3 * r, 1e-3) for r in range(2)]
    trace = tl.to_chrome([Timeline(tuple(events), origin) for origin in tl.ORIGINS])
    tl.check_trace(trace)
    mutate, message = MUTATIONS[mutation]
    mutate(trace)
    with pytest.raises(DataError, match=message):
        tl.check_trace(trace)


def test_the_checker_accepts_nested_events() -> None:
    trace = tl.to_chrome([Timeline((Event(0, "compute", "0F0", "forward", 0, 1e-3),), "measured")])
    outer = _first(trace, "X")
    for start, duration in ((0, 400), (400, 600), (500, 500), (500, 0), (1000, 10)):
        trace["traceEvents"].append({**outer, "ts": start, "dur": duration})
    tl.check_trace(trace)


def test_what_is_not_ours_is_a_named_error(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    tl.save(path, _pair(1))
    trace = json.loads(path.read_text())
    _first(trace, "M", "thread_name")["args"]["name"] = "main"
    for content, message in [
        (json.dumps(trace), "thread 'main' .* not a rank's stream"),
        (path.read_text()[:-5], "cannot read the timeline .*timeline.json"),
        ("[]", "no list 'traceEvents'"),
        (json.dumps(trace).replace("predicted", "guessed"), "cannot read .*"),
    ]:
        path.write_text(content)
        with pytest.raises(DataError, match=message):
            tl.load(path)
    with pytest.raises(DataError, match="cannot read the timeline .*nowhere"):
        tl.load(tmp_path / "nowhere")
