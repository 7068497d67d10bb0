"""Ranks with a core each: nobody slows another, so each has its own clock.

A rank goes on until it needs a message or a collective whose other sides have not come; times are
sums and maxima of what is known then, so the order in which ranks are taken changes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

from hpc_alpa.lower.program import Program
from hpc_alpa.simulate.recorder import Recorder
from hpc_alpa.simulate.steps import COMPUTE, START, WAIT, Partners, Prices, Step, steps_of


@dataclass
class Clock:
    """One rank: where it is, what time it has, and where its seconds went."""

    steps: list[Step]
    position: int = 0
    time: float = 0.0
    busy: float = 0.0
    waited: float = 0.0

    @property
    def ended(self) -> bool:
        return self.position == len(self.steps)


@dataclass
class _Side:
    """One side of a message, or of a collective, that has come."""

    rank: int
    step: Step
    time: float


@dataclass
class _Clocks:
    clocks: Mapping[int, Clock]
    recorder: Recorder | None
    sides: dict[Hashable, list[_Side]] = field(default_factory=dict)
    times: dict[Hashable, tuple[float, float]] = field(default_factory=dict)  # of each message
    waiting: dict[Hashable, list[int]] = field(default_factory=dict)
    met: dict[Hashable, list[_Side]] = field(default_factory=dict)
    ready: deque[int] = field(default_factory=deque)

    def run(self) -> None:
        self.ready.extend(self.clocks)
        while self.ready:
            rank = self.ready.popleft()
            self.advance(rank, self.clocks[rank])

    def advance(self, rank: int, clock: Clock) -> None:
        """Go on until the rank needs others, or has ended."""
        steps, recorder = clock.steps, self.recorder
        while clock.position < len(steps):
            step = steps[clock.position]
            if step.what == COMPUTE:
                end = clock.time + step.seconds
                clock.busy += end - clock.time
                if recorder is not None:
                    recorder.compute(rank, step.label, clock.time, end)
                clock.time = end
            elif step.what == START:
                self.start(_Side(rank, step, clock.time))
            elif step.what == WAIT:
                if step.name not in self.times:
                    self.waiting.setdefault(step.name, []).append(rank)
                    return
                start, end = self.times[step.name]
                self.wait(rank, clock, step.label, start)
                clock.time = max(clock.time, end)
            elif not self.meet(_Side(rank, step, clock.time)):
                return
            clock.position += 1

    def start(self, side: _Side) -> None:
        """One side of a message; with the second one the transfer starts.

        A name may stand for several messages that start and end together.
        """
        name = side.step.name
        if name in self.times:
            self.moves(side, *self.times[name])
            return
        there = self.sides.setdefault(name, [])
        there.append(side)
        if side.step.kind == there[0].step.kind:
            return
        start = max(s.time for s in there)
        end = start + side.step.seconds
        self.times[name] = start, end
        self.ready.extend(self.waiting.pop(name, ()))
        for s in self.sides.pop(name):
            self.moves(s, start, end)

    def meet(self, side: _Side) -> bool:
        """A rank comes to a collective; whether it was the last one, with which it starts."""
        step = side.step
        if step.clocks == 1:
            there = [side]
        else:
            there = self.met.setdefault(step.name, [])
            there.append(side)
            if len(there) < step.clocks:
                return False
            del self.met[step.name]
        start = max(s.time for s in there)
        end = start + step.seconds
        for s in there:
            clock = self.clocks[s.rank]
            self.wait(s.rank, clock, s.step.label, start)
            self.moves(s, start, end)
            clock.time = end
            if s is not side:
                clock.position += 1
                self.ready.append(s.rank)
        return True

    def wait(self, rank: int, clock: Clock, label: str, until: float) -> None:
        """The rank waits, and nothing moves."""
        if until > clock.time:
            clock.waited += until - clock.time
            if self.recorder is not None:
                self.recorder.note(rank, "wait", 0, label, clock.time, until)

    def moves(self, side: _Side, start: float, end: float) -> None:
        """A rank sends, receives or takes part in a collective."""
        if self.recorder is not None:
            step = side.step
            self.recorder.note(side.rank, step.kind, step.nbytes, step.label, start, end)


def run(
    programs: Mapping[int, Program],
    partners: Partners,
    prices: Prices,
    recorder: Recorder | None = None,
) -> dict[int, Clock]:
    """Run programs to their ends, or until nobody can go on.

    Args:
        recorder: takes the events; None keeps none.
    """
    clocks = {rank: Clock(steps_of(p, partners, prices)) for rank, p in programs.items()}
    _Clocks(clocks, recorder).run()
    return clocks
