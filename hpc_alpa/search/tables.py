"""Seconds of runs of layers on submeshes, by how values lie at their two ends.

A layer alone is a stage graph; eliminating its interior gives a table over the spec of the value
that enters it and of the value that leaves it. What flows back lies as what flowed forward. Tables
of runs of layers are min-plus products; equal layers have one table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hpc_alpa.cluster import DeviceMesh
from hpc_alpa.cost import Cost
from hpc_alpa.ir.graph import Var
from hpc_alpa.ir.types import TensorType
from hpc_alpa.plan.choices import specs_of
from hpc_alpa.plan.intra_op import IntraOp
from hpc_alpa.plan.pricing import Pricing
from hpc_alpa.plan.restrictions import Restrictions
from hpc_alpa.plan.solve.eliminate import table
from hpc_alpa.reshard import reshard
from hpc_alpa.sharding import ShardingSpec
from hpc_alpa.step import BACKWARD, FORWARD, StageGraph, StepGraph, Transfer

Table = NDArray[np.float64]


@dataclass
class Tables:
    """Costs of the layers of one step, made when they are first asked for.

    Attributes:
        layers: the stage graph of each layer, when each is a stage.
        meshes: the submeshes that stages may lie on, each on representative devices.
        rules: mesh shape -> what the user's pins leave to choose from.
    """

    step: StepGraph
    layers: Sequence[StageGraph]
    meshes: Sequence[DeviceMesh]
    cost: Cost
    rules: Callable[[tuple[int, ...]], Restrictions]
    _made: dict[tuple[str, tuple[int, int], int], Table] = field(default_factory=dict)

    @cached_property
    def keys(self) -> list[str]:
        """Equal layers have equal keys."""
        return [_structure(s) for s in self.layers]

    @cached_property
    def pricings(self) -> list[Pricing]:
        return [Pricing.on(m, self.cost) for m in self.meshes]

    def ends(self, layer: int) -> tuple[Transfer | None, Transfer | None]:
        """What separates a layer from the one before it and from the one after it."""
        return self.separator(layer), self.separator(layer + 1)

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

    def classes(self, cut: int, mesh: int) -> tuple[ShardingSpec, ...]:
        """The specs that the value at the cut before layer `cut` may have on a mesh."""
        separator = self.separator(cut)
        if separator is None:
            return (ShardingSpec(()),)
        return specs_of(separator.value.type, self.meshes[mesh].shape)

    def layer(self, layer: int, mesh: int) -> Table:
        """Seconds of one layer in a step, [class entering, class leaving]."""
        key = (self.keys[layer], self._ends_at(layer), mesh)
        if key not in self._made:
            self._made[key] = self._layer(layer, mesh)
        return self._made[key]

    def _ends_at(self, layer: int) -> tuple[int, int]:
        """Which of the values that a layer receives and sends separate it from its neighbours."""
        stage = self.layers[layer]
        entering, leaving = self.ends(layer)
        received = [t.value for t in stage.received]
        sent = [t.value for t in stage.sent]
        return (
            received.index(entering.value) if entering else -1,
            sent.index(leaving.value) if leaving else -1,
        )

    def _layer(self, layer: int, mesh: int) -> Table:
        stage = self.layers[layer]
        program = IntraOp(
            self.step, stage, self.pricings[mesh], self.rules(self.meshes[mesh].shape)
        )
        entering, leaving = self.ends(layer)
        keep, ties = [], []
        at_in = {v: k for k, v in enumerate(stage.graph.inputs)}
        first_out = len(stage.graph.inputs) + len(stage.graph.eqns)
        at_out = {
            v: first_out + k for k, v in enumerate(stage.graph.outputs) if k >= len(stage.results)
        }
        if entering is not None:
            keep.append(at_in[entering.value])
            ties += _tie(stage.sent, entering.value.type, at_out, at_in[entering.value])
        if leaving is not None:
            keep.append(at_out[leaving.value])
            ties += _tie(stage.received, leaving.value.type, at_in, at_out[leaving.value])
        program.ties = ties
        found = table(program.problem(), keep).minimum
        return found.reshape(
            found.shape[0] if entering is not None else 1,
            found.shape[-1] if leaving is not None else 1,
        )

    def runs(self, mesh: int) -> dict[tuple[int, int], Table]:
        """Seconds per microbatch of layers i..j on a mesh, [class entering, class leaving]."""
        slots = self.step.num_microbatches
        found: dict[tuple[int, int], Table] = {}
        for i in range(len(self.layers)):
            total = self.layer(i, mesh) / slots
            found[i, i] = total
            for j in range(i + 1, len(self.layers)):
                total = min_plus(total, self.layer(j, mesh) / slots)
                found[i, j] = total
        return found

    def transfer(self, cut: int, source: int, target: int) -> Table:
        """Seconds to bring the value at a cut forward, and its gradient back, [q, p]."""
        entering = self.separator(cut)
        senders, receivers = self.classes(cut, source), self.classes(cut, target)
        if entering is None:
            return np.zeros((len(senders), len(receivers)))
        m, n = self.meshes[source], self.meshes[target]
        moved = DeviceMesh(n.shape, tuple(d + m.num_devices for d in n.devices))
        if max(moved.devices) >= self.cost.cluster.num_devices:
            return np.full((len(senders), len(receivers)), np.inf)
        rows = [
            [transfer_seconds(entering.value.type, q, m, p, moved, self.cost) for p in receivers]
            for q in senders
        ]
        return 2.0 * np.array(rows)


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


def _structure(stage: StageGraph) -> str:
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
