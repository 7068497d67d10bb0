"""[Program] -> [Step]: what of a rank's program takes time, with its price and its partners."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

from hpc_alpa.cost import Cost
from hpc_alpa.lower.messages import Messages
from hpc_alpa.lower.program import (
    COLLECTIVES,
    KIND,
    AllGather,
    AllReduce,
    AllToAll,
    Broadcast,
    Program,
    Recv,
    ReduceScatter,
    Run,
    Send,
    Wait,
)

Collective = AllGather | AllReduce | AllToAll | Broadcast | ReduceScatter


class Partners(Protocol):
    """Who meets whom: names that both sides of a message, or all of a group, have in common."""

    def message(self, rank: int, index: int, side: Send | Recv, seconds: float) -> Hashable:
        """Of the send or receive at an index of a rank's program, by its price."""
        ...

    def meeting(self, collective: Collective) -> tuple[Hashable, int] | None:
        """Of a collective, and how many clocks meet in it; None where it does not count."""
        ...


@dataclass(frozen=True)
class AllRanks:
    """Every rank has a program."""

    messages: Messages

    def message(self, rank: int, index: int, side: Send | Recv, seconds: float) -> Hashable:
        return self.messages.of[rank, index]

    def meeting(self, collective: Collective) -> tuple[Hashable, int]:
        return collective.group, len(collective.group)


COMPUTE, START, WAIT, MEET = range(4)


@dataclass(frozen=True, slots=True)
class Step:
    """What takes time, or is waited for.

    Attributes:
        name: of the message or meeting; clocks: how many meet.
        seconds: of the computation, the message or the collective.
        kind, nbytes: of the message or collective, for the timeline.
    """

    what: int
    label: str
    seconds: float = 0.0
    name: Any = None
    clocks: int = 1
    kind: str = ""
    nbytes: int = 0


class Prices:
    """Seconds of a cost model, each asked for once."""

    def __init__(self, cost: Cost, launch_overhead: float) -> None:
        self.cost, self.launch_overhead = cost, launch_overhead
        self.known: dict[Any, float] = {}

    def of(self, ask: Callable[..., float], *arguments: Any) -> float:
        """`ask(*arguments)`, a method of the cost model."""
        key = (ask.__name__, *arguments)
        if key not in self.known:
            self.known[key] = ask(*arguments)
        return self.known[key]

    def message(self, nbytes: int, source: int, target: int) -> float:
        """Of a message; asked for once for each link."""
        key = nbytes, self.cost.cluster.link((source, target))
        if key not in self.known:
            self.known[key] = self.cost.point_to_point(nbytes, source, target)
        return self.known[key]

    def bodies(self, program: Program) -> dict[str, float]:
        """Seconds of each body of a program."""
        return {
            body.name: sum(
                self.of(self.cost.compute, k.work) + self.launch_overhead for k in body.kernels
            )
            for body in program.bodies.values()
        }


def steps_of(program: Program, partners: Partners, prices: Prices) -> list[Step]:
    """What of a program takes time or is waited for, in its order."""
    labels, rank, cost = dict(program.marks), program.rank, prices.cost
    work = prices.bodies(program)
    started: dict[str, Hashable] = {}  # ticket: message
    label = ""
    steps: list[Step] = []
    for index, i in enumerate(program.instructions):
        label = labels.get(index, label)
        if isinstance(i, Run):
            if work[i.body]:
                steps.append(Step(COMPUTE, label, work[i.body]))
        elif isinstance(i, (Send, Recv)):
            ends = (rank, i.peer) if isinstance(i, Send) else (i.peer, rank)
            seconds = prices.of(cost.point_to_point, i.nbytes, *ends)
            name = started[i.ticket] = partners.message(rank, index, i, seconds)
            kind = "send" if isinstance(i, Send) else "recv"
            steps.append(Step(START, label, seconds, name, 2, kind, i.nbytes))
        elif isinstance(i, Wait):
            steps.append(Step(WAIT, label, name=started[i.ticket]))
        elif isinstance(i, COLLECTIVES) and len(i.group) > 1:
            kind = KIND[type(i)]
            meeting = partners.meeting(i)
            if meeting is not None:
                seconds = prices.of(cost.collective, kind, i.nbytes, i.group)
                steps.append(Step(MEET, label, seconds, *meeting, kind, i.nbytes))
    return steps
