"""Frees: a buffer goes after the last kernel, or instruction, that touches it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
    Kernel,
    Recv,
    ReduceScatter,
    Run,
    Send,
    Wait,
    at,
)
from hpc_alpa.step import APPLY, PREPARE

Names = tuple[str, ...]
# Microbatch, or None -> a body's name of a buffer -> the last instruction that touches it.
Last = dict[int | None, dict[str, int]]

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
    outside = {name: _apart(touched[name], local[name]) for name in bodies}
    last: Last = {None: {}}
    under_way: dict[str, str] = {}
    for k, i in enumerate(instructions):
        if isinstance(i, Run):
            fixed, each = outside[i.body]
            last[None].update(dict.fromkeys(fixed, k))
            if each:
                last.setdefault(i.microbatch, {}).update(dict.fromkeys(each, k))
            continue
        there: Names = tuple(n for part in TOUCHES[type(i)](i) for n in part)
        if isinstance(i, (Send, Recv)):
            under_way[i.ticket] = i.buffer
        elif isinstance(i, Wait):
            there = (under_way[i.ticket],)
        for n in there:
            last.setdefault(_microbatch(n), {})[_formal(n)] = k
    unread = tuple(n for n in given if n not in last[None] and n not in kept)
    for n in kept:
        last.get(_microbatch(n), {}).pop(_formal(n), None)
    taken = _last_touched_inside(instructions, last)
    inside = {
        name: _with_frees(b, taken[name]) if name in taken else b for name, b in inside.items()
    }
    at_end: dict[int, list[str]] = {}
    for m, found in last.items():
        for n, k in found.items():
            i = instructions[k]
            if not (isinstance(i, Run) and n in taken.get(i.body, ())):
                at_end.setdefault(k, []).append(at(n, m))
    out: list[Instruction] = [Free(unread)] if unread else []
    moved: dict[int, int] = {}
    for k, i in enumerate(instructions):
        moved[k] = len(out)
        out.append(i)
        if k in at_end:
            out.append(Free(tuple(at_end[k])))
    moved[len(instructions)] = len(out)
    return inside, tuple(out), tuple((moved[k], label) for k, label in marks)


def _apart(touched: tuple[Names, Names], local: set[str]) -> tuple[Names, Names]:
    """Names that are not local: the same in all microbatches, and with one in each."""
    names = dict.fromkeys(n for part in touched for n in part if n not in local)
    fixed = tuple(n for n in names if not n.endswith("@"))
    return fixed, tuple(n for n in names if n.endswith("@"))


def _microbatch(name: str) -> int | None:
    """The microbatch that a buffer's name ends with."""
    return int(name[name.index("@") + 1 :]) if "@" in name else None


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


def _last_touched_inside(instructions: Sequence[Instruction], last: Last) -> dict[str, set[str]]:
    """For each body, its names of buffers from elsewhere that nothing touches after it.

    A body is one text for all microbatches, so this must hold in each of them.
    """
    runs = Counter(i.body for i in instructions if isinstance(i, Run))
    of = [i.body if isinstance(i, Run) else "" for i in instructions]
    owners: dict[str, set[str]] = {}
    for found in last.values():
        for n, k in found.items():
            owners.setdefault(n, set()).add(of[k])
    result: dict[str, set[str]] = {}
    for n, bodies in owners.items():
        [owner, *others] = bodies
        if owner and not others and (n.endswith("@") or runs[owner] == 1):
            result.setdefault(owner, set()).add(n)
    return result


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
        kernels[index] = _freeing(kernels[index], names)
    return Body(body.name, tuple(kernels))


def _freeing(k: Kernel, names: Sequence[str]) -> Kernel:
    # Spelled out: `replace` takes three times as long, and a step has thousands of kernels.
    return Kernel(
        k.op, k.inputs, k.output, k.params, k.type, k.starts, k.extents, k.offsets,
        k.slot_strides, k.work, k.phase, (*k.frees, *names),
    )  # fmt: skip


def _once(body: Body) -> bool:
    """Bodies of the phases that run once may free names that live once a step."""
    return body.kernels[0].phase in (PREPARE, APPLY)
