"""[Lowering] -> [Classes]: ranks that do the same at the same times.

All devices of a stage run the same items on tiles of equal size. What can tell two of them apart is
whom they communicate with: the price of each of their collectives and messages, and what their
partners do. So classes are found without any program, by colour refinement (as the coarsest stable
partition: Paige and Tarjan, "Three partition refinement algorithms", 1987): ranks start with the
colour of their work, and get new ones from those of their partners until no class comes apart.

The times of a stable class are equal, not only close: each is the same sums and maxima of the same
numbers. Pieces of one transfer start together, so their order does not count; but in a chain of
sends each link starts when those before it have ended, so there a partner is a colour and the
position of the piece among its own. The broadcasts of 0-d results, which have one root in a stage,
come after all else: they are left to the caller.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

from hpc_alpa.lower.channels import Channel
from hpc_alpa.lower.instantiate import nbytes_of
from hpc_alpa.lower.lower import Lowering
from hpc_alpa.lower.messages import piece_of
from hpc_alpa.lower.program import Broadcast, Recv, Region, Send
from hpc_alpa.lower.spmd import Convert
from hpc_alpa.lower.submesh import Submesh
from hpc_alpa.reshard.task import Piece
from hpc_alpa.sharding import index_along
from hpc_alpa.sharding.conversions import FREE
from hpc_alpa.simulate.steps import Collective, Prices

Group = tuple[int, ...]
Hop = tuple[int, int, int]  # channel, piece, receiver
Sort = tuple[str, int, tuple[int, ...], float]  # send or recv, channel, extents, seconds


@dataclass(frozen=True)
class Classes:
    """A partition of the ranks.

    Attributes:
        of: rank -> number of its class.
        members: the ranks of each class, ascending; the first stands for them.
        chained: each hop of a piece that is sent on -> which of its receiver's pieces it is.
    """

    of: Mapping[int, int]
    members: tuple[tuple[int, ...], ...]
    chained: Mapping[Hop, int]
    prices: Prices

    def alike(self, channel: Channel, piece: Piece) -> Hashable:
        """Pieces of a transfer with one receiver that start and end together on a rank."""
        ends = piece.sender, piece.receivers[0]
        seconds = self.prices.message(channel.nbytes(piece), *ends)
        return tuple(self.of[r] for r in ends), _extents(piece.region), seconds

    def message(self, rank: int, index: int, side: Send | Recv, seconds: float) -> Hashable:
        """All messages between two classes that start and end together."""
        ends = (rank, side.peer) if isinstance(side, Send) else (side.peer, rank)
        piece, microbatch = piece_of(side.ticket)
        which = self.chained.get((side.channel, piece, ends[1]))
        extents = None if which is not None else _extents(side.region)
        classes = tuple(self.of[r] for r in ends)
        return classes, side.channel, microbatch, which, seconds, extents

    def meeting(self, collective: Collective) -> tuple[Hashable, int] | None:
        """The classes that meet in a collective."""
        if isinstance(collective, Broadcast):
            return None
        there = frozenset(self.of[r] for r in collective.group)
        return there, len(there)


def classes(lowering: Lowering, prices: Prices) -> Classes:
    """The coarsest partition whose classes behave as one rank."""
    ranks = {r: _Rank() for r in lowering.ranks}
    for submesh in lowering.submeshes:
        _note_work(ranks, submesh, prices)
    chained: dict[Hop, int] = {}
    for channel in lowering.traffic.channels.values():
        _note_messages(ranks, channel, prices, chained)
    colours = _refined(ranks)
    members: dict[int, list[int]] = {}
    for r in ranks:
        members.setdefault(colours[r], []).append(r)
    return Classes(colours, tuple(map(tuple, members.values())), chained, prices)


@dataclass
class _Rank:
    """What may tell a rank apart.

    Attributes:
        fixed: what it does itself, with prices.
        partners: sets of ranks that it exchanges equal pieces with, by what they are.
        links: the partners of its pieces that are sent on, in order.
        groups: that it meets.
    """

    fixed: list[Hashable] = field(default_factory=list)
    partners: dict[Sort, list[int]] = field(default_factory=dict)
    links: list[int] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)


def _note_work(ranks: Mapping[int, _Rank], submesh: Submesh, prices: Prices) -> None:
    """Note the work of a submesh."""
    mesh = submesh.mesh
    meetings: dict[tuple[int, ...], set[tuple[str, int]]] = {}  # axes: kind, bytes
    placed: set[tuple[int, ...]] = set()  # axes along which the first device alone holds a value
    for item in submesh.items:
        if isinstance(item, Convert):
            move = item.moves[0]
            if move.kind not in FREE:
                meetings.setdefault(move.axes, set()).add((move.kind, nbytes_of(item, mesh)))
            elif move.kind == "to_partial_sum":
                placed.add(move.axes)
    for device in mesh.devices:
        coords = mesh.coords(device)
        first = tuple(index_along(coords, axes, mesh.shape) == 0 for axes in sorted(placed))
        ranks[device].fixed.append((submesh.index, first))
    for axes, calls in sorted(meetings.items()):
        for group in mesh.groups(axes):
            seconds = tuple(
                prices.of(prices.cost.collective, kind, nbytes, group)
                for kind, nbytes in sorted(calls)
            )
            for device in group:
                ranks[device].fixed.append(seconds)
                ranks[device].groups.append(group)


def _note_messages(
    ranks: Mapping[int, _Rank], channel: Channel, prices: Prices, chained: dict[Hop, int]
) -> None:
    """Note the pieces of one transfer: their sizes, prices and partners."""
    sent: dict[int, int] = {}
    got: dict[int, int] = {}
    for k, piece in enumerate(channel.task.pieces):
        nbytes = channel.nbytes(piece)
        extents = _extents(piece.region)
        chain = (piece.sender, *piece.receivers)
        for hop, (a, b) in enumerate(zip(chain, chain[1:], strict=False)):
            seconds = prices.message(nbytes, a, b)
            what = channel.number, extents, seconds
            if len(piece.receivers) == 1:
                for rank, kind, partner in ((a, "send", b), (b, "recv", a)):
                    ranks[rank].partners.setdefault((kind, *what), []).append(partner)
                continue
            send = sent[a] = sent.get(a, -1) + 1
            recv = chained[channel.number, k, b] = got[b] = got.get(b, -1) + 1
            ends = hop == 0, hop == len(chain) - 2
            ranks[a].fixed.append(("send", *what, *ends, recv))
            ranks[b].fixed.append(("recv", *what, *ends, send))
            ranks[a].links.append(b)
            ranks[b].links.append(a)


def _extents(region: Region) -> tuple[int, ...]:
    return tuple(b - a for a, b in region)


def _refined(ranks: Mapping[int, _Rank]) -> dict[int, int]:
    """Colours that are stable, numbered as ranks first show them."""

    def first(x: _Rank) -> Hashable:
        return tuple(x.fixed), tuple((what, len(x.partners[what])) for what in sorted(x.partners))

    colours = _numbered({r: first(x) for r, x in ranks.items()})
    groups = {g for x in ranks.values() for g in x.groups}
    while True:
        met = {g: frozenset(colours[r] for r in g) for g in groups}
        found = _numbered(
            {
                r: (
                    colours[r],
                    tuple(
                        frozenset(colours[p] for p in x.partners[what])
                        for what in sorted(x.partners)
                    ),
                    tuple(colours[p] for p in x.links),
                    tuple(met[g] for g in x.groups),
                )
                for r, x in ranks.items()
            }
        )
        if max(found.values(), default=0) == max(colours.values(), default=0):
            return found
        colours = found


def _numbered(keys: Mapping[int, Hashable]) -> dict[int, int]:
    numbers: dict[Hashable, int] = {}
    return {r: numbers.setdefault(key, len(numbers)) for r, key in keys.items()}
