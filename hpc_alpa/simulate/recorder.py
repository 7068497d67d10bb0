"""Events of a run, as they are found."""

from __future__ import annotations

from typing import Any

from hpc_alpa.simulate.timeline import Event

PASSES = {"F": "forward", "B": "backward", "W": "weight"}


def category(label: str) -> str:
    """`forward` of `2F0`; labels that are no action stand for themselves."""
    letter = label.lstrip("0123456789")[:1] if label[:1].isdigit() else ""
    return PASSES.get(letter, label or "run")


class Recorder:
    """Events of ranks; runs of one action without a pause between them are one event."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.computed: dict[int, list[Any]] = {}  # [label, start, end] of the last computation

    def note(self, rank: int, kind: str, nbytes: int, label: str, start: float, end: float) -> None:
        """A rank waits or communicates."""
        args = {"op": kind, "bytes": nbytes, "action": label}
        self.events.append(Event(rank, "communication", kind, kind, start, end - start, args))

    def compute(self, rank: int, label: str, start: float, end: float) -> None:
        """A rank computes."""
        last = self.computed.get(rank)
        if last is not None and last[0] == label and last[2] == start:
            last[2] = end
            return
        self.flush(rank)
        self.computed[rank] = [label, start, end]

    def flush(self, rank: int) -> None:
        """A rank's last computation is over."""
        if rank in self.computed:
            label, start, end = self.computed.pop(rank)
            args = {"op": "run", "bytes": 0, "action": label}
            name = label or "run"
            self.events.append(
                Event(rank, "compute", name, category(label), start, end - start, args)
            )

    def finish(self) -> tuple[Event, ...]:
        """All events."""
        for rank in list(self.computed):
            self.flush(rank)
        return tuple(self.events)
