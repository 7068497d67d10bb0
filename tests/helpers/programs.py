"""Programs built by hand, for the checker and the simulator.

`Rank` writes one rank's program line by line. The builders below are whole steps:

    pipeline         S stages of one rank, forward and backward of B microbatches, by a schedule
    data_parallel    n ranks, accumulate over B microbatches, one all_reduce, apply
    mixed            two stages of two ranks: both at once, and ZeRO's collectives
    random_programs  ranks that compute, meet and send at random, never in a circle
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import hpc_alpa.ops  # noqa: F401  (fills the operator table)
from hpc_alpa.cluster import Cluster, Host, Link
from hpc_alpa.cost import AnalyticCost
from hpc_alpa.cost.work import Work
from hpc_alpa.ir.op import op
from hpc_alpa.ir.types import TensorType
from hpc_alpa.lower.program import (
    AllGather,
    Allocate,
    AllReduce,
    Body,
    Broadcast,
    Free,
    Instruction,
    Kernel,
    Placed,
    Program,
    Recv,
    ReduceScatter,
    Region,
    Run,
    Send,
    Wait,
)
from hpc_alpa.schedule import SCHEDULES, Pass

VECTOR = TensorType((4,), "float32")


def kernel(
    name: str,
    inputs: Sequence[str],
    output: str,
    seconds: float = 0.0,
    *,
    type: TensorType = VECTOR,
    frees: Sequence[str] = (),
    **params: object,
) -> Kernel:
    """A kernel that takes `seconds` under `unit_cost`."""
    work = Work(name, seconds, 0.0, "float32")
    zeros = (0,) * type.ndim
    return Kernel(
        op(name), tuple(inputs), output, params, type, zeros, type.shape, {}, (), work, "",
        tuple(frees),
    )  # fmt: skip


class Rank:
    """Writes one rank's program."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.bodies: dict[str, Body] = {}
        self.out: list[Instruction] = []
        self.marks: list[tuple[int, str]] = []
        self.inputs: list[Placed] = []
        self.outputs: list[Placed] = []

    def mark(self, label: str) -> Rank:
        self.marks.append((len(self.out), label))
        return self

    def input(self, buffer: str, type: TensorType = VECTOR) -> Rank:
        self.inputs.append(_placed(len(self.inputs), buffer, type))
        return self

    def output(self, buffer: str, type: TensorType = VECTOR) -> Rank:
        self.outputs.append(_placed(len(self.outputs), buffer, type))
        return self

    def body(self, name: str, *kernels: Kernel) -> Rank:
        self.bodies[name] = Body(name, kernels)
        return self

    def run(self, body: str, microbatch: int | None = None) -> Rank:
        return self.add(Run(body, microbatch))

    def compute(
        self, inputs: Sequence[str], output: str, seconds: float = 0.0, **options: object
    ) -> Rank:
        """A body of one kernel and its run."""
        name = f"body{len(self.bodies)}"
        row = ("full", "neg", "add")[len(inputs)]
        params = {} if inputs else {"value": 1.0}
        made = kernel(row, inputs, output, seconds, **params, **options)  # type: ignore[arg-type]
        return self.body(name, made).run(name)

    def allocate(self, buffer: str, type: TensorType = VECTOR) -> Rank:
        return self.add(Allocate(buffer, type))

    def send(
        self, buffer: str, peer: int, ticket: str, channel: int = 0,
        region: Region = ((0, 4),), nbytes: int = 16,
    ) -> Rank:  # fmt: skip
        return self.add(Send(buffer, region, peer, channel, ticket, nbytes))

    def recv(
        self, buffer: str, peer: int, ticket: str, channel: int = 0,
        region: Region = ((0, 4),), nbytes: int = 16,
    ) -> Rank:  # fmt: skip
        return self.add(Recv(buffer, region, peer, channel, ticket, nbytes))

    def wait(self, *tickets: str) -> Rank:
        for ticket in tickets:
            self.add(Wait(ticket))
        return self

    def all_reduce(
        self, source: str, target: str, group: tuple[int, ...], nbytes: int = 16, op: str = "sum"
    ) -> Rank:
        return self.add(AllReduce((source,), (target,), group, op, nbytes))

    def all_gather(self, source: str, target: str, group: tuple[int, ...], nbytes: int) -> Rank:
        return self.add(AllGather((source,), (target,), (0,), group, nbytes))

    def reduce_scatter(self, source: str, target: str, group: tuple[int, ...], nbytes: int) -> Rank:
        return self.add(ReduceScatter((source,), (target,), (0,), group, "sum", nbytes))

    def broadcast(self, name: str, root: int, group: tuple[int, ...], nbytes: int = 16) -> Rank:
        source, target = (name, "") if root == self.rank else ("", name)
        return self.add(Broadcast(source, target, (), root, group, nbytes))

    def free(self, *buffers: str) -> Rank:
        return self.add(Free(buffers))

    def add(self, i: Instruction) -> Rank:
        self.out.append(i)
        return self

    def program(self, num_microbatches: int = 1) -> Program:
        return Program(
            self.rank, self.bodies, tuple(self.out), tuple(self.inputs), tuple(self.outputs),
            num_microbatches, tuple(self.marks),
        )  # fmt: skip


def _placed(position: int, buffer: str, type: TensorType) -> Placed:
    return Placed(position, buffer, type, "R" * type.ndim, tuple((0, n) for n in type.shape))


def edited(program: Program, *edits: tuple[int, int, Sequence[Instruction]]) -> Program:
    """The program with instructions [start, stop) replaced, for each edit; positions of the old."""
    instructions = list(program.instructions)
    for start, stop, new in sorted(edits, key=lambda e: -e[0]):
        instructions[start:stop] = new
    return replace(program, instructions=tuple(instructions))


def find(program: Program, text: str, nth: int = 0) -> int:
    """Index of the nth instruction whose text starts so."""
    return [k for k, i in enumerate(program.instructions) if str(i).startswith(text)][nth]


# ------------------------------------------------------------------------------------------ costs
def unit_cluster(
    hosts: int, devices: int, cores: int, link: Link | None = None, network: Link | None = None
) -> Cluster:
    """Work of f flops takes f seconds; links are free unless given."""
    host = Host(devices, cores, 1e9, (("float32", 1.0),), 1e30)
    free = Link("free", 0.0, 0.0)
    return Cluster("unit", (host,) * hosts, link or free, network or link or free)


def unit_cost(
    hosts: int = 1, devices: int = 8, cores: int | None = None, link: Link | None = None,
    network: Link | None = None,
) -> AnalyticCost:  # fmt: skip
    cluster = unit_cluster(hosts, devices, cores or devices, link, network)
    return AnalyticCost(cluster, launch_seconds=0.0)


# ------------------------------------------------------------------------------------------ steps
def pipeline(
    num_stages: int,
    num_microbatches: int,
    schedule: str = "1f1b",
    forward: Sequence[float] = (1.0,),
    backward: Sequence[float] = (2.0,),
) -> list[Program]:
    """Stages of one rank each; channel 2s carries activations of stage s, 2s+1 their gradients.

    A stage keeps its input and its output for the backward, and sums its gradient. A send is
    waited for two actions later, or where what it sends is freed.

    Args:
        forward, backward: seconds per stage; one number is for all.
    """
    actions = SCHEDULES[schedule](num_stages, num_microbatches)
    programs = []
    for s in range(num_stages):
        first, last = s == 0, s == num_stages - 1
        r = Rank(s).input("w")
        if first:
            batch = TensorType((4 * num_microbatches,), "float32")
            r.input("batch", batch).output("batch", batch)
        r.body("forward", kernel("mul", ["w", "x@"], "y@", forward[s % len(forward)]))
        product = "dx@" if last else "t@"
        grad = [kernel("mul", ["x@", "y@"], product, backward[s % len(backward)])]
        if not last:
            grad.append(kernel("add", ["t@", "dy@"], "dx@", frees=["t@"]))
        r.body("backward", *grad, kernel("accumulate", ["dx@"], "total", slots=num_microbatches))
        r.body("apply", kernel("sub", ["w", "total"], "new"))
        r.body("slot", kernel("slot", ["batch"], "x@", dim=0, slots=num_microbatches))
        sends = _Sends(r)
        for position, a in enumerate(actions[s]):
            m = a.microbatch
            r.mark(str(a))
            sends.finish(position - 2)
            if a.kind is Pass.FORWARD:
                if first:
                    r.run("slot", m)
                else:
                    _receive(r, f"x@{m}", s - 1, 2 * (s - 1), f"a{s - 1}.{m}.r")
                r.run("forward", m)
                if not last:
                    sends.start(position, f"y@{m}", s + 1, f"a{s}.{m}.s", 2 * s)
            else:
                if not last:
                    _receive(r, f"dy@{m}", s + 1, 2 * s + 1, f"g{s}.{m}.r")
                r.run("backward", m)
                if not last:
                    sends.finish_one(f"a{s}.{m}.s")
                r.free(f"x@{m}", f"y@{m}", *([] if last else [f"dy@{m}"]))
                if first:
                    r.free(f"dx@{m}")
                else:
                    ticket = f"g{s - 1}.{m}.s"
                    sends.start(position, f"dx@{m}", s - 1, ticket, 2 * s - 1, free=True)
        sends.finish(len(actions[s]))
        r.mark("apply").run("apply").free("w", "total").output("new")
        programs.append(r.program(num_microbatches))
    return programs


class _Sends:
    """Sends under way, and the action that started each."""

    def __init__(self, rank: Rank) -> None:
        self.rank = rank
        self.under_way: dict[str, tuple[int, str]] = {}  # ticket: action, buffer to free

    def start(
        self, action: int, name: str, peer: int, ticket: str, channel: int, free: bool = False
    ) -> None:
        self.rank.send(name, peer, ticket, channel)
        self.under_way[ticket] = action, name if free else ""

    def finish(self, action: int) -> None:
        """Wait for what this action and those before it have sent."""
        for ticket in [t for t, (a, _) in self.under_way.items() if a <= action]:
            self.finish_one(ticket)

    def finish_one(self, ticket: str) -> None:
        if ticket in self.under_way:
            _, name = self.under_way.pop(ticket)
            self.rank.wait(ticket)
            if name:
                self.rank.free(name)


def _receive(r: Rank, name: str, peer: int, channel: int, ticket: str) -> None:
    r.allocate(name).recv(name, peer, ticket, channel).wait(ticket)


def data_parallel(
    num_ranks: int, num_microbatches: int = 2, seconds: Sequence[float] = (1.0,)
) -> list[Program]:
    """Every rank sums its gradients over the microbatches; one all_reduce; apply.

    Args:
        seconds: of one microbatch, per rank; one number is for all.
    """
    programs = []
    for rank in range(num_ranks):
        batch = TensorType((4 * num_microbatches,), "float32")
        r = Rank(rank).input("w").input("batch", batch)
        r.body(
            "forward",
            kernel("slot", ["batch"], "x@", dim=0, slots=num_microbatches),
            kernel("mul", ["w", "x@"], "y@", seconds[rank % len(seconds)], frees=["x@"]),
            kernel("accumulate", ["y@"], "total", slots=num_microbatches, frees=["y@"]),
        )
        r.body("apply", kernel("sub", ["w", "sum"], "new", frees=["sum"]))
        for m in range(num_microbatches):
            r.mark(f"0F{m}").run("forward", m)
        r.mark("apply").free("batch")
        r.all_reduce("total", "sum", tuple(range(num_ranks))).free("total")
        r.run("apply").free("w").output("new")
        programs.append(r.program(num_microbatches))
    return programs


def mixed() -> list[Program]:
    """Stages {0, 1} and {2, 3}: gathered weights, resharded activations, scattered gradients.

    The first stage holds x split along dim 0; the second needs all of it on both ranks: one
    receives both halves, and sends them on to the other.
    """
    half, whole = TensorType((2,), "float32"), VECTOR
    programs = []
    for rank in range(4):
        group = (0, 1) if rank < 2 else (2, 3)
        r = Rank(rank).input("shard", half)
        r.mark("prepare").all_gather("shard", "w", group, 16)
        if rank < 2:
            r.mark("0F0").compute(["shard"], "x", 1.0, type=half)
            r.send("x", 2, f"c0.{rank}.s", region=((0, 2),), nbytes=8)
            r.wait(f"c0.{rank}.s").free("x")
            grad = "w"
        else:
            r.mark("1F0").allocate("x")
            regions: list[Region] = [((0, 2),), ((2, 4),)]
            for k, region in enumerate(regions):
                peer = k if rank == 2 else 2
                r.recv("x", peer, f"c0.{k}.r", region=region, nbytes=8)
            for k, region in enumerate(regions):
                r.wait(f"c0.{k}.r")
                if rank == 2:
                    r.send("x", 3, f"c0.{k}.f", region=region, nbytes=8)
            r.compute(["w", "x"], "y", 1.0)
            if rank == 2:
                r.wait("c0.0.f", "c0.1.f")
            r.free("x")
            grad = "y"
        r.mark("apply").reduce_scatter(grad, "grad", group, 16)
        r.free(*dict.fromkeys((grad, "w")))
        r.compute(["shard", "grad"], "new", 0.5, type=half).free("shard", "grad")
        r.output("new", half)
        if rank == 2:
            r.compute([], "loss", type=whole)
        if rank != 3:
            r.broadcast("loss", 2, (2, 0, 1)).output("loss")
        programs.append(r.program())
    return programs


def random_programs(
    seed: int, num_ranks: int, num_rounds: int, biggest: float = 3.0
) -> list[Program]:
    """Rounds of compute, messages and collectives on random groups, in one order on all ranks."""
    rng = random.Random(seed)
    ranks = [Rank(r).input("w").output("w") for r in range(num_ranks)]
    pending: list[list[str]] = [[] for _ in ranks]
    used: list[list[str]] = [[] for _ in ranks]
    for k in range(num_rounds):
        what = rng.choice(["compute", "compute", "message", "collective", "wait"])
        group = tuple(sorted(rng.sample(range(num_ranks), rng.randint(2, num_ranks))))
        if what == "compute":
            for r in group:
                seconds = rng.choice([0.0, 0.5, 1.0, rng.uniform(0, biggest)])
                ranks[r].mark(f"{r}F{k}").compute(["w"], f"v{k}", seconds)
                used[r].append(f"v{k}")
        elif what == "collective":
            nbytes = 16 * rng.randint(1, 9)
            for r in group:
                ranks[r].all_reduce("w", f"v{k}", group, nbytes)
                used[r].append(f"v{k}")
        elif what == "message":
            a, b = rng.sample(range(num_ranks), 2)
            ranks[a].send("w", b, f"c{k}.s")
            ranks[b].allocate(f"v{k}").recv(f"v{k}", a, f"c{k}.r")
            pending[a].append(f"c{k}.s")
            pending[b].append(f"c{k}.r")
            used[b].append(f"v{k}")
        else:
            for r in group:
                rng.shuffle(pending[r])
                ranks[r].wait(*pending[r])
                pending[r].clear()
    for r, writer in enumerate(ranks):
        writer.wait(*pending[r]).free(*used[r])
    return [w.program() for w in ranks]
