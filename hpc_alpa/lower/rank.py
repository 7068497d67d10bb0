"""One rank's program: its submesh's items on this device, in the order of the schedule.

A send is waited for before the first action that starts later than the receiver's action, by the
clock of the schedule (one tick an action): by then its receive stands in the receiver's program, so
that nobody waits in a circle. What an action receives is started with the action before it, so that
it comes while that one computes: one more microbatch's messages are held for it. Receives start in
the order of the sends, which NCCL needs: one that is taken out of turn is started with those before
it, and each is waited for where it is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from hpc_alpa.cluster import DeviceMesh
from hpc_alpa.ir.graph import Var
from hpc_alpa.lower.channels import PHASE_OF, Channel, Message, Traffic
from hpc_alpa.lower.instantiate import (
    Collective,
    collective,
    in_microbatch,
    is_local,
    kernel,
    local_move,
)
from hpc_alpa.lower.liveness import place_frees
from hpc_alpa.lower.program import (
    Allocate,
    Body,
    Broadcast,
    Instruction,
    Kernel,
    Placed,
    Program,
    Recv,
    Region,
    Run,
    Send,
    Wait,
    at,
)
from hpc_alpa.lower.spmd import Compute, Convert, Exchange, Item
from hpc_alpa.lower.submesh import Submesh, shared_over
from hpc_alpa.reshard import local
from hpc_alpa.reshard.task import Piece
from hpc_alpa.schedule import Action
from hpc_alpa.sharding import ShardingSpec, local_shape, tile_starts
from hpc_alpa.step import APPLY, BACKWARD, PREPARE, WEIGHT, StepGraph

Part = Body | Collective | Exchange
Alike = Callable[[Channel, Piece], Hashable]
Counts = Mapping[tuple[int, int], int]  # (channel, piece) -> how many pieces it stands for


def write(
    step: StepGraph,
    submeshes: Sequence[Submesh],
    submesh: Submesh,
    row: Sequence[Action],
    traffic: Traffic,
    device: int,
) -> Program:
    """The program of a device of a submesh, which runs a row of the schedule."""
    return _Writer(step, submeshes, submesh, row, traffic, device).program()


def write_thin(
    step: StepGraph,
    submeshes: Sequence[Submesh],
    submesh: Submesh,
    row: Sequence[Action],
    traffic: Traffic,
    device: int,
    alike: Alike,
) -> tuple[Program, Counts]:
    """`write` with one piece of a message for all that are alike, and how many each stands for.

    Args:
        alike: a name for pieces that start and end together; pieces that are sent on stay.
    """
    writer = _Writer(step, submeshes, submesh, row, traffic, device, alike)
    return writer.program(), writer.counts


@dataclass
class _Writer:
    step: StepGraph
    submeshes: Sequence[Submesh]
    submesh: Submesh
    row: Sequence[Action]
    traffic: Traffic
    device: int
    alike: Alike | None = None
    bodies: dict[str, Body] = field(default_factory=dict)
    parts_of: dict[str, list[Part]] = field(default_factory=dict)
    out: list[Instruction] = field(default_factory=list)
    marks: list[tuple[int, str]] = field(default_factory=list)
    sending: list[tuple[str, float]] = field(default_factory=list)  # ticket, when it is received
    started: set[Message] = field(default_factory=set)
    mine: dict[tuple[int, bool], list[tuple[int, Piece]]] = field(default_factory=dict)
    first: dict[Hashable, tuple[int, int]] = field(default_factory=dict)
    counts: dict[tuple[int, int], int] = field(default_factory=dict)
    position: dict[int, int] = field(default_factory=dict)  # in each submesh's order of messages

    @property
    def mesh(self) -> DeviceMesh:
        return self.submesh.mesh

    def program(self) -> Program:
        self.begin("prepare", -math.inf)
        self.run(PREPARE, self.submesh.once[PREPARE], None)
        for a, following in zip(self.row, [*self.row[1:], None], strict=True):
            self.begin(str(a), self.traffic.clock.starts[a])
            self.start_receives(a)
            if following is not None:
                self.start_receives(following)
            phase = PHASE_OF[a.kind]
            name = phase if len(self.submesh.codes) == 1 else f"s{a.stage}.{phase}"
            self.run(name, self.items(a), a.microbatch)
        self.begin("apply", math.inf)
        self.run(APPLY, self.submesh.once[APPLY], None)
        self.finish_sends(None)
        outputs = self.outputs()
        inputs = self.inputs()
        bodies, instructions, marks = place_frees(
            self.bodies,
            self.out,
            self.marks,
            [p.buffer for p in inputs],
            {p.buffer for p in outputs},
        )
        return Program(
            self.device,
            bodies,
            instructions,
            inputs,
            outputs,
            self.step.num_microbatches,
            marks,
        )

    # ------------------------------------------------------------------------------- actions
    def begin(self, label: str, tick: float) -> None:
        """Mark where an action begins, or a phase that runs once; wait for what was sent long ago.

        Args:
            tick: when it starts.
        """
        self.marks.append((len(self.out), label))
        self.finish_sends(tick)

    def items(self, action: Action) -> Sequence[Item]:
        return self.submesh.looped[action.stage, PHASE_OF[action.kind]]

    def run(self, name: str, items: Sequence[Item], microbatch: int | None) -> None:
        """Write what one action does, or a phase that runs once.

        Args:
            name: of its bodies, the same for all microbatches.
        """
        for part in self.parts(name, items):
            if isinstance(part, Body):
                self.out.append(Run(part.name, microbatch))
            elif not isinstance(part, Exchange):
                self.out.append(in_microbatch(part, microbatch))
            elif part.sends:
                self.send(self.traffic.channels[part.transfer], microbatch)
            else:
                self.receive(self.traffic.channels[part.transfer], microbatch)

    def parts(self, name: str, items: Sequence[Item]) -> list[Part]:
        """What this device does: bodies, and the items between that need others."""
        if name not in self.parts_of:
            found: list[Part] = []
            kernels: list[Kernel] = []

            def close() -> None:
                if kernels:
                    body = f"{name}.{sum(isinstance(p, Body) for p in found)}"
                    self.bodies[body] = Body(body, tuple(kernels))
                    found.append(self.bodies[body])
                    kernels.clear()

            phase = name.rpartition(".")[2]
            phase = BACKWARD if phase == WEIGHT else phase
            for item in items:
                if isinstance(item, Compute):
                    kernels.append(kernel(item, self.mesh, self.device))
                elif isinstance(item, Convert) and is_local(item):
                    kernels.append(local_move(item, self.mesh, self.device, phase))
                elif isinstance(item, Convert):
                    close()
                    found.append(collective(item, self.mesh, self.device))
                else:
                    close()
                    found.append(item)
            close()
            self.parts_of[name] = found
        return self.parts_of[name]

    # ------------------------------------------------------------------------------ messages
    def finish_sends(self, tick: float | None) -> None:
        """Wait for the sends whose receivers have begun before a tick; None for all."""
        for ticket, received in self.sending:
            if tick is None or received < tick:
                self.out.append(Wait(ticket))
        self.sending = [s for s in self.sending if tick is not None and s[1] >= tick]

    def tile(self, spec: ShardingSpec, shape: tuple[int, ...]) -> Region:
        coords = self.mesh.coords(self.device)
        starts = tile_starts(shape, spec, self.mesh.shape, coords)
        extents = local_shape(shape, spec, self.mesh.shape)
        return tuple((s, s + n) for s, n in zip(starts, extents, strict=True))

    def send(self, channel: Channel, microbatch: int | None) -> None:
        tile = self.tile(channel.task.source, channel.task.shape)
        name = at(channel.source_name, microbatch)
        for k, piece in self.pieces(channel, True):
            self.send_piece(channel, microbatch, name, tile, (k, piece), 0)

    def send_piece(
        self,
        channel: Channel,
        microbatch: int | None,
        name: str,
        tile: Region,
        numbered: tuple[int, Piece],
        receiver: int,
    ) -> None:
        """Send a piece to one of its receivers, counted along its chain."""
        k, piece = numbered
        ticket = _ticket(channel, k, microbatch, "f" if receiver else "s")
        self.out.append(
            Send(
                name, local(piece.region, tile), piece.receivers[receiver], channel.number, ticket,
                channel.nbytes(piece),
            )
        )  # fmt: skip
        self.sending.append((ticket, self.traffic.received_at((channel.transfer, microbatch))))

    def receive(self, channel: Channel, microbatch: int | None) -> None:
        self.start_up_to(channel, microbatch)
        tile = self.tile(channel.task.target, channel.task.shape)
        name = at(channel.target_name, microbatch)
        mine = self.pieces(channel, False)
        for k, piece in mine:
            before = piece.receivers.index(self.device)
            if before:
                self.receive_piece(
                    channel, microbatch, tile, (k, piece), piece.receivers[before - 1]
                )
        for k, piece in mine:
            self.out.append(Wait(_ticket(channel, k, microbatch, "r")))
            after = piece.receivers.index(self.device) + 1
            if after < len(piece.receivers):
                # A broadcast is a chain: what has come in goes on to the next receiver.
                self.send_piece(channel, microbatch, name, tile, (k, piece), after)

    def start_receives(self, action: Action) -> None:
        """Start all that an action receives."""
        for item in self.items(action):
            if isinstance(item, Exchange) and not item.sends:
                self.start_up_to(self.traffic.channels[item.transfer], action.microbatch)

    def start_up_to(self, channel: Channel, microbatch: int | None) -> None:
        """Start a message's receives, after those of all that its sender sends before it."""
        order = self.traffic.order[channel.source, channel.target]
        while (channel.transfer, microbatch) not in self.started:
            transfer, m = message = order[self.position.get(channel.source, 0)]
            self.position[channel.source] = self.position.get(channel.source, 0) + 1
            self.started.add(message)
            self.start(self.traffic.channels[transfer], m)

    def start(self, channel: Channel, microbatch: int | None) -> None:
        """Make room for a message, and start the receives of what its sender sends to this rank."""
        tile = self.tile(channel.task.target, channel.task.shape)
        extents = tuple(b - a for a, b in tile)
        type = channel.transfer.value.type.with_shape(extents)
        self.out.append(Allocate(at(channel.target_name, microbatch), type))
        for k, piece in self.pieces(channel, False):
            if piece.receivers[0] == self.device:
                self.receive_piece(channel, microbatch, tile, (k, piece), piece.sender)

    def receive_piece(
        self,
        channel: Channel,
        microbatch: int | None,
        tile: Region,
        numbered: tuple[int, Piece],
        peer: int,
    ) -> None:
        k, piece = numbered
        self.out.append(
            Recv(
                at(channel.target_name, microbatch), local(piece.region, tile), peer,
                channel.number, _ticket(channel, k, microbatch, "r"),
                channel.nbytes(piece),
            )
        )  # fmt: skip

    def pieces(self, channel: Channel, sends: bool) -> list[tuple[int, Piece]]:
        """What this rank sends first, or receives, with its number."""
        key = channel.number, sends
        if key not in self.mine:
            self.mine[key] = [
                (k, p)
                for k, p in enumerate(channel.task.pieces)
                if (p.sender == self.device if sends else self.device in p.receivers)
                and self.stands(channel, k, p)
            ]
        return self.mine[key]

    def stands(self, channel: Channel, k: int, piece: Piece) -> bool:
        """Whether a piece is the first of those that are alike; counts them."""
        if self.alike is None or len(piece.receivers) > 1:
            return True
        name = channel.number, self.alike(channel, piece)
        first = self.first.setdefault(name, (channel.number, k))
        self.counts[first] = self.counts.get(first, 0) + 1
        return first[1] == k

    # ----------------------------------------------------------------------- inputs, outputs
    def inputs(self) -> tuple[Placed, ...]:
        position = {v: k for k, v in enumerate(self.step.graph.inputs)}
        placed = []
        for v, name, spec in self.submesh.inputs:
            region = self.tile(spec, v.type.shape)
            type = v.type.with_shape(tuple(b - a for a, b in region))
            runs = self.runs(v, spec) if v in self.step.batch else ()
            placed.append(Placed(position[v], name, type, str(spec), region, runs))
        return tuple(placed)

    def runs(self, v: Var, spec: ShardingSpec) -> tuple[tuple[int, int], ...]:
        """Rows of a batch input or of a stacked result: the same part of every microbatch."""
        slots = self.step.num_microbatches
        rows = v.type.shape[0] // slots
        slot = (rows, *v.type.shape[1:])
        start, stop = self.tile(spec, slot)[0]
        return tuple((m * rows + start, m * rows + stop) for m in range(slots))

    def outputs(self) -> tuple[Placed, ...]:
        """Results on this rank; a metric that one stage makes goes to all ranks."""
        made = {
            k: (*code.outputs[i], code.rows)
            for code in reversed(self.submesh.codes)
            for i, (k, _) in enumerate(code.stage.results)
        }
        placed = []
        for k, v in enumerate(self.step.graph.outputs):
            if k in made:
                _, name, spec, rows = made[k]
                region = self.tile(spec, v.type.shape)
                type = v.type.with_shape(tuple(b - a for a, b in region))
                runs = self.runs(v, spec) if rows.split(v, spec) else ()
                placed.append(Placed(k, name, type, str(spec), region, runs))
            elif not v.type.shape:
                placed.append(Placed(k, f"result{k}", v.type, ".", ()))
            if not v.type.shape:
                self._share(k, v, made[k][1] if k in made else "")
        return tuple(placed)

    def _share(self, k: int, v: Var, source: str) -> None:
        """Bring a 0-d result from the first device that has it to submeshes that do not make it.

        Args:
            source: its buffer on this device, "" where it has none.
        """
        group = shared_over(self.submeshes, k)
        if len(group) > 1 and (self.device == group[0] or not source):
            target = "" if source else f"result{k}"
            self.out.append(Broadcast(source, target, (), group[0], group, v.type.nbytes))


def _ticket(channel: Channel, piece: int, microbatch: int | None, side: str) -> str:
    m = "" if microbatch is None else f".m{microbatch}"
    return f"c{channel.number}.{piece}{m}.{side}"
