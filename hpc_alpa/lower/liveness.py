"""Frees: a buffer goes after its last reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hpc_alpa.lower.program import (
    AllGather,
    Allocate,
    AllReduce,
    AllToAll,
    Body,
    Broadcast,
    Free,
    Instruction,
    Recv,
    ReduceScatter,
    Run,
    Send,
    Wait,
    at,
)
from hpc_alpa.step import APPLY, PREPARE

Names = tuple[str, ...]

# What an instruction touches: (buffers read, buffers written). A run's follow from its body.
TOUCHES: dict[type, Callable[[Any], tuple[Names, Names]]] = {  # alphabetical
    AllGather: lambda i: (i.sources, i.targets),
    AllReduce: lambda i: (i.sources, i.targets),
    AllToAll: lambda i: ((i.source,), (i.target,)),
    Allocate: lambda i: ((), (i.buffer,)),
    Broadcast: lambda i: ((i.source,), ()) if i.source else ((), (i.target,)),
    Free: lambda i: ((), ()),
    Recv: lambda i: ((), (i.buffer,)),
    ReduceScatter: lambda i: (i.sources, i.targets),
    Send: lambda i: ((i.buffer,), ()),
    Wait: lambda i: ((), ()),
}


def touches(i: Instruction, bodies: Mapping[str, Body]) -> tuple[Names, Names]:
    """The buffers that an instruction reads and writes."""
    if isinstance(i, Run):
        read, written = body_touches(bodies[i.body])
        return (
            tuple(at(n, i.microbatch) for n in read),
            tuple(at(n, i.microbatch) for n in written),
        )
    return TOUCHES[type(i)](i)


def body_touches(body: Body) -> tuple[Names, Names]:
    """Names that a body reads from outside, and all that it writes."""
    read: dict[str, None] = {}
    written: dict[str, None] = {}
    for k in body.kernels:
        for n in k.inputs:
            if n not in written:
                read[n] = None
        written[k.output] = None
    return tuple(read), tuple(written)


def place_frees(
    bodies: Mapping[str, Body],
    instructions: Sequence[Instruction],
    marks: Sequence[tuple[int, str]],
    given: Sequence[str],
    kept: set[str],
) -> tuple[dict[str, Body], tuple[Instruction, ...], tuple[tuple[int, str], ...]]:
    """Free names that only one body touches inside it, and the others after their last instruction.

    Args:
        given: names of the program's inputs; one that this rank never reads goes at once.
        kept: names of its outputs.
    """
    users: dict[str, set[str]] = {}
    for i in instructions:
        owner = i.body if isinstance(i, Run) else ""
        read, written = (
            touches(i, bodies) if not isinstance(i, Run) else body_touches(bodies[i.body])
        )
        for n in (*read, *written):
            users.setdefault(_formal(n), set()).add(owner)
    inside = {
        name: _free_inside(body, {n for n in _all(body) if users[n] == {name}} - kept)
        for name, body in bodies.items()
    }
    local = {name: {n for k in body.kernels for n in k.frees} for name, body in inside.items()}
    last: dict[str, int] = {}
    under_way: dict[str, str] = {}
    for k, i in enumerate(instructions):
        if isinstance(i, (Send, Recv)):
            under_way[i.ticket] = i.buffer
        if isinstance(i, Wait):
            last[under_way[i.ticket]] = k
        read, written = touches(i, bodies)
        for n in (*read, *written):
            if not (isinstance(i, Run) and _formal(n) in local[i.body]):
                last[n] = k
    at_end: dict[int, list[str]] = {}
    for n, k in last.items():
        if n not in kept:
            at_end.setdefault(k, []).append(n)
    unread = tuple(n for n in given if n not in last and n not in kept)
    out: list[Instruction] = [Free(unread)] if unread else []
    moved: dict[int, int] = {}
    for k, i in enumerate(instructions):
        moved[k] = len(out)
        out.append(i)
        if k in at_end:
            out.append(Free(tuple(at_end[k])))
    moved[len(instructions)] = len(out)
    return inside, tuple(out), tuple((moved[k], label) for k, label in marks)


def _formal(name: str) -> str:
    """The body's name of a buffer: without its microbatch's number."""
    return name[: name.index("@") + 1] if "@" in name else name


def _all(body: Body) -> set[str]:
    return {n for k in body.kernels for n in (*k.inputs, k.output)}


def _free_inside(body: Body, names: set[str]) -> Body:
    made = {k.output for k in body.kernels}
    last: dict[str, int] = {}
    for index, k in enumerate(body.kernels):
        for n in (*k.inputs, k.output):
            if n in names and n in made and (n.endswith("@") or _once(body)):
                last[n] = index
    kernels = [
        replace(k, frees=tuple(n for n, i in last.items() if i == index))
        for index, k in enumerate(body.kernels)
    ]
    return Body(body.name, tuple(kernels))


def _once(body: Body) -> bool:
    """Bodies of the phases that run once may free names that live once a step."""
    return body.kernels[0].phase in (PREPARE, APPLY)
