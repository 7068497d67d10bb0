"""The life of one rank's buffers: written, read, sent, received, freed.

A name is live from its first write to its free. A send reads its region, and a receive writes it,
from start to wait. What is under way is kept per storage, so that a write to a view of what is
being sent is found too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

from hpc_alpa.errors import ProgramError
from hpc_alpa.ir.types import TensorType
from hpc_alpa.lower.effect import Effect, effect_of
from hpc_alpa.lower.liveness import touches
from hpc_alpa.lower.messages import instruction, where
from hpc_alpa.lower.program import (
    COLLECTIVES,
    Allocate,
    Free,
    Instruction,
    Program,
    Recv,
    Region,
    Run,
    Send,
    Wait,
    at,
)
from hpc_alpa.reshard.task import overlap

INPUT = -1  # the "instruction" that writes the program's inputs
SHOWN = 8  # names that a leak's message lists


def check_buffers(program: Program) -> None:
    """Walk through one rank's program.

    Raises:
        ProgramError: a read before the write or after the free, a write or free of what a message
            reads or writes, a second free, a leak, an output that is not there.
    """
    _Buffers(program).walk()


@dataclass(frozen=True)
class _UnderWay:
    """A message between its start and its wait."""

    index: int
    name: str
    region: Region
    sends: bool


class _Buffers:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.index = INPUT
        self.live: dict[str, int] = {}  # name: the instruction that wrote it
        self.freed: dict[str, int] = {}  # name: the instruction that freed it
        self.storage: dict[str, int] = {}
        self.fresh = count()
        self.under_way: dict[int, dict[str, _UnderWay]] = {}  # storage, ticket
        self.tickets: dict[str, int] = {}  # ticket: storage
        # allocated: type, and what has been received
        self.unfilled: dict[str, tuple[TensorType, list[Region]]] = {}
        self.effects: dict[str, Effect] = {}

    def walk(self) -> None:
        for p in self.program.inputs:
            self.make(p.buffer)
        for index, i in enumerate(self.program.instructions):
            self.index = index
            HANDLERS[type(i)](self, i)
        self.finish()

    # --------------------------------------------------------------------------------- handlers
    def run(self, i: Run) -> None:
        if i.body not in self.effects:
            body = self.program.bodies[i.body]
            self.effects[i.body] = effect_of(body, self.program.rank)
        e, m, live = self.effects[i.body], i.microbatch, self.live
        watched = bool(self.under_way or self.unfilled)
        for n in e.names("reads", m):
            if watched or n not in live:
                self.read(n, None, e, m)
        for n in e.names("creates", m):
            if n in live:
                raise self.overwritten(n, e.kernel("creates", n, m))
        memory: dict[int, int] = {}  # of what the body makes
        for formal, own in e.updates.items():
            n = at(formal, m)
            if n in live:
                if self.under_way:
                    self.write_in_place(n, e.kernel("updates", n, m))
                memory[own] = self.storage[n]
        made = []
        for formal, s in e.storage.items():
            if isinstance(s, str):
                made.append((at(formal, m), self.storage[at(s, m)]))
            else:
                if s not in memory:
                    memory[s] = next(self.fresh)
                made.append((at(formal, m), memory[s]))
        updated = set(e.names("updates", m))
        for n in e.names("frees", m):
            if n in live or n not in updated:  # else made and freed by the body
                self.free(n, e, m)
        for n, s in made:
            live[n] = self.index
            self.storage[n] = s

    def collective(self, i: Instruction) -> None:
        read, written = touches(i, self.program.bodies)
        for n in read:
            self.read(n)
        for n in written:
            if n in self.live and n not in read:
                raise self.overwritten(n)
            if n in self.live:
                self.write_in_place(n)
            self.make(n)

    def allocate(self, i: Allocate) -> None:
        if i.buffer in self.live:
            raise self.overwritten(i.buffer)
        self.make(i.buffer)
        self.unfilled[i.buffer] = i.type, []

    def send(self, i: Send) -> None:
        self.read(i.buffer, i.region)
        self.start(i, True)

    def recv(self, i: Recv) -> None:
        if i.buffer not in self.live:
            raise self.not_live(i.buffer, "receives into")
        for other in self.under_way.get(self.storage[i.buffer], {}).values():
            if _meet(i.region, other.region):
                raise self.pending(i.buffer, "receives into", other)
        if i.buffer in self.unfilled:
            type, filled = self.unfilled[i.buffer]
            self.fits(i, type)
            filled.append(i.region or _whole(type))
        self.start(i, False)

    def wait(self, i: Wait) -> None:
        storage = self.tickets.pop(i.ticket)
        del self.under_way[storage][i.ticket]
        if not self.under_way[storage]:
            del self.under_way[storage]

    def frees(self, i: Free) -> None:
        for n in i.buffers:
            self.free(n)

    # ------------------------------------------------------------------------------------- rules
    def read(
        self,
        name: str,
        region: Region | None = None,
        e: Effect | None = None,
        microbatch: int | None = None,
    ) -> None:
        """A read of a region, or of all; of a body's kernel where `e` is given."""

        def kernel() -> str:
            return e.kernel("reads", name, microbatch) if e else ""

        if name not in self.live:
            raise self.not_live(name, "reads", kernel())
        for other in self.under_way.get(self.storage[name], {}).values():
            apart = other.name == name and region and not _meet(region, other.region)
            if not other.sends and not apart:
                raise self.pending(name, "reads", other, kernel())
        if name in self.unfilled:
            type, filled = self.unfilled[name]
            missing = rest(region or _whole(type), filled)
            if missing:
                raise ProgramError(
                    f"{self.at(kernel())} reads {name}, of which nothing has written "
                    f"{', '.join(map(_text, missing))}; receive it first"
                )
            if not region:
                del self.unfilled[name]

    def write_in_place(self, name: str, kernel: str = "") -> None:
        other = next(iter(self.under_way.get(self.storage[name], {}).values()), None)
        if other is not None:
            raise self.pending(name, "writes", other, kernel)

    def free(self, name: str, e: Effect | None = None, microbatch: int | None = None) -> None:
        if name not in self.live:
            raise self.not_live(name, "frees", e.kernel("frees", name, microbatch) if e else "")
        if self.under_way:
            for other in self.under_way.get(self.storage[name], {}).values():
                if other.name == name:
                    kernel = e.kernel("frees", name, microbatch) if e else ""
                    raise self.pending(name, "frees", other, kernel)
        del self.live[name], self.storage[name]
        self.unfilled.pop(name, None)
        self.freed[name] = self.index

    def make(self, name: str) -> None:
        self.live[name] = self.index
        self.storage[name] = next(self.fresh)

    def start(self, i: Send | Recv, sends: bool) -> None:
        storage = self.storage[i.buffer]
        self.tickets[i.ticket] = storage
        pending = _UnderWay(self.index, i.buffer, i.region, sends)
        self.under_way.setdefault(storage, {})[i.ticket] = pending

    def fits(self, i: Recv, type: TensorType) -> None:
        region = i.region or _whole(type)
        inside = len(region) == type.ndim and all(
            0 <= a <= b <= n for (a, b), n in zip(region, type.shape, strict=True)
        )
        nbytes = type.with_shape(tuple(b - a for a, b in region)).nbytes
        if not inside or nbytes != i.nbytes:
            raise ProgramError(
                f"{self.at()} of {i.nbytes} bytes does not fit: the region has {nbytes} bytes, the "
                f"buffer is {type}"
            )

    def finish(self) -> None:
        outputs = {p.buffer for p in self.program.outputs}
        for p in self.program.outputs:
            if p.buffer not in self.live:
                raise ProgramError(
                    f"rank {self.program.rank}: output {p.position} lies in {p.buffer}, "
                    f"{self.why_not(p.buffer)}; an output stays live to the end"
                )
            if p.buffer in self.unfilled:
                self.index = self.live[p.buffer]
                self.read(p.buffer)
        left = [n for n in self.live if n not in outputs]
        if left:
            names = ", ".join(f"{n} (of {self.writer(n)})" for n in left[:SHOWN])
            more = f" and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
            raise ProgramError(
                f"rank {self.program.rank}: {names}{more} live to the end and are no outputs; free "
                "each after its last use"
            )

    # ---------------------------------------------------------------------------------- messages
    def at(self, kernel: str = "") -> str:
        return where(self.program, self.index) + (f", {kernel}" if kernel else "")

    def writer(self, name: str) -> str:
        index = self.live[name]
        return "the program's inputs" if index == INPUT else instruction(self.program, index)

    def why_not(self, name: str) -> str:
        if name in self.freed:
            return f"which {instruction(self.program, self.freed[name])} has freed"
        return "which nothing has written"

    def not_live(self, name: str, verb: str, kernel: str = "") -> ProgramError:
        todo = "free it once, after its last use" if name in self.freed else "write it before"
        return ProgramError(f"{self.at(kernel)} {verb} {name}, {self.why_not(name)}; {todo}")

    def overwritten(self, name: str, kernel: str = "") -> ProgramError:
        """A write to a live buffer that the writer does not read: its value would be lost."""
        self.write_in_place(name, kernel)
        return ProgramError(
            f"{self.at(kernel)} writes {name}, which holds the value of {self.writer(name)}; "
            "free it first, or write to another buffer"
        )

    def pending(self, name: str, verb: str, other: _UnderWay, kernel: str = "") -> ProgramError:
        does = "still sends" if other.sends else "still receives into"
        alias = "" if other.name == name else f" (the memory of {other.name})"
        start = self.program.instructions[other.index]
        assert isinstance(start, (Send, Recv))
        return ProgramError(
            f"{self.at(kernel)} {verb} {name}{alias}, which "
            f"{instruction(self.program, other.index)} {does}; put 'wait {start.ticket}' before it"
        )


HANDLERS: dict[type, Callable[[_Buffers, Any], None]] = {
    **dict.fromkeys(COLLECTIVES, _Buffers.collective),
    Allocate: _Buffers.allocate,
    Free: _Buffers.frees,
    Recv: _Buffers.recv,
    Run: _Buffers.run,
    Send: _Buffers.send,
    Wait: _Buffers.wait,
}


# ------------------------------------------------------------------------------------- regions
def rest(region: Region, filled: list[Region]) -> list[Region]:
    """The boxes of a region that no box of `filled` covers."""
    boxes = [region] if all(a < b for a, b in region) else []
    for cut in filled:
        boxes = [part for box in boxes for part in _without(box, cut)]
    return boxes


def _without(box: Region, cut: Region) -> list[Region]:
    common = overlap(box, cut)
    if common is None:
        return [box]
    parts: list[Region] = []
    inner = list(box)
    for d, (lo, hi) in enumerate(common):
        for part in ((inner[d][0], lo), (hi, inner[d][1])):
            if part[0] < part[1]:
                parts.append((*inner[:d], part, *inner[d + 1 :]))
        inner[d] = (lo, hi)
    return parts


def _meet(a: Region, b: Region) -> bool:
    """Two regions of one buffer have elements in common; () is all of it."""
    return not a or not b or overlap(a, b) is not None


def _whole(type: TensorType) -> Region:
    return tuple((0, n) for n in type.shape)


def _text(region: Region) -> str:
    return "[" + ",".join(f"{a}:{b}" for a, b in region) + "]"
