"""Runs one rank's program: a dict of handlers over a list of instructions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

from hpc_alpa.arrays.protocol import Array, Arrays
from hpc_alpa.comm.protocol import Communicator, Request
from hpc_alpa.errors import ProgramError
from hpc_alpa.ir.op import Call
from hpc_alpa.lower.program import COLLECTIVES as COLLECTIVE_TYPES
from hpc_alpa.lower.program import (
    KIND,
    AllGather,
    Allocate,
    AllReduce,
    AllToAll,
    Body,
    Broadcast,
    Free,
    Instruction,
    Kernel,
    Program,
    Recv,
    ReduceScatter,
    Region,
    Run,
    Send,
    Wait,
    at,
)
from hpc_alpa.simulate.timeline import Event

Buffers = dict[str, Array]
Step = Callable[[Buffers], None]
Compute = Callable[..., Array]  # (what the output's buffer holds, or None; *inputs) -> output


@dataclass
class Record:
    """What one step did on this rank.

    Attributes:
        collectives: number of calls by kind.
        messages: number of sends.
        peak_bytes: most bytes of live buffers at once, when it was measured.
        events: what ran when, in seconds from the step's start, when it was asked for.
    """

    collectives: dict[str, int] = field(default_factory=dict)
    messages: int = 0
    peak_bytes: int = 0
    events: list[Event] = field(default_factory=list)


class Executor:
    """One rank's part of a program on arrays of one backend.

    Args:
        arrays: backend of `hpc_alpa.arrays`.
    """

    def __init__(self, program: Program, arrays: Arrays) -> None:
        self.program, self.arrays = program, arrays
        self.record = Record()
        self._measure = False
        self._world: Communicator | None = None
        self._steps: dict[tuple[str, int | None], tuple[Step, ...]] = {}
        self._pending: dict[str, tuple[Request, Callable[[], None] | None, Array]] = {}
        self._groups: dict[tuple[int, ...], Communicator] = {}

    @property
    def world(self) -> Communicator:
        """All ranks of the plan."""
        assert self._world is not None, "attach comes before the first message"
        return self._world

    def attach(self, world: Communicator) -> None:
        """Use this communicator of all ranks of the plan; device d of the program is its rank d.

        Collective: the groups that the program names are made here, in one order on all ranks.
        """
        if world is self._world:
            return
        self._world = world
        groups = {i.group for i in self.program.instructions if isinstance(i, COLLECTIVE_TYPES)}
        self._groups = {g: world.group(g) for g in sorted(groups)}

    # What is not finite reaches the loss, or a scaled loss skips its step: no warning of each tile.
    @np.errstate(over="ignore", invalid="ignore")
    def __call__(
        self,
        inputs: Mapping[int, Array],
        *,
        measure_memory: bool = False,
        timeline: bool = False,
    ) -> dict[int, Array]:
        """Run one step. Collective over the program's ranks.

        Args:
            inputs: this rank's tile of each of the program's inputs, by position.
            measure_memory: fill `record.peak_bytes`, which takes time.
            timeline: fill `record.events`.

        Returns:
            This rank's tile of each output, by position.
        """
        self.record = record = Record()
        self._measure = measure_memory
        buffers: Buffers = {p.buffer: inputs[p.position] for p in self.program.inputs}
        label = ""
        labels = dict(self.program.marks)
        start = perf_counter()
        for index, instruction in enumerate(self.program.instructions):
            label = labels.get(index, label)
            before = perf_counter() if timeline else 0.0
            HANDLERS[type(instruction)](self, buffers, instruction)
            if timeline:
                self._note(record, instruction, label, before - start, perf_counter() - before)
            if measure_memory:
                record.peak_bytes = max(record.peak_bytes, live_bytes(buffers))
            kind = KIND.get(type(instruction))
            if kind:
                record.collectives[kind] = record.collectives.get(kind, 0) + 1
            elif isinstance(instruction, Send):
                record.messages += 1
        self.arrays.synchronize()
        return {p.position: buffers[p.buffer] for p in self.program.outputs}

    def steps(self, body: Body, microbatch: int | None) -> tuple[Step, ...]:
        """The body's kernels bound to one microbatch's buffers; made once."""
        key = (body.name, microbatch)
        if key not in self._steps:
            self._steps[key] = tuple(self._bind(k, microbatch) for k in body.kernels)
        return self._steps[key]

    def _bind(self, kernel: Kernel, microbatch: int | None) -> Step:
        inputs = tuple(at(n, microbatch) for n in kernel.inputs)
        output = at(kernel.output, microbatch)
        frees = tuple(at(n, microbatch) for n in kernel.frees)
        run = SLOT_KERNELS.get(kernel.op.name)
        if run is not None:
            compute = run(kernel, microbatch or 0, self.arrays)
        else:
            compute = self._compute(kernel, microbatch or 0)

        def step(buffers: Buffers) -> None:
            buffers[output] = compute(buffers.get(output), *[buffers[n] for n in inputs])
            if self._measure:
                self.record.peak_bytes = max(self.record.peak_bytes, live_bytes(buffers))
            for n in frees:
                del buffers[n]

        return step

    def _compute(self, kernel: Kernel, microbatch: int) -> Compute:
        starts = list(kernel.starts)
        for dim, stride in kernel.slot_strides:
            starts[dim] += microbatch * stride
        call = Call(kernel.params, kernel.type, tuple(starts), kernel.extents, kernel.offsets)
        own, arrays = kernel.op.kernel, self.arrays
        if own is not None:
            return lambda _, *xs: own(arrays, call, *xs)
        reference = kernel.op.reference
        return lambda _, *xs: reference(call, *xs)

    def _note(
        self, record: Record, i: Instruction, label: str, start: float, seconds: float
    ) -> None:
        if isinstance(i, (Free, Allocate)):
            return
        stream = "compute" if isinstance(i, Run) else "communication"
        word = str(i).split()[0]
        args = {"op": word, "bytes": getattr(i, "nbytes", 0), "action": label}
        name, category = (label, phase_of(label)) if isinstance(i, Run) else (word, word)
        record.events.append(Event(self.program.rank, stream, name, category, start, seconds, args))


def phase_of(label: str) -> str:
    """`2F0` -> forward; `prepare` and `apply` are phases of their own."""
    letter = label.lstrip("0123456789")[:1] if label[:1].isdigit() else ""
    return {"F": "forward", "B": "backward", "W": "weight"}.get(letter, label)


def live_bytes(buffers: Mapping[str, Any]) -> int:
    """Bytes of the distinct arrays that buffers are, or are views of."""
    owners = {}
    for x in buffers.values():
        while getattr(x, "base", None) is not None and hasattr(x.base, "nbytes"):
            x = x.base
        owners[id(x)] = x.nbytes
    return sum(owners.values())


# --------------------------------------------------------- kernels that know their microbatch
def _rows(dim: int, rows: int, m: int) -> tuple[slice, ...]:
    """The index of microbatch m's rows along a dim."""
    return (*(slice(None),) * dim, slice(m * rows, (m + 1) * rows))


def _slot(kernel: Kernel, m: int, arrays: Arrays) -> Compute:
    dim = kernel.params["dim"]
    window = _rows(dim, kernel.type.shape[dim], m)
    return lambda _, x: x[window]


def _stack(kernel: Kernel, m: int, arrays: Arrays) -> Compute:
    dim = kernel.params["dim"]
    window = _rows(dim, kernel.type.shape[dim] // kernel.params["slots"], m)

    def stack(out: Array | None, x: Array) -> Array:
        if out is None:
            out = arrays.empty(kernel.type.shape, kernel.type.dtype)
        out[window] = x
        return out

    return stack


def _accumulate(reduce: Callable[..., Array]) -> Callable[[Kernel, int, Arrays], Compute]:
    def make(kernel: Kernel, m: int, arrays: Arrays) -> Compute:
        slots = kernel.params["slots"]

        def accumulate(total: Array | None, x: Array) -> Array:
            if total is None:
                # The first term is the buffer, but for a view of something that lives on.
                return x if slots == 1 else x.copy()
            return reduce(total, x, out=total) if total.ndim else reduce(total, x)

        return accumulate

    return make


SLOT_KERNELS: dict[str, Callable[[Kernel, int, Arrays], Compute]] = {  # alphabetical
    "accumulate": _accumulate(np.add),
    "accumulate_max": _accumulate(np.maximum),
    "slot": _slot,
    "stack": _stack,
}


# ----------------------------------------------------------------------------------- handlers
def _run(ex: Executor, buffers: Buffers, i: Run) -> None:
    for step in ex.steps(ex.program.bodies[i.body], i.microbatch):
        step(buffers)


def _flat(ex: Executor, parts: Sequence[Array], rows: int = 1) -> tuple[Array, list[int]]:
    """One buffer (rows, total) that holds parts of (rows, ...), and where each starts."""
    sizes = [math.prod(p.shape) // rows for p in parts]
    flat = ex.arrays.empty((rows, sum(sizes)), str(parts[0].dtype))
    starts = [0]
    for p, n in zip(parts, sizes, strict=True):
        flat[:, starts[-1] : starts[-1] + n] = p.reshape(rows, n)
        starts.append(starts[-1] + n)
    return flat, starts


def _all_reduce(ex: Executor, buffers: Buffers, i: AllReduce) -> None:
    parts = [buffers[n] for n in i.sources]
    flat, starts = _flat(ex, parts)
    ex._groups[i.group].all_reduce(flat.reshape(-1), i.op)
    for k, (p, target) in enumerate(zip(parts, i.targets, strict=True)):
        buffers[target] = flat[0, starts[k] : starts[k + 1]].reshape(p.shape)


def _all_gather(ex: Executor, buffers: Buffers, i: AllGather) -> None:
    parts = [buffers[n] for n in i.sources]
    flat, starts = _flat(ex, parts)
    n = len(i.group)
    out = ex.arrays.empty((n, flat.size), str(flat.dtype))
    ex._groups[i.group].all_gather(flat.reshape(-1), out)
    runs = i.runs or (1,) * len(parts)
    for k, (p, target, dim) in enumerate(zip(parts, i.targets, i.dims, strict=True)):
        pieces = out[:, starts[k] : starts[k + 1]].reshape(n, *p.shape)
        buffers[target] = _join(pieces, dim, runs[k])


def _join(pieces: Array, dim: int, runs: int) -> Array:
    """(n, *tile) put together along one of the tile's dims, run by run."""
    n, *shape = pieces.shape
    apart = [*shape[:dim], runs, shape[dim] // runs, *shape[dim + 1 :]]
    moved = np.moveaxis(pieces.reshape(n, *apart), 0, dim + 1)
    whole = [n * s if d == dim else s for d, s in enumerate(shape)]
    return moved.reshape(whole)


def _cut(x: Array, n: int, dim: int) -> Array:
    """A tile cut along a dim into (n, *part)."""
    shape = list(x.shape)
    shape[dim : dim + 1] = [n, shape[dim] // n]
    return np.moveaxis(x.reshape(shape), dim, 0)


def _reduce_scatter(ex: Executor, buffers: Buffers, i: ReduceScatter) -> None:
    n = len(i.group)
    parts = [_cut(buffers[s], n, d) for s, d in zip(i.sources, i.dims, strict=True)]
    flat, starts = _flat(ex, parts, n)
    out = ex.arrays.empty((flat.shape[1],), str(flat.dtype))
    ex._groups[i.group].reduce_scatter(flat, out, i.op)
    for k, (p, target) in enumerate(zip(parts, i.targets, strict=True)):
        buffers[target] = out[starts[k] : starts[k + 1]].reshape(p.shape[1:])


def _all_to_all(ex: Executor, buffers: Buffers, i: AllToAll) -> None:
    n = len(i.group)
    parts = ex.arrays.contiguous(_cut(buffers[i.source], n, i.split_dim))
    out = ex.arrays.empty(parts.shape, str(parts.dtype))
    ex._groups[i.group].all_to_all(parts, out)
    buffers[i.target] = _join(out, i.concat_dim, i.runs)


def _broadcast(ex: Executor, buffers: Buffers, i: Broadcast) -> None:
    comm = ex._groups[i.group]
    root = i.group.index(i.root)
    if i.source:
        comm.broadcast(ex.arrays.contiguous(buffers[i.source]), root)
        return
    placed = next(p for p in ex.program.outputs if p.buffer == i.target)
    buffers[i.target] = ex.arrays.empty(placed.type.shape, placed.type.dtype)
    comm.broadcast(buffers[i.target], root)


def _allocate(ex: Executor, buffers: Buffers, i: Allocate) -> None:
    buffers[i.buffer] = ex.arrays.empty(i.type.shape, i.type.dtype)


def _window(x: Array, region: Region) -> Array:
    return x[tuple(slice(a, b) for a, b in region)] if region else x


def _send(ex: Executor, buffers: Buffers, i: Send) -> None:
    x = ex.arrays.contiguous(_window(buffers[i.buffer], i.region))
    ex._pending[i.ticket] = (ex.world.send(x, i.peer, i.channel), None, x)


def _recv(ex: Executor, buffers: Buffers, i: Recv) -> None:
    place = _window(buffers[i.buffer], i.region)
    if place.flags.c_contiguous:
        ex._pending[i.ticket] = (ex.world.recv(place, i.peer, i.channel), None, place)
        return
    staged = ex.arrays.empty(place.shape, str(place.dtype))

    def unpack() -> None:
        place[...] = staged

    ex._pending[i.ticket] = (ex.world.recv(staged, i.peer, i.channel), unpack, staged)


def _wait(ex: Executor, buffers: Buffers, i: Wait) -> None:
    if i.ticket not in ex._pending:
        raise ProgramError(f"rank {ex.program.rank} waits for {i.ticket}, which was not started")
    request, then, _ = ex._pending.pop(i.ticket)
    request.wait()
    if then is not None:
        then()


def _free(ex: Executor, buffers: Buffers, i: Free) -> None:
    for n in i.buffers:
        del buffers[n]


HANDLERS: dict[type, Callable[[Executor, Buffers, Any], None]] = {  # alphabetical
    AllGather: _all_gather,
    AllReduce: _all_reduce,
    AllToAll: _all_to_all,
    Allocate: _allocate,
    Broadcast: _broadcast,
    Free: _free,
    Recv: _recv,
    ReduceScatter: _reduce_scatter,
    Run: _run,
    Send: _send,
    Wait: _wait,
}
