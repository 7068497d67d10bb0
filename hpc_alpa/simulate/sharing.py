"""Ranks that share cores: what one does changes the pace of others, so one queue has all events."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from itertools import count

from hpc_alpa.lower.program import Program
from hpc_alpa.simulate.clocks import Clock
from hpc_alpa.simulate.cores import SharedCores
from hpc_alpa.simulate.recorder import Recorder
from hpc_alpa.simulate.steps import COMPUTE, START, WAIT, Partners, Prices, Step, steps_of


def run(
    programs: Mapping[int, Program],
    partners: Partners,
    prices: Prices,
    cores: Mapping[int, SharedCores],
    recorder: Recorder | None = None,
) -> dict[int, Clock]:
    """Run programs to their ends, or until nobody can go on.

    Args:
        cores: of the ranks that share some.
        recorder: takes the events; None keeps none.
    """
    clocks = {rank: Clock(steps_of(p, partners, prices)) for rank, p in programs.items()}
    _Machine(clocks, cores, recorder).run()
    return clocks


@dataclass
class _Machine:
    """The state of all ranks, and the queue of what happens next.

    Attributes:
        clocks: `time` is when a rank came to where it is.
        queue: time, tie-breaker, a rank that is done with its step, or cores on which one is,
            version of the cores.
        changed: cores whose next end is to be queued again.
    """

    clocks: Mapping[int, Clock]
    cores: Mapping[int, SharedCores]
    recorder: Recorder | None
    queue: list[tuple[float, int, int | SharedCores, int]] = field(default_factory=list)
    changed: dict[int, SharedCores] = field(default_factory=dict)
    tie: count[int] = field(default_factory=count)
    started: dict[Hashable, tuple[int, Step]] = field(default_factory=dict)
    arrival: dict[Hashable, float] = field(default_factory=dict)
    waiting: dict[Hashable, list[int]] = field(default_factory=dict)
    met: dict[Hashable, list[int]] = field(default_factory=dict)

    def run(self) -> None:
        for rank in self.clocks:
            self.advance(rank, 0.0)
        self.queue_ends()
        while self.queue:
            now, _, which, version = heapq.heappop(self.queue)
            if isinstance(which, int):
                self.resume(which, now)
            elif which.version == version:
                self.changed[id(which)] = which
                for rank in which.finish(now):
                    self.resume(rank, now)
            self.queue_ends()

    def queue_ends(self) -> None:
        for cores in self.changed.values():
            end = cores.next_end()
            if end is not None:
                heapq.heappush(self.queue, (end, next(self.tie), cores, cores.version))
        self.changed.clear()

    def resume_at(self, rank: int, time: float) -> None:
        heapq.heappush(self.queue, (time, next(self.tie), rank, 0))

    def resume(self, rank: int, now: float) -> None:
        """A rank is done with its step."""
        clock = self.clocks[rank]
        step = clock.steps[clock.position]
        if step.what == COMPUTE:
            clock.busy += now - clock.time
            if self.recorder is not None:
                self.recorder.compute(rank, step.label, clock.time, now)
        clock.position += 1
        self.advance(rank, now)

    def advance(self, rank: int, now: float) -> None:
        """Go on until the rank computes, waits or has ended."""
        clock = self.clocks[rank]
        clock.time = now
        while not clock.ended:
            step = clock.steps[clock.position]
            if step.what == START:
                self.start(rank, step, now)
            elif step.what == WAIT:
                if step.name not in self.arrival:
                    self.waiting.setdefault(step.name, []).append(rank)
                    return
                end = self.arrival[step.name]
                if end > now:
                    self.resume_at(rank, end)
                    return
            elif step.what == COMPUTE:
                cores = self.cores.get(rank)
                if cores is None:
                    self.resume_at(rank, now + step.seconds)
                else:
                    cores.start(rank, step.seconds, now)
                    self.changed[id(cores)] = cores
                return
            else:
                self.meet(rank, step, now)
                return
            clock.position += 1

    def start(self, rank: int, step: Step, now: float) -> None:
        """One side of a message; with the second one the transfer starts."""
        first = self.started.pop(step.name, None)
        if first is None:
            self.started[step.name] = rank, step
            return
        end = now + step.seconds
        self.arrival[step.name] = end
        for r, s in (first, (rank, step)):
            self.moves(r, s, now, end)
        for r in self.waiting.pop(step.name, ()):
            self.wait(r, now)
            self.resume_at(r, end)

    def meet(self, rank: int, step: Step, now: float) -> None:
        """A rank comes to a collective; with the last one it starts."""
        there = self.met.setdefault(step.name, [])
        there.append(rank)
        if len(there) < step.clocks:
            return
        del self.met[step.name]
        end = now + step.seconds
        for r in there:
            self.wait(r, now)
            self.moves(r, self.clocks[r].steps[self.clocks[r].position], now, end)
            self.resume_at(r, end)

    # ----------------------------------------------------------------------------------- events
    def wait(self, rank: int, until: float) -> None:
        """The rank has waited since it came here, and nothing moved."""
        clock = self.clocks[rank]
        if until > clock.time:
            clock.waited += until - clock.time
            if self.recorder is not None:
                label = clock.steps[clock.position].label
                self.recorder.note(rank, "wait", 0, label, clock.time, until)

    def moves(self, rank: int, step: Step, start: float, end: float) -> None:
        """A rank sends, receives or takes part in a collective."""
        if self.recorder is not None:
            self.recorder.note(rank, step.kind, step.nbytes, step.label, start, end)
