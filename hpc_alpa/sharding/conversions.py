"""Conversions on one mesh: the cheapest path over specs under prices that the caller hands in.

Gathers remove, and slices append, the minor axis of a dim.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from hpc_alpa.errors import ShardingError
from hpc_alpa.sharding.spec import MAX, SUM, MeshShape, ShardingSpec, num_tiles

FREE = ("slice", "to_partial_sum", "to_partial_max")


@dataclass(frozen=True, slots=True)
class Move:
    """One step of a conversion.

    Attributes:
        kind: slice, all_gather, all_to_all, all_reduce, reduce_scatter, to_partial_sum or
            to_partial_max.
        axes: the mesh axes it communicates over.
        dim: the dim that it splits or gathers; for all_to_all the gathered one.
        to_dim: the dim that all_to_all splits.
        source, target: the specs before and after.
    """

    kind: str
    axes: tuple[int, ...]
    dim: int
    to_dim: int
    source: ShardingSpec
    target: ShardingSpec

    def nbytes(self, nbytes: float, mesh: MeshShape) -> float:
        """Bytes of the whole tensor of the collective (the cost model's argument)."""
        split = num_tiles(self.source.split_axes, mesh)
        n = num_tiles(self.axes, mesh)
        gathered = n if self.kind in ("all_gather", "all_to_all") else 1
        return nbytes / split * gathered

    def __str__(self) -> str:
        return f"{self.kind}({self.source}->{self.target})"


Price = Callable[[Move, float], float]
# For every spec that can be reached: the cost of the cheapest path, and its last move.
Distances = Mapping[ShardingSpec, tuple[float, Move | None]]


@lru_cache(maxsize=65536)
def moves(spec: ShardingSpec, shape: tuple[int, ...], mesh: MeshShape) -> tuple[Move, ...]:
    """Every one-step conversion from a spec."""
    found: list[Move] = []

    def add(kind: str, axes: tuple[int, ...], dim: int, to_dim: int, target: ShardingSpec) -> None:
        found.append(Move(kind, axes, dim, to_dim, spec, target))

    def divides(dim: int, axis: int) -> bool:
        return (shape[dim] // num_tiles(spec.dims[dim], mesh)) % mesh[axis] == 0

    ndim = len(shape)
    for d in range(ndim):
        if not spec.dims[d]:
            continue
        axis = spec.dims[d][-1]
        gathered = spec.with_dim(d, spec.dims[d][:-1])
        add("all_gather", (axis,), d, d, gathered)
        for e in range(ndim):
            if e != d and divides(e, axis):
                add("all_to_all", (axis,), d, e, gathered.with_dim(e, (*spec.dims[e], axis)))
    for a in spec.free_axes(mesh):
        if mesh[a] == 1:
            continue
        for d in range(ndim):
            if divides(d, a):
                add("slice", (a,), d, d, spec.with_dim(d, (*spec.dims[d], a)))
        for kind, name in ((SUM, "to_partial_sum"), (MAX, "to_partial_max")):
            if spec.kind in ("", kind):
                add(name, (a,), 0, 0, spec.with_partial((*spec.partial, a), kind))
    for a in spec.partial:
        rest = tuple(x for x in spec.partial if x != a)
        summed = spec.with_partial(rest, spec.kind)
        add("all_reduce", (a,), 0, 0, summed)
        for d in range(ndim):
            if divides(d, a):
                add("reduce_scatter", (a,), d, d, summed.with_dim(d, (*spec.dims[d], a)))
    if len(spec.partial) > 1:
        add("all_reduce", spec.partial, 0, 0, spec.resolved())
    return tuple(found)


@dataclass(frozen=True)
class Conversions:
    """Cheapest conversions of values of one type on one mesh.

    Attributes:
        price: (move, bytes of the collective's whole tensor) -> cost; moves in `FREE` cost nothing
            unless it says otherwise.
    """

    shape: tuple[int, ...]
    itemsize: int
    mesh: MeshShape
    price: Price

    def distances(self, source: ShardingSpec) -> Distances:
        """The cheapest paths to every spec (Dijkstra); of two of one cost the shorter one."""
        nbytes = math.prod(self.shape) * self.itemsize
        best: dict[ShardingSpec, tuple[float, Move | None]] = {}
        queue: list[tuple[float, int, int, ShardingSpec, Move | None]] = [(0.0, 0, 0, source, None)]
        ticket = 0
        while queue:
            cost, steps, _, spec, last = heapq.heappop(queue)
            if spec in best:
                continue
            best[spec] = (cost, last)
            for m in moves(spec, self.shape, self.mesh):
                if m.target not in best:
                    ticket += 1
                    step = self.price(m, m.nbytes(nbytes, self.mesh))
                    heapq.heappush(queue, (cost + step, steps + 1, ticket, m.target, m))
        return best

    def path(self, source: ShardingSpec, target: ShardingSpec) -> tuple[Move, ...]:
        """The moves of the cheapest conversion; empty when nothing is to do."""
        found = self.distances(source)
        if target not in found:
            raise ShardingError(f"there is no conversion from {source} to {target} on {self.mesh}")
        return trace_back(found, target)


def trace_back(distances: Distances, target: ShardingSpec) -> tuple[Move, ...]:
    """The moves of the cheapest path to a spec that can be reached."""
    found: list[Move] = []
    while (move := distances[target][1]) is not None:
        found.append(move)
        target = move.source
    return tuple(reversed(found))
