"""Seconds and bytes of runs of layers on submeshes, by how values lie at their two ends.

A layer alone is a stage graph; messages and elimination over its interior (`plan.solve.ends`) give
a table over the spec of the value that enters it and of the value that leaves it. What flows back
lies as what flowed forward. Tables of runs of layers are min-plus products; equal layers have one
table.

Memory is a price: each layer has a few modes, cheapest at rising prices of what it holds, from the
fastest to the one of fewest bytes. All layers of a run are in the same mode.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hpc_alpa.cluster import DeviceMesh
from hpc_alpa.cost import Cost
from hpc_alpa.errors import HpcAlpaError
from hpc_alpa.ir.graph import Var
from hpc_alpa.ir.types import TensorType
from hpc_alpa.plan.choices import specs_of
from hpc_alpa.plan.intra_op import IntraOp
from hpc_alpa.plan.memory import Liveness
from hpc_alpa.plan.pricing import Pricing
from hpc_alpa.plan.restrictions import Restrictions
from hpc_alpa.plan.solve.ends import Interior
from hpc_alpa.plan.solve.problem import Problem, evaluate
from hpc_alpa.reshard import reshard
from hpc_alpa.sharding import ShardingSpec
from hpc_alpa.step import BACKWARD, FORWARD, StageGraph, StepGraph, Transfer

Table = NDArray[np.float64]
PRICES = (0.03, 0.3, 3.0)  # of all bytes of a layer, relative to its fastest seconds
MOST_CLASSES = 3  # of a value at a cut that are in use on a mesh


@dataclass(frozen=True, eq=False)
class Mode:
    """A way to run a layer, or a run of layers, on a mesh.

    Attributes:
        seconds: of one microbatch, [class entering, class leaving].
        held: bytes of a device with one microbatch in flight, when forward has ended.
        kept: bytes of each further microbatch in flight.
        passing: bytes beyond `held` that some point of the step needs for a while.
    """

    seconds: Table
    held: float
    kept: float
    passing: float

    def room(self, memory: float) -> int:
        """Microbatches in flight that fit in a device's bytes."""
        left = memory - self.held - self.passing
        return 1 + int(left / max(self.kept, 1.0)) if left >= 0 else 0

    def then(self, other: Mode) -> Mode:
        """A run and one behind it on the same mesh."""
        return Mode(
            min_plus(self.seconds, other.seconds),
            self.held + other.held,
            self.kept + other.kept,
            max(self.passing, other.passing),
        )


@dataclass(frozen=True, eq=False)
class _Interior:
    """A layer's choice program, whose rows are what it holds when forward has ended."""

    problem: Problem
    between: Interior
    once: Liveness

    @classmethod
    def of(cls, program: IntraOp, keep: Sequence[int]) -> Self:
        bare = program.problem()
        once, each = program.live_apart()
        rows = tuple(live.row(program.end_of_forward, math.inf) for live in (once, each))
        problem = replace(bare, rows=rows)
        return cls(problem, Interior.of(problem, keep), once)


@dataclass
class Tables:
    """Costs of the layers of one step, made when they are first asked for.

    Attributes:
        layers: the stage graph of each layer, when each is a stage.
        meshes: the submeshes that stages may lie on, each on representative devices.
        rules: mesh shape -> what the user's pins leave to choose from.
        num_devices: of all stages together.
        in_flight: of each mesh, how many microbatches a stage there holds, about.
        limited: whether memory is short, so that more than the fastest mode counts.
    """

    step: StepGraph
    layers: Sequence[StageGraph]
    meshes: Sequence[DeviceMesh]
    cost: Cost
    rules: Callable[[tuple[int, ...]], Restrictions]
    num_devices: int
    in_flight: Sequence[int] = ()
    limited: bool = False
    _made: dict[tuple[str, tuple[int, int], int], tuple[Mode, ...]] = field(default_factory=dict)
    _used: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)
    _sent: dict[tuple[object, ...], float] = field(default_factory=dict)

    @cached_property
    def keys(self) -> list[str]:
        """Equal layers have equal keys."""
        return [structure(s) for s in self.layers]

    @cached_property
    def pricings(self) -> list[Pricing]:
        return [Pricing.on(m, self.cost) for m in self.meshes]

    def separator(self, cut: int) -> Transfer | None:
        """The largest value that goes forward from layer `cut - 1` to layer `cut`, if any does.

        Other values that cross, and those that skip a layer, lie as is cheapest on each side.
        """
        if not 0 < cut < len(self.layers):
            return None
        crossing = [
            t
            for t in self.layers[cut].received
            if t.phase == FORWARD and t.source == cut - 1 and t.value.type.shape
        ]
        return max(crossing, key=lambda t: (t.value.type.nbytes, -t.value.id), default=None)

    def specs(self, cut: int, mesh: int) -> tuple[ShardingSpec, ...]:
        """The specs that the value at the cut before layer `cut` may have on a mesh."""
        separator = self.separator(cut)
        if separator is None:
            return (ShardingSpec(()),)
        return specs_of(separator.value.type, self.meshes[mesh].shape)

    # --------------------------------------------------------------------------------- layers
    def layer(self, layer: int, mesh: int) -> tuple[Mode, ...]:
        """The modes of one layer, over all specs at its ends."""
        key = (self.keys[layer], self._ends_at(layer), mesh)
        if key not in self._made:
            self._made[key] = self._layer(layer, mesh)
        return self._made[key]

    def _ends_at(self, layer: int) -> tuple[int, int]:
        """Which of the values that a layer receives and sends separate it from its neighbours."""
        stage = self.layers[layer]
        entering, leaving = self.separator(layer), self.separator(layer + 1)
        received = [t.value for t in stage.received]
        sent = [t.value for t in stage.sent]
        return (
            received.index(entering.value) if entering else -1,
            sent.index(leaving.value) if leaving else -1,
        )

    def _layer(self, layer: int, mesh: int) -> tuple[Mode, ...]:
        rules = self.rules(self.meshes[mesh].shape)
        program = IntraOp(self.step, self.layers[layer], self.pricings[mesh], rules)
        keep, program.ties = self._kept(layer)
        interior = _Interior.of(program, keep)
        further = self.in_flight[mesh] - 1 if self.in_flight else 0
        modes = [self._mode(layer, interior, 0.0, further)]
        fastest = modes[0]
        whole = max(1.0, fastest.held + further * fastest.kept)
        seconds = self.step.num_microbatches * float(fastest.seconds.min())
        for relative in PRICES if self.limited else ():
            mode = self._mode(layer, interior, relative * seconds / whole, further)
            modes.append(mode if mode.held + further * mode.kept < whole else modes[-1])
        return tuple(modes)

    def _kept(self, layer: int) -> tuple[list[int], list[tuple[int, int]]]:
        """Nodes of the values at the ends, and ties of their gradients to them."""
        stage, graph = self.layers[layer], self.layers[layer].graph
        entering, leaving = self.separator(layer), self.separator(layer + 1)
        at_in = {v: k for k, v in enumerate(graph.inputs)}
        first = len(graph.inputs) + len(graph.eqns)
        results = len(stage.results)
        at_out = {v: first + k for k, v in enumerate(graph.outputs) if k >= results}
        keep, ties = [], []
        if entering is not None:
            keep.append(at_in[entering.value])
            ties += _tie(stage.sent, entering.value.type, at_out, keep[-1])
        if leaving is not None:
            keep.append(at_out[leaving.value])
            ties += _tie(stage.received, leaving.value.type, at_in, keep[-1])
        return keep, ties

    def _mode(self, layer: int, interior: _Interior, per_byte: float, further: int) -> Mode:
        """The mode that is cheapest where bytes have a price, in seconds of a step."""
        found = interior.between.ends(np.array([per_byte, per_byte * further]))
        held, kept = evaluate(interior.problem, found.best).memory
        passing = float(interior.once.profile(found.best).max()) - held
        seconds = found.minimum - per_byte * (held + further * kept)
        entering, leaving = self.separator(layer), self.separator(layer + 1)
        shape = (
            seconds.shape[0] if entering is not None else 1,
            seconds.shape[-1] if leaving is not None else 1,
        )
        slots = self.step.num_microbatches
        made = seconds.reshape(shape) / slots
        return Mode(made, float(held), float(kept), max(0.0, passing))

    def least_seconds(self) -> float:
        """Seconds of a step that no plan is below, on any of the meshes, whatever its schedule.

        All devices together work at least as long as each layer does on the mesh where that is
        least, times the mesh's devices, for every microbatch.
        """
        total = 0.0
        for layer in range(len(self.layers)):
            found = [math.inf]
            for m, mesh in enumerate(self.meshes):
                with contextlib.suppress(HpcAlpaError):
                    fastest = self.layer(layer, m)[0]
                    found.append(mesh.num_devices * float(fastest.seconds.min()))
            total += min(found)
        return self.step.num_microbatches * total / self.num_devices

    # ----------------------------------------------------------------------------------- runs
    def in_use(self, cut: int, mesh: int) -> tuple[int, ...]:
        """The classes of the value at a cut that are cheapest in some mode on a mesh."""
        if (cut, mesh) not in self._used:
            found: set[int] = set()
            before = self.layer(cut - 1, mesh) if cut else ()
            behind = self.layer(cut, mesh) if cut < len(self.layers) else ()
            for k in range(max(len(before), len(behind))):
                total = np.zeros(len(self.specs(cut, mesh)))
                if before:
                    total = total + before[k].seconds.min(axis=0)
                if behind:
                    total = total + behind[k].seconds.min(axis=1)
                found.update(np.argsort(total, kind="stable")[:MOST_CLASSES].tolist())
            self._used[cut, mesh] = tuple(sorted(found))
        return self._used[cut, mesh]

    def runs(self, mesh: int) -> dict[tuple[int, int, int], Mode]:
        """(first layer, last layer, number of the mode) -> a run on a mesh, over classes in use."""
        found: dict[tuple[int, int, int], Mode] = {}
        layers = []
        for i in range(len(self.layers)):
            at = np.ix_(self.in_use(i, mesh), self.in_use(i + 1, mesh))
            layers.append([replace(m, seconds=m.seconds[at]) for m in self.layer(i, mesh)])
        for i, modes in enumerate(layers):
            for c, total in enumerate(modes):
                found[i, i, c] = total
                for j in range(i + 1, len(layers)):
                    total = total.then(layers[j][c])
                    found[i, j, c] = total
        return found

    def transfer(self, cut: int, source: int, target: int) -> Table:
        """Seconds to bring the value at a cut forward, and its gradient back, over classes in use.

        [class on the mesh that sends, class on the mesh that receives]
        """
        entering = self.separator(cut)
        senders, receivers = self.in_use(cut, source), self.in_use(cut, target)
        if entering is None:
            return np.zeros((len(senders), len(receivers)))
        m, n = self.meshes[source], self.meshes[target]
        moved = DeviceMesh(n.shape, tuple(d + m.num_devices for d in n.devices))
        if max(moved.devices) >= self.cost.cluster.num_devices:
            return np.full((len(senders), len(receivers)), np.inf)
        type, q, p = entering.value.type, self.specs(cut, source), self.specs(cut, target)

        def seconds(sender: int, receiver: int) -> float:
            key = (type, q[sender], p[receiver], source, target)
            if key not in self._sent:
                self._sent[key] = transfer_seconds(
                    type, q[sender], m, p[receiver], moved, self.cost
                )
            return self._sent[key]

        return 2.0 * np.array([[seconds(a, b) for b in receivers] for a in senders])


def transfer_seconds(
    type: TensorType,
    source: ShardingSpec,
    source_mesh: DeviceMesh,
    target: ShardingSpec,
    target_mesh: DeviceMesh,
    cost: Cost,
) -> float:
    """Seconds of the busiest device of a resharding by send and receive."""
    task = reshard(type.shape, source, source_mesh, target, target_mesh)
    itemsize = type.nbytes / max(type.size, 1)
    busy: dict[int, float] = {}
    for piece in task.pieces:
        for receiver in piece.receivers:
            seconds = cost.point_to_point(piece.size * itemsize, piece.sender, receiver)
            for device in (piece.sender, receiver):
                busy[device] = busy.get(device, 0.0) + seconds
    return max(busy.values(), default=0.0)


def min_plus(a: Table, b: Table) -> Table:
    """min over q of a[p, q] + b[q, r]."""
    return (a[:, :, None] + b[None, :, :]).min(axis=1)


def _tie(
    transfers: Sequence[Transfer], like: TensorType, nodes: dict[Var, int], to: int
) -> list[tuple[int, int]]:
    """Gradients of the same type lie as the value whose gradient they are."""
    return [
        (nodes[t.value], to)
        for t in transfers
        if t.phase == BACKWARD and t.value.type == like and t.value in nodes
    ]


def structure(stage: StageGraph) -> str:
    """A digest of a stage that does not depend on how its values are numbered."""
    number: dict[Var, int] = {}

    def name(v: Var) -> str:
        return f"%{number.setdefault(v, len(number))}:{v.type}"

    lines = [",".join(map(name, stage.graph.inputs))]
    for e in stage.graph.eqns:
        params = {k: v for k, v in e.params if k != "key"}
        args = ",".join(map(name, e.inputs))
        lines.append(f"{name(e.output)}={e.op.name}({args}){params}{e.phase}")
    lines.append(",".join(map(name, stage.graph.outputs)))
    lines.append(",".join(f"{name(t.value)}{t.phase}" for t in stage.received))
    lines.append(",".join(f"{name(t.value)}{t.phase}" for t in stage.sent))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
