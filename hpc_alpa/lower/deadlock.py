"""Runs all ranks' programs without data or buffering, and says who waits for whom when it stops.

A message is done when both of its sides have started, a collective when its whole group has come.
The order in which ranks are advanced changes nothing: messages match in order per channel, and a
rank is in one collective at a time. So one run decides, and one that ends has found one global
order of the collectives.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from hpc_alpa.errors import ProgramError
from hpc_alpa.lower.messages import Messages, Place, instruction, where
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
    Send,
    Wait,
)

SHOWN = 12  # ranks that a deadlock's message lists

# What all ranks of a group must agree on, besides kind, group and bytes.
AGREE: dict[type, tuple[str, ...]] = {  # alphabetical
    AllGather: ("dims", "runs"),
    AllReduce: ("op",),
    AllToAll: ("split_dim", "concat_dim", "runs"),
    Broadcast: ("root",),
    ReduceScatter: ("dims", "op"),
}

_START, _WAIT, _MEET = range(3)
Step = tuple[int, int, Any]  # what, index of the instruction, message or collective


def run(programs: Mapping[int, Program], messages: Messages) -> None:
    """Advance all ranks until all have ended.

    Raises:
        ProgramError: ranks come to one group with different collectives, or nobody can go on.
    """
    _Machine(programs, messages).run()


class _Machine:
    def __init__(self, programs: Mapping[int, Program], messages: Messages) -> None:
        self.programs, self.messages = programs, messages
        self.steps = {p.rank: _steps(p, messages) for p in programs.values()}
        self.position = dict.fromkeys(programs, 0)
        self.started = [0] * len(messages.sides)
        self.waiting: dict[int, list[int]] = {}
        self.met: dict[frozenset[int], dict[int, int]] = {}

    def run(self) -> None:
        ready = deque(sorted(self.programs))
        while ready:
            ready.extend(self.advance(ready.popleft()))
        stuck = [r for r in sorted(self.programs) if self.position[r] < len(self.steps[r])]
        if stuck:
            raise self.deadlock(stuck)

    def advance(self, rank: int) -> list[int]:
        """Run a rank until it waits; the ranks that can go on because of it."""
        steps, started, woken = self.steps[rank], self.started, []
        position = self.position[rank]
        while position < len(steps):
            what, index, item = steps[position]
            if what == _START:
                started[item] += 1
                if started[item] == 2:
                    woken += self.waiting.pop(item, [])
            elif what == _WAIT:
                if started[item] < 2:
                    self.waiting.setdefault(item, []).append(rank)
                    break
            else:
                others = self.meet(rank, index, item)
                if others is None:
                    break
                for r in others:
                    self.position[r] += 1
                woken += others
            position += 1
        self.position[rank] = position
        return woken

    def meet(self, rank: int, index: int, collective: Any) -> list[int] | None:
        """The other ranks of the group if all are there, else None."""
        key = frozenset(collective.group)
        there = self.met.setdefault(key, {})
        if there:
            other, at = next(iter(there.items()))
            self.agree((other, at), (rank, index))
        there[rank] = index
        if len(there) < len(key):
            return None
        del self.met[key]
        return [r for r in there if r != rank]

    def agree(self, a: Place, b: Place) -> None:
        """Two ranks at one group: the same call."""
        first, second = (self.programs[r].instructions[k] for r, k in (a, b))
        x, y = _call(first), _call(second)
        if x == y:
            return
        differ = "; ".join(
            f"{name} {x.get(name, 'none')} and {y.get(name, 'none')}"
            for name in dict.fromkeys((*x, *y))
            if x.get(name) != y.get(name)
        )
        raise ProgramError(
            f"{where(self.programs[b[0]], b[1])} meets {where(self.programs[a[0]], a[1])}: they "
            f"differ in {differ}. All ranks of a group make the same collectives in the same order"
        )

    # ------------------------------------------------------------------------------- deadlock
    def deadlock(self, stuck: list[int]) -> ProgramError:
        lines = [self.line(r) for r in stuck[:SHOWN]]
        if len(stuck) > SHOWN:
            lines.append(f"and {len(stuck) - SHOWN} more ranks")
        return ProgramError(f"programs deadlock: {'; '.join(lines)}. {self.advice(stuck[0])}")

    def line(self, rank: int) -> str:
        what, index, item = self.steps[rank][self.position[rank]]
        at = f"rank {rank} waits at {instruction(self.programs[rank], index)}"
        if what == _MEET:
            return f"{at} for {', '.join(self.describe(r) for r in self.missing(rank))}"
        mine, (other, start) = self.sides(rank, item)
        needed = instruction(self.programs[other], start)
        return (
            f"{at}, started by {instruction(self.programs[rank], mine)}, for rank {other} to start "
            f"{needed}"
        )

    def sides(self, rank: int, message: int) -> tuple[int, Place]:
        """Index of this rank's side of a message, and the other side."""
        send, recv = self.messages.sides[message]
        return (send[1], recv) if send[0] == rank else (recv[1], send)

    def missing(self, rank: int) -> list[int]:
        """The ranks that a rank waits for."""
        what, _, item = self.steps[rank][self.position[rank]]
        if what == _WAIT:
            return [self.sides(rank, item)[1][0]]
        there = self.met[frozenset(item.group)]
        return [r for r in item.group if r not in there]

    def ended(self, rank: int) -> bool:
        return self.position[rank] == len(self.steps[rank])

    def describe(self, rank: int) -> str:
        return f"rank {rank}, which has ended" if self.ended(rank) else f"rank {rank}"

    def advice(self, rank: int) -> str:
        """Follow who waits for whom, to an end or around the circle."""
        path: list[int] = []
        while rank not in path:
            if self.ended(rank):
                return f"Add what is missing at rank {rank}, or leave rank {rank} out of the group."
            path.append(rank)
            rank = self.missing(rank)[0]
        circle = path[path.index(rank) :]
        kinds = {self.steps[r][self.position[r]][0] for r in circle}
        ring = " -> ".join(map(str, [*circle, rank]))
        if kinds == {_MEET}:
            return (
                f"Ranks wait in a circle, {ring}: collectives on groups that overlap come in one "
                "order on all ranks; reorder them."
            )
        return (
            f"Ranks wait in a circle, {ring}: a send is done only when its receive has started; "
            "start receives before waiting for sends."
        )


def _steps(program: Program, messages: Messages) -> list[Step]:
    """What of a program other ranks can see."""
    rank, of = program.rank, messages.of
    steps: list[Step] = []
    for index, i in enumerate(program.instructions):
        if isinstance(i, (Send, Recv)):
            steps.append((_START, index, of[rank, index]))
        elif isinstance(i, Wait):
            steps.append((_WAIT, index, of[rank, index]))
        elif isinstance(i, COLLECTIVES):
            steps.append((_MEET, index, i))
    return steps


def _call(i: Any) -> dict[str, object]:
    names = ("group", "nbytes", *AGREE[type(i)])
    return {"kind": KIND[type(i)], **{name: getattr(i, name) for name in names}}
