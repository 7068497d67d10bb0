"""Cross-mesh resharding: which tile goes from whom to whom.

A value that lies on one mesh with one spec is needed on another mesh with another spec. Every
receiver's tile is cut at the borders of the senders' tiles; each piece has one sender among the
replicas that hold it, chosen so that the bytes a device sends stay even (Alpa, Sec. 6).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hpc_alpa.cluster import DeviceMesh
from hpc_alpa.errors import ShardingError
from hpc_alpa.sharding.spec import ShardingSpec, all_coords, local_shape, tile_starts

Region = tuple[tuple[int, int], ...]
# A region of the whole value, the devices that hold it, the devices that need it.
Shared = tuple[Region, tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Piece:
    """One message: a region of the whole value, from one device to one or several.

    Attributes:
        region: (start, stop) of each dim in the whole value.
        receivers: devices that need just this region; they pass it on in this order (`lower`).
    """

    region: Region
    sender: int
    receivers: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(b - a for a, b in self.region)


@dataclass(frozen=True)
class ReshardTask:
    """All pieces of one resharding, in the order in which they are sent."""

    shape: tuple[int, ...]
    source: ShardingSpec
    target: ShardingSpec
    strategy: str
    pieces: tuple[Piece, ...]


def tiles(
    shape: tuple[int, ...], spec: ShardingSpec, mesh: DeviceMesh
) -> dict[Region, tuple[int, ...]]:
    """The distinct tiles of a value on a mesh, and the devices that hold each."""
    extents = local_shape(shape, spec, mesh.shape)
    found: dict[Region, list[int]] = {}
    for device, coords in zip(mesh.devices, all_coords(mesh.shape), strict=True):
        starts = tile_starts(shape, spec, mesh.shape, coords)
        region = tuple((s, s + n) for s, n in zip(starts, extents, strict=True))
        found.setdefault(region, []).append(device)
    return {r: tuple(d) for r, d in found.items()}


def overlap(a: Region, b: Region) -> Region | None:
    """The common part of two regions; None when it is empty."""
    cut = tuple((max(x[0], y[0]), min(x[1], y[1])) for x, y in zip(a, b, strict=True))
    return None if any(lo >= hi for lo, hi in cut) else cut


def local(region: Region, tile: Region) -> Region:
    """A region of the whole value, counted from the start of a tile."""
    return tuple((a - t, b - t) for (a, b), (t, _) in zip(region, tile, strict=True))


def _send_recv(shared: Sequence[Shared]) -> list[Piece]:
    """One message for each receiver."""
    sent: dict[int, int] = {}
    return [
        _balanced(region, senders, (receiver,), sent)
        for region, senders, receivers in shared
        for receiver in receivers
    ]


def _broadcast(shared: Sequence[Shared]) -> list[Piece]:
    """One broadcast to all receivers of a region: each byte leaves its sender once."""
    sent: dict[int, int] = {}
    return [_balanced(region, senders, receivers, sent) for region, senders, receivers in shared]


def _balanced(
    region: Region, senders: tuple[int, ...], receivers: tuple[int, ...], sent: dict[int, int]
) -> Piece:
    sender = min(senders, key=lambda d: (sent.get(d, 0), d))
    piece = Piece(region, sender, receivers)
    sent[sender] = sent.get(sender, 0) + piece.size
    return piece


STRATEGIES: dict[str, Callable[[Sequence[Shared]], list[Piece]]] = {  # alphabetical
    "broadcast": _broadcast,
    "send_recv": _send_recv,
}


def reshard(
    shape: tuple[int, ...],
    source: ShardingSpec,
    source_mesh: DeviceMesh,
    target: ShardingSpec,
    target_mesh: DeviceMesh,
    strategy: str = "send_recv",
) -> ReshardTask:
    """Plan a resharding between two meshes that share no device.

    Raises:
        ShardingError: for a partial source or target, which would have to be reduced first.
    """
    if source.partial or target.partial:
        raise ShardingError(
            f"a partial value cannot cross meshes: {source} -> {target}; reduce it first"
        )
    have = tiles(shape, source, source_mesh)
    shared = [
        (part, senders, receivers)
        for region, receivers in tiles(shape, target, target_mesh).items()
        for tile, senders in have.items()
        if (part := overlap(region, tile)) is not None
    ]
    return ReshardTask(shape, source, target, strategy, tuple(STRATEGIES[strategy](shared)))
