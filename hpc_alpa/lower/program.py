"""`Program`: one instruction list per rank, and the bodies that its runs share.

    run forward.0 m=2                  a body: kernels on local arrays, no communication
    all_reduce v41.RR+P0@2 -> v41.RR@2 sum over 0,1
    send v41.RR@2[0:4,0:8] to 3 channel 0 ticket c0.0.m2.s
    wait c0.0.m2.s                     the send has ended: its buffer may go
    free v41.RR@2

Buffers are names: a value's number, how it lies, and the window that made it (`lower.spmd`). A name
that ends in `@` in a body lives once a microbatch; in an instruction the microbatch's number
follows. Buckets and regions are in the program; nothing is decided while running.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from hpc_alpa.cost.work import Work
from hpc_alpa.ir.op import Op, Params
from hpc_alpa.ir.types import TensorType

Region = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Kernel:
    """One operator on local arrays.

    Attributes:
        inputs, output: names of buffers, `@` behind those of one microbatch.
        params: the equation's parameters.
        type: type of the output tile.
        starts, extents, offsets: see `ir.op.Call`.
        slot_strides: (dim, elements) by which the tile moves on from one microbatch to the next.
        work: what the cost model prices.
        phase: `prepare`, `forward`, `backward` or `apply`.
        frees: buffers that nothing reads afterwards.
    """

    op: Op
    inputs: tuple[str, ...]
    output: str
    params: Params
    type: TensorType
    starts: tuple[int, ...]
    extents: tuple[int, ...]
    offsets: Mapping[str, int]
    slot_strides: tuple[tuple[int, int], ...]
    work: Work
    phase: str = ""
    frees: tuple[str, ...] = ()

    def __str__(self) -> str:
        freed = f"  free {' '.join(self.frees)}" if self.frees else ""
        return f"{self.output}:{self.type} = {self.op.name}({', '.join(self.inputs)}){freed}"


@dataclass(frozen=True, slots=True)
class Body:
    """Kernels that run without communication between them."""

    name: str
    kernels: tuple[Kernel, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """Run a body, for one microbatch or once."""

    body: str
    microbatch: int | None

    def __str__(self) -> str:
        return f"run {self.body}" + ("" if self.microbatch is None else f" m={self.microbatch}")


@dataclass(frozen=True, slots=True)
class AllReduce:
    """Reduce buffers over a group; several are fused into one bucket.

    Here and below, `group` has the ranks in the order of the mesh axis, and `nbytes` are those of
    the whole tensor on the group, as `cost.Cost.collective` takes them.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    group: tuple[int, ...]
    op: str
    nbytes: int

    def __str__(self) -> str:
        return (
            f"all_reduce {' '.join(self.sources)} -> {' '.join(self.targets)} "
            f"{self.op} over {_ranks(self.group)}"
        )


@dataclass(frozen=True, slots=True)
class AllGather:
    """Concatenate the group's buffers along dims; several of them in one message.

    Attributes:
        runs: for each buffer, how many runs of rows it has along its dim, one of each microbatch;
            first come the first runs of all. () is one each.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    dims: tuple[int, ...]
    group: tuple[int, ...]
    nbytes: int
    runs: tuple[int, ...] = ()

    def __str__(self) -> str:
        return (
            f"all_gather {' '.join(self.sources)} -> {' '.join(self.targets)} "
            f"dims {self.dims} over {_ranks(self.group)}"
        )


@dataclass(frozen=True, slots=True)
class ReduceScatter:
    """Reduce buffers over a group and keep one's own part of each dim."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    dims: tuple[int, ...]
    group: tuple[int, ...]
    op: str
    nbytes: int

    def __str__(self) -> str:
        return (
            f"reduce_scatter {' '.join(self.sources)} -> {' '.join(self.targets)} "
            f"dims {self.dims} {self.op} over {_ranks(self.group)}"
        )


@dataclass(frozen=True, slots=True)
class AllToAll:
    """Split along one dim, exchange, concatenate along another.

    Attributes:
        runs: how many runs of rows the source has along `concat_dim`.
    """

    source: str
    target: str
    split_dim: int
    concat_dim: int
    group: tuple[int, ...]
    nbytes: int
    runs: int = 1

    def __str__(self) -> str:
        return (
            f"all_to_all {self.source} -> {self.target} split {self.split_dim} "
            f"concatenate {self.concat_dim} over {_ranks(self.group)}"
        )


@dataclass(frozen=True, slots=True)
class Broadcast:
    """The root's region of `source` goes to the group's region of `target`.

    On the root `target` is empty; on the others `source` is.
    """

    source: str
    target: str
    region: Region
    root: int
    group: tuple[int, ...]
    nbytes: int

    def __str__(self) -> str:
        name = self.source or self.target
        return f"broadcast {name}{_show(self.region)} from {self.root} over {_ranks(self.group)}"


@dataclass(frozen=True, slots=True)
class Allocate:
    """An empty buffer that receives fill."""

    buffer: str
    type: TensorType

    def __str__(self) -> str:
        return f"allocate {self.buffer}:{self.type}"


@dataclass(frozen=True, slots=True)
class _Message:
    """One side of a message.

    Attributes:
        region: (start, stop) of each dim of the buffer; () is all of it.
        peer: the rank at the other side.
        channel: tag of the transfer: messages of one channel match in order.
        ticket: what `Wait` calls it.
        nbytes: of the region.
    """

    buffer: str
    region: Region
    peer: int
    channel: int
    ticket: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class Send(_Message):
    """Start sending a region of a buffer; it may not be written or freed before `Wait`."""

    def __str__(self) -> str:
        return f"send {self.buffer}{_show(self.region)} to {self.peer} {_tag(self)}"


@dataclass(frozen=True, slots=True)
class Recv(_Message):
    """Start receiving a region of a buffer; it may not be read before `Wait`."""

    def __str__(self) -> str:
        return f"recv {self.buffer}{_show(self.region)} from {self.peer} {_tag(self)}"


@dataclass(frozen=True, slots=True)
class Wait:
    """Finish a send or a receive."""

    ticket: str

    def __str__(self) -> str:
        return f"wait {self.ticket}"


@dataclass(frozen=True, slots=True)
class Free:
    """Nothing reads these buffers any more."""

    buffers: tuple[str, ...]

    def __str__(self) -> str:
        return f"free {' '.join(self.buffers)}"


Instruction = (
    Run
    | AllReduce
    | AllGather
    | ReduceScatter
    | AllToAll
    | Broadcast
    | Allocate
    | Send
    | Recv
    | Wait
    | Free
)
COLLECTIVES = (AllReduce, AllGather, ReduceScatter, AllToAll, Broadcast)
KIND = {
    AllReduce: "all_reduce",
    AllGather: "all_gather",
    ReduceScatter: "reduce_scatter",
    AllToAll: "all_to_all",
    Broadcast: "broadcast",
}


@dataclass(frozen=True)
class Placed:
    """Where a step's input or output lies on one rank.

    Attributes:
        position: among the step's inputs or outputs.
        buffer: its name in the program.
        type: type of this rank's tile.
        spec: how the value lies on the rank's mesh.
        region: the tile within the whole value. For a batch input cut into microbatches, its
            rows are `runs`.
        runs: ranges of rows of the whole batch, in the order of the tile's rows, or ().
    """

    position: int
    buffer: str
    type: TensorType
    spec: str
    region: Region
    runs: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Program:
    """What one rank does in one step.

    Attributes:
        bodies: by name; a body is written once and run for every microbatch.
        inputs, outputs: where the step's inputs and outputs lie.
        marks: (index of the first instruction, label) of every action, `2F0`, for the timeline.
    """

    rank: int
    bodies: Mapping[str, Body]
    instructions: tuple[Instruction, ...]
    inputs: tuple[Placed, ...]
    outputs: tuple[Placed, ...]
    num_microbatches: int
    marks: tuple[tuple[int, str], ...] = field(default=())

    def __str__(self) -> str:
        marks = dict(self.marks)
        lines = []
        for k, i in enumerate(self.instructions):
            if k in marks:
                lines.append(f"# {marks[k]}")
            lines.append(str(i))
        return f"rank {self.rank}\n" + "\n".join(lines)

    def runs(self) -> Iterator[tuple[Body, int | None]]:
        """The bodies in the order in which they run, with their microbatch."""
        for i in self.instructions:
            if isinstance(i, Run):
                yield self.bodies[i.body], i.microbatch


def at(name: str, microbatch: int | None) -> str:
    """The buffer that a body's name stands for in one microbatch."""
    return f"{name}{microbatch}" if name.endswith("@") else name


def _ranks(group: tuple[int, ...]) -> str:
    return ",".join(map(str, group))


def _tag(i: _Message) -> str:
    return f"channel {i.channel} ticket {i.ticket}"


def _show(region: Region) -> str:
    return "[" + ",".join(f"{a}:{b}" for a, b in region) + "]"
