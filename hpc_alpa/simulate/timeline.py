"""What each rank did when: a `Timeline` of events, predicted by the simulator or measured.

Kept as Chrome trace-event JSON ("Trace Event Format", Google, sections "Complete Events" and
"Metadata Events"), which opens in Perfetto:

    process  one per timeline, named by its origin: predicted and measured side by side
    thread   one per rank and stream; a second lane where events of one stream run at the same time
    "X"      one complete event per `Event`, in microseconds, args with at least `op` and `bytes`

Times are rounded to whole nanoseconds, start and end each, so neighbours never overlap by rounding.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from hpc_alpa.errors import DataError

STREAMS = ("compute", "communication")
ORIGINS = ("predicted", "measured")

_THREAD = re.compile(rf"rank (\d+) ({'|'.join(STREAMS)})(?: \(lane (\d+)\))?")


@dataclass(frozen=True)
class Event:
    """One thing that one stream of one rank does.

    Attributes:
        rank: global rank.
        stream: one of `STREAMS`.
        name: what a person reads, such as `2F0` or `all_reduce gradients`.
        category: what events are coloured and summed by, such as `forward` or `all_reduce`.
        start, duration: seconds since the start of the step.
        args: more facts by name (`microbatch`, ...); `op` (the name) and `bytes` (0) always exist.
    """

    rank: int
    stream: str
    name: str
    category: str
    start: float
    duration: float
    args: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "args", {"op": self.name, "bytes": 0, **self.args})
        if self.stream not in STREAMS:
            raise DataError(
                f"event '{self.name}' of rank {self.rank}: no stream '{self.stream}'. Use one of"
                f" {', '.join(STREAMS)}."
            )
        if not all(math.isfinite(t) and t >= 0 for t in (self.start, self.duration)):
            raise DataError(
                f"event '{self.name}' of rank {self.rank} starts at {self.start} s and lasts"
                f" {self.duration} s: both must be finite and not negative."
            )

    @property
    def end(self) -> float:
        """Seconds since the start of the step."""
        return self.start + self.duration


@dataclass(frozen=True)
class Timeline:
    """The events of a step on all ranks, in order of start, rank and stream."""

    events: tuple[Event, ...]
    origin: str

    def __post_init__(self) -> None:
        if self.origin not in ORIGINS:
            raise DataError(
                f"no origin '{self.origin}' of a timeline: use one of {', '.join(ORIGINS)}."
            )
        order = sorted(self.events, key=lambda e: (e.start, e.rank, STREAMS.index(e.stream)))
        object.__setattr__(self, "events", tuple(order))

    @property
    def ranks(self) -> tuple[int, ...]:
        """Ranks that have events, ascending."""
        return tuple(sorted({e.rank for e in self.events}))

    @property
    def makespan(self) -> float:
        """Seconds from the first start to the last end; 0 without events."""
        if not self.events:
            return 0.0
        return max(e.end for e in self.events) - self.events[0].start

    @property
    def busy(self) -> dict[tuple[int, str], float]:
        """Seconds in which at least one event runs, per (rank, stream)."""
        return {
            (rank, stream): _covered(e for e in self.events if (e.rank, e.stream) == (rank, stream))
            for rank in self.ranks
            for stream in STREAMS
        }

    @property
    def exposed_communication(self) -> dict[int, float]:
        """Seconds per rank in which it communicates and does not compute."""
        busy = self.busy
        return {
            rank: _covered(e for e in self.events if e.rank == rank) - busy[rank, "compute"]
            for rank in self.ranks
        }

    def aligned(self) -> Timeline:
        """The same events with the first start at 0, to lie beside another timeline."""
        first = self.events[0].start if self.events else 0.0
        return replace(self, events=tuple(replace(e, start=e.start - first) for e in self.events))


def _covered(events: Iterable[Event]) -> float:
    """Length of the union of the events' times; events come in order of start."""
    total, end = 0.0, 0.0
    for event in events:
        total += max(0.0, event.end - max(event.start, end))
        end = max(end, event.end)
    return total


def to_chrome(timelines: Sequence[Timeline]) -> dict[str, Any]:
    """Chrome trace-event JSON, one process per timeline in the order given."""
    rows: list[dict[str, Any]] = []
    # Perfetto merges thread 0 into another one and names process 0 "swapper"; a thread numbered as
    # its process is the main thread. So numbers count from 1 and no two are equal.
    tids = count(len(timelines) + 1)
    for pid, timeline in enumerate(timelines, start=1):
        rows += _names("process", timeline.origin, pid, pid=pid)
        for (rank, stream, lane), events in lanes(timeline.events).items():
            tid = next(tids)
            name = f"rank {rank} {stream}" + (f" (lane {lane + 1})" if lane else "")
            rows += _names("thread", name, tid, pid=pid, tid=tid)
            for event in events:
                start, end = _nanoseconds(event)
                row = {"ph": "X", "name": event.name, "cat": event.category, "pid": pid, "tid": tid}
                rows.append(
                    {**row, "ts": start / 1e3, "dur": (end - start) / 1e3, "args": dict(event.args)}
                )
    return {"traceEvents": rows, "displayTimeUnit": "ms"}


def lanes(events: Sequence[Event]) -> dict[tuple[int, str, int], list[Event]]:
    """Events per (rank, stream, lane), in this order, so that none overlap in one lane.

    Each goes to the first lane of its stream, counted from 0, that is free when it starts.
    """
    found: dict[tuple[int, int, int], list[Event]] = {}
    for event in sorted(events, key=_nanoseconds):
        lane = 0
        while taken := found.get((event.rank, STREAMS.index(event.stream), lane)):
            if _nanoseconds(taken[-1])[1] <= _nanoseconds(event)[0]:
                break
            lane += 1
        found.setdefault((event.rank, STREAMS.index(event.stream), lane), []).append(event)
    return {(rank, STREAMS[i], lane): found[rank, i, lane] for rank, i, lane in sorted(found)}


def _nanoseconds(event: Event) -> tuple[int, int]:
    return round(event.start * 1e9), round(event.end * 1e9)


def _names(kind: str, name: str, position: int, **place: int) -> list[dict[str, Any]]:
    return [
        {"ph": "M", "name": f"{kind}_name", **place, "args": {"name": name}},
        {"ph": "M", "name": f"{kind}_sort_index", **place, "args": {"sort_index": position}},
    ]


def from_chrome(trace: Mapping[str, Any]) -> tuple[Timeline, ...]:
    """The timelines of a trace that `to_chrome` wrote, equal up to the rounding to nanoseconds.

    Raises:
        DataError: what `check_trace` finds, or a process or thread with a name of another program.
    """
    check_trace(trace)
    processes: dict[int, str] = {}
    threads: dict[tuple[int, int], re.Match[str]] = {}
    for row in trace["traceEvents"]:
        if row["name"] == "process_name":
            processes[row["pid"]] = row["args"]["name"]
        elif row["name"] == "thread_name":
            match = _THREAD.fullmatch(row["args"]["name"])
            if match is None:
                raise DataError(
                    f"thread '{row['args']['name']}' of the trace is not a rank's stream: only"
                    " timelines written by this library can be read back."
                )
            threads[row["pid"], row["tid"]] = match
    events: dict[int, list[Event]] = {pid: [] for pid in processes}
    for row in trace["traceEvents"]:
        if row["ph"] == "X":
            rank, stream, _ = threads[row["pid"], row["tid"]].groups()
            start, duration = (round(row[key] * 1e3) / 1e9 for key in ("ts", "dur"))
            event = Event(
                int(rank), stream, row["name"], row["cat"], start, duration, dict(row["args"])
            )
            events[row["pid"]].append(event)
    return tuple(Timeline(tuple(events[pid]), processes[pid]) for pid in sorted(processes))


def save(path: str | Path, timelines: Sequence[Timeline]) -> None:
    """Write the timelines as Chrome trace JSON, beside `path` and renamed when whole."""
    path = Path(path)
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    beside.write_text(json.dumps(to_chrome(timelines), allow_nan=False), encoding="utf-8")
    beside.replace(path)


def load(path: str | Path) -> tuple[Timeline, ...]:
    """Read what `save` wrote.

    Raises:
        DataError: the file is no trace that this library wrote; the message names the place.
    """
    try:
        return from_chrome(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, DataError) as error:
        raise DataError(f"cannot read the timeline '{path}': {error}") from error


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: object) -> bool:
    return _is_index(value) and value != 0  # Perfetto keeps process and thread 0 for itself


def _is_amount(value: object) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and value >= 0
    )


def _is_object(value: object) -> bool:
    return isinstance(value, Mapping)


Checks = Mapping[str, tuple[Callable[[object], bool], str]]
_TEXT, _INDEX = (_is_text, "a string"), (_is_index, "a whole number >= 0")
_NUMBER = (_is_number, "a whole number > 0")
_AMOUNT, _OBJECT = (_is_amount, "a finite number >= 0"), (_is_object, "an object")

KEYS: Mapping[str, Checks] = {  # phase: the keys of its events
    "M": {"name": _TEXT, "pid": _NUMBER, "args": _OBJECT},
    "X": {
        **{"name": _TEXT, "cat": _TEXT, "pid": _NUMBER, "tid": _NUMBER},
        **{"ts": _AMOUNT, "dur": _AMOUNT, "args": _OBJECT},
    },
}
ARGS: Mapping[str, Checks] = {  # metadata event, or "X": the keys of its args
    "X": {"op": _TEXT, "bytes": _AMOUNT},
    "process_name": {"name": _TEXT},
    "process_sort_index": {"sort_index": _INDEX},
    "thread_name": {"name": _TEXT},
    "thread_sort_index": {"sort_index": _INDEX},
}


def check_trace(trace: object) -> None:
    """Check that a trace keeps to the trace-event format as this library writes it.

    Required keys and their types, known phases and metadata, times not negative, a name for each
    process and thread that has events, and in one thread no two events that overlap without one
    lying inside the other (viewers draw such events wrongly, or drop them).

    Raises:
        DataError: the first event that breaks a rule, with the values.
    """
    rows = trace.get("traceEvents") if isinstance(trace, Mapping) else None
    if not isinstance(rows, list):
        raise DataError("the trace has no list 'traceEvents': it is not trace-event JSON.")
    named: set[tuple[object, ...]] = set()
    for i, row in enumerate(rows):
        _check_row(f"trace event {i}", row)
        if row["ph"] == "M":
            key = (row["name"], row["pid"], row.get("tid"))
            if key in named:
                raise DataError(f"trace event {i}: {_place(row)} has a second {row['name']}.")
            named.add(key)
    threads: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for i, row in enumerate(rows):
        if row["ph"] == "X":
            for name, tid in (("process_name", None), ("thread_name", row["tid"])):
                if (name, row["pid"], tid) not in named:
                    raise DataError(f"trace event {i}: {_place(row)} has no {name} event.")
            start = round(row["ts"] * 1e3)
            end = start + round(row["dur"] * 1e3)
            threads.setdefault((row["pid"], row["tid"]), []).append((start, -end, i))
    for spans in threads.values():
        _check_nesting(sorted(spans), rows)


def _check_row(where: str, row: object) -> None:
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: it is {type(row).__name__}, not an object.")
    phase = str(row.get("ph"))
    if phase not in KEYS:
        raise DataError(f"{where}: phase {phase!r} is not one of {', '.join(KEYS)}.")
    _check_keys(where, row, KEYS[phase])
    kind = str(row["name"] if phase == "M" else phase)
    if kind not in ARGS:
        raise DataError(f"{where}: metadata '{kind}' is not one of {', '.join(ARGS)}.")
    _check_keys(f"{where}, args", row["args"], ARGS[kind])
    if kind.startswith("thread_"):
        _check_keys(where, row, {"tid": _NUMBER})


def _check_keys(where: str, row: Mapping[str, object], checks: Checks) -> None:
    for key, (holds, form) in checks.items():
        if key not in row:
            raise DataError(f"{where}: the key '{key}' is missing.")
        if not holds(row[key]):
            raise DataError(f"{where}: '{key}' is {row[key]!r}, not {form}.")


def _place(row: Mapping[str, object]) -> str:
    return f"process {row['pid']}" + (f" thread {row['tid']}" if "tid" in row else "")


def _check_nesting(spans: Sequence[tuple[int, int, int]], rows: Sequence[Any]) -> None:
    """`spans`: (start, -end, index of the event) in nanoseconds, sorted."""
    around: list[tuple[int, int]] = []  # end and index of the events that enclose the next one
    for start, negative_end, i in spans:
        while around and around[-1][0] <= start:
            around.pop()
        if around and -negative_end > around[-1][0]:
            end, other = around[-1]
            raise DataError(
                f"trace event {i}: '{rows[i]['name']}' at {start / 1e3} to {-negative_end / 1e3} us"
                f" overlaps event {other} '{rows[other]['name']}', which ends at {end / 1e3} us, in"
                f" {_place(rows[i])}."
            )
        around.append((-negative_end, i))
