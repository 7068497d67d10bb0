"""Frees: a buffer goes after the last kernel, or instruction, that touches it."""

from __future__ import annotations

from collections import Counter
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
    """Free names after the kernel, or the instruction, that touches them last.

    Args:
        given: names of the program's inputs; one that this rank never reads goes at once.
        kept: names of its outputs.
    """
    touched = {name: body_touches(body) for name, body in bodies.items()}
    users: dict[str, set[str]] = {}
    for name in {i.body: None for i in instructions if isinstance(i, Run)}:
        for names in touched[name]:
            for n in names:
                users.setdefault(n, set()).add(name)
    for i in instructions:
        if not isinstance(i, Run):
            for names in TOUCHES[type(i)](i):
                for n in names:
                    users.setdefault(_formal(n), set()).add("")
    inside = {
        name: _free_inside(body, {n for n in _all(body) if users[n] == {name}} - kept)
        for name, body in bodies.items()
    }
    # A body runs once a microbatch: what it only needs itself is left out before, not every time.
    local = {name: {n for k in body.kernels for n in k.frees} for name, body in inside.items()}
    outside = {
        name: tuple(n for names in touched[name] for n in names if n not in local[name])
        for name in bodies
    }
    last: dict[str, int] = {}
    under_way: dict[str, str] = {}
    for k, i in enumerate(instructions):
        if isinstance(i, Run):
            for n in outside[i.body]:
                last[at(n, i.microbatch)] = k
            continue
        if isinstance(i, (Send, Recv)):
            under_way[i.ticket] = i.buffer
        elif isinstance(i, Wait):
            last[under_way[i.ticket]] = k
        for names in TOUCHES[type(i)](i):
            for n in names:
                last[n] = k
    taken = _last_touched_inside(instructions, {n: k for n, k in last.items() if n not in kept})
    inside = {
        name: _with_frees(b, taken[name]) if name in taken else b for name, b in inside.items()
    }
    at_end: dict[int, list[str]] = {}
    for n, k in last.items():
        i = instructions[k]
        if n not in kept and not (isinstance(i, Run) and _formal(n) in taken.get(i.body, ())):
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
    return _freed_at(body, last)


def _last_touched_inside(
    instructions: Sequence[Instruction], last: Mapping[str, int]
) -> dict[str, set[str]]:
    """For each body, its names of buffers from elsewhere that nothing touches after it.

    A body is one text for all microbatches, so this must hold in each of them.

    Args:
        last: the last instruction that touches each buffer.
    """
    runs = Counter(i.body for i in instructions if isinstance(i, Run))
    owners: dict[str, set[str]] = {}
    for n, k in last.items():
        i = instructions[k]
        owners.setdefault(_formal(n), set()).add(i.body if isinstance(i, Run) else "")
    found: dict[str, set[str]] = {}
    for n, bodies in owners.items():
        [owner, *others] = bodies
        if owner and not others and (n.endswith("@") or runs[owner] == 1):
            found.setdefault(owner, set()).add(n)
    return found


def _with_frees(body: Body, names: set[str]) -> Body:
    last: dict[str, int] = {}
    for index, k in enumerate(body.kernels):
        last.update((n, index) for n in (*k.inputs, k.output) if n in names)
    return _freed_at(body, last)


def _freed_at(body: Body, last: Mapping[str, int]) -> Body:
    """The body whose kernels also free the names whose last kernel they are."""
    freed: dict[int, list[str]] = {}
    for n, index in last.items():
        freed.setdefault(index, []).append(n)
    kernels = list(body.kernels)
    for index, names in freed.items():
        kernels[index] = replace(kernels[index], frees=(*kernels[index].frees, *names))
    return Body(body.name, tuple(kernels))


def _once(body: Body) -> bool:
    """Bodies of the phases that run once may free names that live once a step."""
    return body.kernels[0].phase in (PREPARE, APPLY)
