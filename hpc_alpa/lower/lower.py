"""[StepGraph, Plan] -> [Program], one for each rank.

stage code      what each stage does in each phase, with conversions         spmd
buckets         collectives of the once-a-step phases fused                  bucket
instances       this device's tiles and groups                               instantiate
actions         phases in the order of the schedule, with their messages     here
frees           after the last reader of a buffer                            liveness
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hpc_alpa.cluster import DeviceMesh
from hpc_alpa.errors import PlanError
from hpc_alpa.ir.graph import Var
from hpc_alpa.lower.bucket import bucket
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
from hpc_alpa.lower.spmd import PHASES, Compute, Convert, Exchange, StageCode, stage_code
from hpc_alpa.plan.plan import Plan
from hpc_alpa.reshard import ReshardTask, local, reshard
from hpc_alpa.schedule.action import Pass
from hpc_alpa.schedule.table import SCHEDULES
from hpc_alpa.sharding import ShardingSpec, local_shape, tile_starts
from hpc_alpa.step import (
    APPLY,
    BACKWARD,
    FORWARD,
    PREPARE,
    StageGraph,
    StepGraph,
    Transfer,
    split_stages,
)
from hpc_alpa.step.rows import Rows

Part = Body | Collective | Exchange
PHASE_OF = {Pass.FORWARD: FORWARD, Pass.BACKWARD: BACKWARD}


def lower(step: StepGraph, plan: Plan) -> tuple[Program, ...]:
    """The program of every rank.

    Raises:
        PlanError: the plan was made for another graph, number of microbatches or choice of layers
            to make again; `Plan.divide` makes the step.
    """
    return lowering(step, plan).programs()


def lowering(step: StepGraph, plan: Plan) -> Lowering:
    """What all ranks share; raises as `lower` does."""
    if plan.num_microbatches != step.num_microbatches:
        raise PlanError(
            f"the plan has {plan.num_microbatches} microbatches, the step {step.num_microbatches}"
        )
    if plan.recompute != step.recomputed:
        raise PlanError(
            f"the plan recomputes layers {list(plan.recompute)}, the step {list(step.recomputed)}"
        )
    return lowering_of(step, split_stages(step, plan.cuts), plan)


def lower_stages(step: StepGraph, stages: Sequence[StageGraph], plan: Plan) -> tuple[Program, ...]:
    """The program of every rank, for stages that are already split."""
    return lowering_of(step, stages, plan).programs()


def lowering_of(step: StepGraph, stages: Sequence[StageGraph], plan: Plan) -> Lowering:
    """What all ranks share, for stages that are already split."""
    codes = [
        stage_code(s, p, Rows.of(s.graph, step.batch, step.num_microbatches))
        for s, p in zip(stages, plan.stages, strict=True)
    ]
    for code in codes:
        for phase in (PREPARE, APPLY):
            code.items[phase] = bucket(code.items[phase])
    return Lowering(step, plan, tuple(codes), _tasks(codes, plan))


@dataclass(frozen=True)
class Lowering:
    """What the programs of all ranks are written from; each is written when it is asked for.

    Attributes:
        codes: the work of each stage, the same on all of its devices.
        channels: every transfer between stages.
    """

    step: StepGraph
    plan: Plan
    codes: tuple[StageCode, ...]
    channels: Mapping[Transfer, Channel]

    @property
    def ranks(self) -> tuple[int, ...]:
        """All ranks that have a program, ascending."""
        return tuple(sorted({d for code in self.codes for d in code.plan.devices}))

    def programs(self) -> tuple[Program, ...]:
        """The program of every rank."""
        return tuple(map(self.program, self.ranks))

    def program(self, rank: int) -> Program:
        """The program of one rank."""
        code = next(c for c in self.codes if rank in c.plan.devices)
        mesh, channels = code.plan.mesh, self.channels
        return _Writer(self.step, self.plan, self.codes, code, mesh, rank, channels).program()


@dataclass(frozen=True)
class Channel:
    """A transfer between stages with its tiles.

    Attributes:
        number: the messages' tag.
        source_name, target_name: the buffers at both ends, `@` behind those of one microbatch.
    """

    number: int
    transfer: Transfer
    task: ReshardTask
    source_name: str
    target_name: str


def _tasks(codes: Sequence[StageCode], plan: Plan) -> dict[Transfer, Channel]:
    ends: dict[Transfer, list[Exchange | None]] = {}
    for code in codes:
        for phase in PHASES:
            for item in code.items[phase]:
                if isinstance(item, Exchange):
                    ends.setdefault(item.transfer, [None, None])[not item.sends] = item
    channels = {}
    for number, (transfer, (source, target)) in enumerate(
        sorted(ends.items(), key=lambda x: (x[0].source, x[0].target, x[0].value.id))
    ):
        assert source is not None and target is not None, transfer
        task = reshard(
            transfer.value.type.shape,
            source.spec,
            codes[transfer.source].plan.mesh,
            target.spec,
            codes[transfer.target].plan.mesh,
            plan.resharding,
        )
        channels[transfer] = Channel(number, transfer, task, source.name, target.name)
    return channels


@dataclass
class _Writer:
    """Writes one rank's program."""

    step: StepGraph
    plan: Plan
    codes: Sequence[StageCode]
    code: StageCode
    mesh: DeviceMesh
    device: int
    channels: Mapping[Transfer, Channel]
    bodies: dict[str, Body] = field(default_factory=dict)
    parts_of: dict[str, list[Part]] = field(default_factory=dict)
    out: list[Instruction] = field(default_factory=list)
    marks: list[tuple[int, str]] = field(default_factory=list)
    sending: list[list[str]] = field(default_factory=lambda: [[], []])

    def program(self) -> Program:
        index = self.code.stage.index
        self.phase(PREPARE, None, "prepare")
        generate = SCHEDULES.get(self.plan.schedule)
        if generate is None:
            raise PlanError(
                f"there is no schedule {self.plan.schedule!r}; there are {', '.join(SCHEDULES)}"
            )
        trains = any(code.items[BACKWARD] for code in self.codes)
        for action in generate(len(self.codes), self.plan.num_microbatches)[index]:
            if action.kind == Pass.BACKWARD and not trains:
                continue
            self.phase(PHASE_OF[action.kind], action.microbatch, str(action))
        self.phase(APPLY, None, "apply")
        self.finish_sends(all=True)
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
            self.plan.num_microbatches,
            marks,
        )

    # ------------------------------------------------------------------------------- actions
    def phase(self, phase: str, microbatch: int | None, label: str) -> None:
        self.marks.append((len(self.out), label))
        self.finish_sends()
        for part in self.parts(phase):
            if isinstance(part, Body):
                self.out.append(Run(part.name, microbatch))
            elif not isinstance(part, Exchange):
                self.out.append(in_microbatch(part, microbatch))
            elif part.sends:
                self.send(self.channels[part.transfer], microbatch)
            else:
                self.receive(self.channels[part.transfer], microbatch)

    def parts(self, phase: str) -> list[Part]:
        """What a phase does on this device: bodies, and the items between that need others."""
        if phase not in self.parts_of:
            found: list[Part] = []
            kernels: list[Kernel] = []

            def close() -> None:
                if kernels:
                    name = f"{phase}.{sum(isinstance(p, Body) for p in found)}"
                    self.bodies[name] = Body(name, tuple(kernels))
                    found.append(self.bodies[name])
                    kernels.clear()

            for item in self.code.items[phase]:
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
            self.parts_of[phase] = found
        return self.parts_of[phase]

    # ------------------------------------------------------------------------------ messages
    def finish_sends(self, all: bool = False) -> None:
        """Wait for the sends of the action before the last one; their receivers have run since."""
        for ticket in self.sending[0] + (self.sending[1] if all else []):
            self.out.append(Wait(ticket))
        self.sending = [self.sending[1], []]

    def tile(self, spec: ShardingSpec, shape: tuple[int, ...]) -> Region:
        coords = self.mesh.coords(self.device)
        starts = tile_starts(shape, spec, self.mesh.shape, coords)
        extents = local_shape(shape, spec, self.mesh.shape)
        return tuple((s, s + n) for s, n in zip(starts, extents, strict=True))

    def send(self, channel: Channel, microbatch: int | None) -> None:
        tile = self.tile(channel.task.source, channel.task.shape)
        itemsize = self._itemsize(channel)
        for k, piece in enumerate(channel.task.pieces):
            if piece.sender == self.device:
                ticket = _ticket(channel, k, microbatch, "s")
                self.out.append(
                    Send(
                        at(channel.source_name, microbatch), local(piece.region, tile),
                        piece.receivers[0], channel.number, ticket, piece.size * itemsize,
                    )
                )  # fmt: skip
                self.sending[1].append(ticket)

    def receive(self, channel: Channel, microbatch: int | None) -> None:
        tile = self.tile(channel.task.target, channel.task.shape)
        type = channel.transfer.value.type
        name = at(channel.target_name, microbatch)
        extents = tuple(b - a for a, b in tile)
        self.out.append(Allocate(name, type.with_shape(extents)))
        itemsize = self._itemsize(channel)
        mine = [(k, p) for k, p in enumerate(channel.task.pieces) if self.device in p.receivers]
        for k, piece in mine:
            at_chain = piece.receivers.index(self.device)
            peer = piece.sender if at_chain == 0 else piece.receivers[at_chain - 1]
            self.out.append(
                Recv(
                    name, local(piece.region, tile), peer, channel.number,
                    _ticket(channel, k, microbatch, "r"), piece.size * itemsize,
                )
            )  # fmt: skip
        for k, piece in mine:
            self.out.append(Wait(_ticket(channel, k, microbatch, "r")))
            after = piece.receivers.index(self.device) + 1
            if after < len(piece.receivers):
                # A broadcast is a chain: what has come in goes on to the next receiver.
                ticket = _ticket(channel, k, microbatch, "f")
                self.out.append(
                    Send(
                        name, local(piece.region, tile), piece.receivers[after], channel.number,
                        ticket, piece.size * itemsize,
                    )
                )  # fmt: skip
                self.sending[1].append(ticket)

    def _itemsize(self, channel: Channel) -> int:
        type = channel.transfer.value.type
        return type.nbytes // max(type.size, 1)

    # ----------------------------------------------------------------------- inputs, outputs
    def inputs(self) -> tuple[Placed, ...]:
        position = {v: k for k, v in enumerate(self.step.graph.inputs)}
        placed = []
        for v, name, spec in self.code.inputs:
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
        made = {k: self.code.outputs[i] for i, (k, _) in enumerate(self.code.stage.results)}
        placed = []
        for k, v in enumerate(self.step.graph.outputs):
            if k in made:
                _, name, spec = made[k]
                region = self.tile(spec, v.type.shape)
                type = v.type.with_shape(tuple(b - a for a, b in region))
                runs = self.runs(v, spec) if self.code.rows.split(v, spec) else ()
                placed.append(Placed(k, name, type, str(spec), region, runs))
            elif not v.type.shape:
                placed.append(Placed(k, f"result{k}", v.type, ".", ()))
            if not v.type.shape:
                self._share(k, v, made[k][1] if k in made else "")
        return tuple(placed)

    def _share(self, k: int, v: Var, source: str) -> None:
        """Bring a 0-d result from the first device that has it to the stages that do not make it.

        Args:
            source: its buffer on this device, "" where it has none.
        """
        owners = [c for c in self.codes if any(j == k for j, _ in c.stage.results)]
        assert owners, f"no stage makes output {k}"
        root = owners[0].plan.devices[0]
        others = tuple(d for c in self.codes if c not in owners for d in c.plan.devices)
        if others and (self.device == root or not source):
            target = "" if source else f"result{k}"
            group = (root, *others)
            self.out.append(Broadcast(source, target, (), root, group, v.type.nbytes))


def _ticket(channel: Channel, piece: int, microbatch: int | None, side: str) -> str:
    m = "" if microbatch is None else f".m{microbatch}"
    return f"c{channel.number}.{piece}{m}.{side}"
