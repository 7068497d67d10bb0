"""Discrete-event run of all ranks' programs, in modelled seconds.

    run          lasts what the cost model says of its kernels; a host's busy ranks share its cores
    collective   starts when the last rank of its group comes, lasts `cost.collective`
    message      starts when both of its sides have started, lasts `cost.point_to_point`
    wait         ends when its message does

A rank that waits uses no core. Messages and collectives slow neither each other nor computation.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from hpc_alpa.cost import Cost, Work
from hpc_alpa.lower.check import check
from hpc_alpa.lower.messages import Place, match
from hpc_alpa.lower.program import COLLECTIVES, KIND, Program, Recv, Run, Send, Wait
from hpc_alpa.simulate.cores import SharedCores, shared_cores
from hpc_alpa.simulate.memory import peaks
from hpc_alpa.simulate.timeline import Event, Timeline


@dataclass(frozen=True)
class Simulation:
    """A predicted step; each tuple has one entry per program, in their order.

    Attributes:
        timeline: what each rank does when.
        step_seconds: until the last rank has ended.
        peak_bytes: most bytes that the rank holds at once.
        compute_seconds: in which the rank computes, at the pace that its share of the cores gives.
        exposed_communication: seconds in which it waits or communicates, and does not compute.
    """

    timeline: Timeline
    step_seconds: float
    peak_bytes: tuple[int, ...]
    compute_seconds: tuple[float, ...]
    exposed_communication: tuple[float, ...]


def simulate(
    programs: Sequence[Program],
    cost: Cost,
    *,
    cores: Sequence[int | None] | None = None,
    launch_overhead: float = 0.0,
) -> Simulation:
    """Run one step in modelled time.

    Args:
        programs: of all ranks; rank r runs on device r of the cost model's cluster.
        cores: that the ranks of each host share, None where each has its own; without it, the
            cluster's.
        launch_overhead: seconds of a rank per kernel, besides what the cost model says of it.

    Raises:
        ProgramError: the programs do not fit together.
        CostError: the cost model lacks a number.
        ClusterError: a rank is no device of the cluster.
    """
    machine = _Machine(programs, cost, cores, launch_overhead)
    machine.run()
    ends = [machine.ended[p.rank] for p in programs]
    busy = [machine.busy[p.rank] for p in programs]
    return Simulation(
        Timeline(tuple(machine.events), "predicted"),
        max(ends, default=0.0),
        peaks(programs),
        tuple(busy),
        tuple(end - b for end, b in zip(ends, busy, strict=True)),
    )


# --------------------------------------------------------------------------------------- steps
_COMPUTE, _START, _WAIT, _MEET = range(4)
# What takes time: (what, item, label of the action). The item is the seconds of a run, the number
# of the message of a send, receive or wait, or a collective.
_Step = tuple[int, Any, str]


def _steps(
    program: Program, messages: Mapping[Place, int], work: Mapping[str, float]
) -> list[_Step]:
    labels = dict(program.marks)
    label = ""
    steps: list[_Step] = []
    for index, i in enumerate(program.instructions):
        label = labels.get(index, label)
        if isinstance(i, Run):
            if work[i.body]:
                steps.append((_COMPUTE, work[i.body], label))
        elif isinstance(i, (Send, Recv)):
            steps.append((_START, messages[program.rank, index], label))
        elif isinstance(i, Wait):
            steps.append((_WAIT, messages[program.rank, index], label))
        elif isinstance(i, COLLECTIVES) and len(i.group) > 1:
            steps.append((_MEET, i, label))
    return steps


PASSES = {"F": "forward", "B": "backward", "W": "weight"}


def category(label: str) -> str:
    """`forward` of `2F0`; labels that are no action stand for themselves."""
    letter = label.lstrip("0123456789")[:1] if label[:1].isdigit() else ""
    return PASSES.get(letter, label or "run")


# ------------------------------------------------------------------------------------- machine
class _Machine:
    """The state of all ranks, and the queue of what happens next."""

    def __init__(
        self,
        programs: Sequence[Program],
        cost: Cost,
        cores: Sequence[int | None] | None,
        launch_overhead: float,
    ) -> None:
        self.cost = cost
        self.programs = {p.rank: p for p in programs}
        self.messages = match(self.programs)
        seconds: dict[Work, float] = {}
        self.steps: dict[int, list[_Step]] = {}
        for p in programs:
            work = {}
            for body in p.bodies.values():
                for k in body.kernels:
                    if k.work not in seconds:
                        seconds[k.work] = cost.compute(k.work) + launch_overhead
                work[body.name] = sum(seconds[k.work] for k in body.kernels)
            self.steps[p.rank] = _steps(p, self.messages.of, work)
        self.cores = shared_cores(list(self.programs), cost.cluster, cores)
        self.changed: dict[int, SharedCores] = {}  # whose next end is to be queued again
        # time, tie-breaker, a rank that is done with its step, or cores on which one is, version
        self.queue: list[tuple[float, int, int | SharedCores, int]] = []
        self.tie = count()
        self.position = dict.fromkeys(self.programs, 0)
        self.since = dict.fromkeys(self.programs, 0.0)  # when a rank came to where it is
        self.busy = dict.fromkeys(self.programs, 0.0)
        self.ended: dict[int, float] = {}
        self.started: dict[int, tuple[int, str]] = {}  # one side of a message: rank, its action
        self.arrival: dict[int, float] = {}  # end of every transfer that has started
        self.waiting: dict[int, list[int]] = {}
        self.met: dict[tuple[int, ...], list[int]] = {}
        self.prices: dict[tuple[Any, ...], float] = {}
        self.events: list[Event] = []
        self.computed: dict[int, list[Any]] = {}  # [label, start, end] of the last computation

    def run(self) -> None:
        for rank in self.programs:
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
        if len(self.ended) < len(self.programs):
            check(list(self.programs.values()))
            raise AssertionError("the checker passed programs that the simulator cannot finish")
        for rank in self.computed:
            self.flush(rank)

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
        what, _, label = self.steps[rank][self.position[rank]]
        if what == _COMPUTE:
            self.busy[rank] += now - self.since[rank]
            self.compute_event(rank, label, self.since[rank], now)
        self.position[rank] += 1
        self.advance(rank, now)

    def advance(self, rank: int, now: float) -> None:
        """Go on until the rank computes, waits or has ended."""
        steps = self.steps[rank]
        while self.position[rank] < len(steps):
            what, item, label = steps[self.position[rank]]
            self.since[rank] = now
            if what == _START:
                self.start(rank, item, label, now)
            elif what == _WAIT:
                if item not in self.arrival:
                    self.waiting.setdefault(item, []).append(rank)
                    return
                end = self.arrival[item]
                if end > now:
                    self.resume_at(rank, end)
                    return
            elif what == _COMPUTE:
                cores = self.cores.get(rank)
                if cores is None:
                    self.resume_at(rank, now + item)
                else:
                    cores.start(rank, item, now)
                    self.changed[id(cores)] = cores
                return
            else:
                self.meet(rank, item, now)
                return
            self.position[rank] += 1
        self.ended[rank] = now

    # ---------------------------------------------------------------------------- communication
    def start(self, rank: int, message: int, label: str, now: float) -> None:
        """One side of a message; with the second one the transfer starts."""
        first = self.started.pop(message, None)
        if first is None:
            self.started[message] = rank, label
            return
        (source, index), (target, _) = self.messages.sides[message]
        send = self.programs[source].instructions[index]
        assert isinstance(send, Send)
        end = now + self.price(self.cost.point_to_point, send.nbytes, source, target)
        self.arrival[message] = end
        labels = dict((first, (rank, label)))
        for r, kind in ((source, "send"), (target, "recv")):
            self.note(r, kind, send.nbytes, labels[r], now, end)
        for r in self.waiting.pop(message, ()):
            self.wait_event(r, now)
            self.resume_at(r, end)

    def meet(self, rank: int, collective: Any, now: float) -> None:
        """A rank comes to a collective; with the last one it starts."""
        group = collective.group
        there = self.met.setdefault(group, [])
        there.append(rank)
        if len(there) < len(group):
            return
        del self.met[group]
        kind, nbytes = KIND[type(collective)], collective.nbytes
        end = now + self.price(self.cost.collective, kind, nbytes, group)
        for r in there:
            self.wait_event(r, now)
            self.note(r, kind, nbytes, self.label(r), now, end)
            self.resume_at(r, end)

    def price(self, of: Callable[..., float], *arguments: Any) -> float:
        key = (of.__name__, *arguments)
        if key not in self.prices:
            self.prices[key] = of(*arguments)
        return self.prices[key]

    # ----------------------------------------------------------------------------------- events
    def label(self, rank: int) -> str:
        return self.steps[rank][self.position[rank]][2]

    def wait_event(self, rank: int, until: float) -> None:
        """The rank has waited since it came here, and nothing moved."""
        if until > self.since[rank]:
            self.note(rank, "wait", 0, self.label(rank), self.since[rank], until)

    def note(self, rank: int, kind: str, nbytes: int, label: str, start: float, end: float) -> None:
        args = {"op": kind, "bytes": nbytes, "action": label}
        self.events.append(Event(rank, "communication", kind, kind, start, end - start, args))

    def compute_event(self, rank: int, label: str, start: float, end: float) -> None:
        """Runs of one action without a pause between them are one event."""
        last = self.computed.get(rank)
        if last is not None and last[0] == label and last[2] == start:
            last[2] = end
            return
        self.flush(rank)
        self.computed[rank] = [label, start, end]

    def flush(self, rank: int) -> None:
        if rank in self.computed:
            label, start, end = self.computed[rank]
            args = {"op": "run", "bytes": 0, "action": label}
            name = label or "run"
            self.events.append(
                Event(rank, "compute", name, category(label), start, end - start, args)
            )
