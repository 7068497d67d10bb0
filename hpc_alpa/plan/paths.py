"""Conversions of one stage: their prices while planning, their moves in the plan.

The cheapest path depends on the cost model; the plan keeps the paths that it uses, so that what
runs is what was priced, whatever costs are at hand when it runs.
"""

from __future__ import annotations

from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from hpc_alpa.cluster import DeviceMesh
from hpc_alpa.cost import Cost
from hpc_alpa.errors import PlanError
from hpc_alpa.ir.types import TensorType, numpy_dtype
from hpc_alpa.sharding import Conversions, Move, ShardingSpec, moves
from hpc_alpa.sharding.conversions import FREE, Distances, Price, trace_back

BUCKET_BYTES = 64 * 2**20  # of one bucket; larger ones gain nothing and hold memory
FUSED = ("all_gather", "all_reduce", "reduce_scatter")  # what shares buckets, once a step
FEWER = 1e-7  # seconds: of two plans of one price the one with fewer collectives


def price_on(mesh: DeviceMesh, cost: Cost) -> Price:
    """Seconds of a move on a mesh: of its slowest group."""
    groups: dict[tuple[int, ...], tuple[tuple[int, ...], ...]] = {}

    def price(move: Move, nbytes: float) -> float:
        if move.kind in FREE:
            # Of two paths of one price the shorter one, too.
            return 1e-3 * FEWER
        if move.axes not in groups:
            groups[move.axes] = mesh.groups(move.axes)
        return FEWER + seconds(move.kind, nbytes, groups[move.axes])

    @cache
    def seconds(kind: str, nbytes: float, groups: tuple[tuple[int, ...], ...]) -> float:
        return max(cost.collective(kind, nbytes, g) for g in groups)

    return price


def key(type: TensorType, source: ShardingSpec, target: ShardingSpec) -> str:
    """`float32[4,8] RR+P0->S0R`."""
    return f"{type} {source}->{target}"


def write(path: tuple[Move, ...]) -> tuple[str, ...]:
    """A path as a plan keeps it: the spec after each move."""
    return tuple(str(m.target) for m in path)


class Paths:
    """Cheapest conversions on one mesh under one price, remembered."""

    def __init__(self, mesh: tuple[int, ...], price: Price) -> None:
        self.mesh, self.price = mesh, price
        self._distances: dict[tuple[TensorType, ShardingSpec], Distances] = {}
        self._matrices: dict[object, NDArray[np.float64]] = {}

    def _of(self, type: TensorType, source: ShardingSpec) -> Distances:
        at = (type, source)
        if at not in self._distances:
            itemsize = numpy_dtype(type.dtype).itemsize
            table = Conversions(type.shape, itemsize, self.mesh, self.price)
            self._distances[at] = table.distances(source)
        return self._distances[at]

    def cost(self, type: TensorType, source: ShardingSpec, target: ShardingSpec) -> float:
        """Seconds; infinite where the target does not exist on this mesh."""
        found = self._of(type, source).get(target)
        return float("inf") if found is None else found[0]

    def matrix(
        self,
        type: TensorType,
        sources: tuple[ShardingSpec, ...],
        targets: tuple[ShardingSpec, ...],
        bucket: int = 0,
    ) -> NDArray[np.float64]:
        """Seconds from each source to each target.

        Args:
            bucket: bytes of all values that are converted with this one in one message, whose
                latency they share; 0 where it is converted alone.
        """
        at = (type, sources, targets, bucket)
        if at not in self._matrices:
            cost = partial(self._in_bucket, bucket) if bucket else self.cost
            rows = [[cost(type, p, t) for t in targets] for p in sources]
            self._matrices[at] = np.array(rows)
        return self._matrices[at]

    def _in_bucket(
        self, bucket: int, type: TensorType, source: ShardingSpec, target: ShardingSpec
    ) -> float:
        """Seconds of the cheapest path, each move its share of a bucket of so many bytes."""
        found = self._of(type, source)
        if target not in found:
            return float("inf")
        share = min(1.0, type.nbytes / bucket)
        total = 0.0
        for move in trace_back(found, target):
            part = share if move.kind in FUSED else 1.0
            total += part * self.price(move, move.nbytes(type.nbytes / part, self.mesh))
        return total

    def path(
        self, type: TensorType, source: ShardingSpec, target: ShardingSpec
    ) -> tuple[Move, ...]:
        """The moves of the cheapest conversion; empty when nothing is to do.

        Raises:
            PlanError: the target does not exist on this mesh.
        """
        found = self._of(type, source)
        if target not in found:
            raise PlanError(f"there is no conversion {key(type, source, target)} on {self.mesh}")
        return trace_back(found, target)


def read(
    text: tuple[str, ...], type: TensorType, source: ShardingSpec, mesh: tuple[int, ...]
) -> tuple[Move, ...]:
    """The moves of a path that a plan keeps.

    Raises:
        PlanError: a step that is no move of this type on this mesh.
    """
    found = []
    for step in text:
        target = ShardingSpec.parse(step)
        move = next((m for m in moves(source, type.shape, mesh) if m.target == target), None)
        if move is None:
            raise PlanError(f"the plan's step {source}->{target} of {type} is not a conversion")
        found.append(move)
        source = target
    return tuple(found)
