"""[Lowering] -> [Placement]: which device each rank of a plan gets, so that heavy groups are close.

A plan numbers its devices stage by stage. On a cluster whose hosts, switches or islands are dear to
cross, another order of the same devices can cost less. What an order costs is the communication of
a step, as the cost model prices it: seconds of every collective and message, for each of the ranks
that take part, over the number of ranks.

exact        where few assignments of ranks to hosts differ: branch and bound over all of them
else         the orders of the plan's axes (stages, and the axes of their meshes), then swaps of two
             ranks while they gain (Kernighan and Lin, "An efficient heuristic procedure for
             partitioning graphs", 1970, with single swaps)

The order as it is, is among those that are tried; and a plan is replaced only where the simulator
finds the new order faster too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations
from typing import Any

import numpy as np

from hpc_alpa.cost import Cost
from hpc_alpa.lower import Lowering, lowering
from hpc_alpa.lower.instantiate import nbytes_of
from hpc_alpa.lower.spmd import Convert
from hpc_alpa.plan.plan import Plan
from hpc_alpa.search.timing import simulated
from hpc_alpa.sharding.conversions import FREE
from hpc_alpa.step import LOOP, StepGraph

MOST_ASSIGNMENTS = 50_000  # of ranks to hosts, that are gone through
MOST_SWAPS = 20_000  # that are tried
GAIN = 1e-9  # relative; less is rounding
POINT_TO_POINT = "point_to_point"

Calls = tuple[tuple[str, int, int], ...]  # kind, bytes, how often in a step
Where = dict[int, int]  # rank, as the plan numbers it -> device


@dataclass(frozen=True)
class Flow:
    """All that a group of ranks communicates in a step; two ranks may be the ends of messages."""

    ranks: tuple[int, ...]
    calls: Calls


@dataclass(frozen=True)
class Placement:
    """An order of a plan's devices.

    Attributes:
        devices: (device that the plan names, device that takes its place) of each.
        before, after: seconds of a step that a rank communicates, on the mean, in the plan's order
            and in this one.
        exact: whether no order costs less.
        step_before, step_after: seconds of a step by the simulator; None where nothing has moved.
    """

    devices: tuple[tuple[int, int], ...]
    before: float
    after: float
    exact: bool
    step_before: float | None = None
    step_after: float | None = None

    @property
    def num_moved(self) -> int:
        return sum(a != b for a, b in self.devices)

    @property
    def gain(self) -> float:
        """Share of a step's seconds that the order saves."""
        if self.step_before is None or self.step_after is None:
            return 0.0
        return 1.0 - self.step_after / self.step_before

    @property
    def facts(self) -> dict[str, Any]:
        """As a plan keeps it, and `report.placement` shows it."""
        return {
            "moved": self.num_moved,
            "ranks": len(self.devices),
            "before_seconds": self.before,
            "after_seconds": self.after,
            "exact": self.exact,
            "gain": self.gain,
        }


def place_plan(step: StepGraph, plan: Plan, cost: Cost) -> tuple[Plan, Placement]:
    """A plan on the devices that suit it, and what that gains; the same plan where nothing does."""
    made = lowering(step, plan)
    found = place(flows(made), cost, _axis_orders(plan))
    if not found.num_moved:
        return plan, found
    moved = placed(plan, found)
    again = lowering(step, moved)
    where = {d: d for d in again.ranks}
    # Which of the replicas sends depends on the order, so the flows are not only renumbered.
    after = _Prices(cost, len(where)).of(flows(again), where)
    before, now = (simulated(step, p, cost).step_seconds for p in (plan, moved))
    if after >= found.before or now >= before:
        stay = tuple((a, a) for a, _ in found.devices)
        return plan, Placement(stay, found.before, found.before, False)
    return moved, replace(found, after=after, step_before=before, step_after=now)


def placed(plan: Plan, placement: Placement) -> Plan:
    """The plan on the devices of a placement."""
    where = dict(placement.devices)
    stages = (replace(s, devices=tuple(where[d] for d in s.devices)) for s in plan.stages)
    return replace(plan, stages=tuple(stages))


# ---------------------------------------------------------------------------------------- flows
def flows(made: Lowering) -> tuple[Flow, ...]:
    """What every group of a plan's ranks communicates in a step."""
    slots = made.step.num_microbatches
    found: list[Flow] = []
    for part in made.submeshes:
        calls: dict[tuple[int, ...], Counter[tuple[str, int]]] = {}
        for lists, times in ((part.once.values(), 1), (part.looped.values(), slots)):
            for item in (i for items in lists for i in items):
                if isinstance(item, Convert) and item.moves[0].kind not in FREE:
                    move = item.moves[0]
                    count = calls.setdefault(move.axes, Counter())
                    count[move.kind, nbytes_of(item, part.mesh)] += times
        for axes, count in calls.items():
            found += [Flow(g, _calls(count)) for g in part.mesh.groups(axes) if len(g) > 1]
    messages: dict[tuple[int, int], Counter[tuple[str, int]]] = {}
    for channel in made.traffic.channels.values():
        type = channel.transfer.value.type
        itemsize = type.nbytes // max(type.size, 1)
        for piece in channel.task.pieces:
            chain = (piece.sender, *piece.receivers)
            for ends in zip(chain, chain[1:], strict=False):
                count = messages.setdefault(ends, Counter())
                times = slots if channel.transfer.phase in LOOP else 1
                count[POINT_TO_POINT, piece.size * itemsize] += times
    found += [Flow(ends, _calls(count)) for ends, count in messages.items()]
    return (*found, *(Flow(group, (("broadcast", n, 1),)) for group, n in made.shared))


def _calls(count: Counter[tuple[str, int]]) -> Calls:
    return tuple((kind, nbytes, times) for (kind, nbytes), times in sorted(count.items()))


class _Prices:
    """Mean seconds of a rank; asked once for each slowest link and number of hosts of a flow."""

    def __init__(self, cost: Cost, num_ranks: int) -> None:
        self.cost, self.num_ranks = cost, num_ranks
        self.known: dict[object, float] = {}

    def of(self, found: Iterable[Flow], where: Mapping[int, int]) -> float:
        """Of several flows."""
        return sum(self.one(f, where) for f in found)

    def one(self, flow: Flow, where: Mapping[int, int]) -> float:
        """Of one flow."""
        devices = tuple(where[r] for r in flow.ranks)
        cluster = self.cost.cluster
        hosts = len({cluster.host_of(d) for d in devices})
        key = (flow.calls, len(devices), hosts, cluster.link(devices))
        if key not in self.known:
            seconds = sum(n * self.call(kind, b, devices) for kind, b, n in flow.calls)
            self.known[key] = seconds * len(devices) / self.num_ranks
        return self.known[key]

    def call(self, kind: str, nbytes: int, devices: tuple[int, ...]) -> float:
        if kind == POINT_TO_POINT:
            return self.cost.point_to_point(nbytes, *devices)
        return self.cost.collective(kind, nbytes, devices)


# --------------------------------------------------------------------------------------- search
def place(found: Sequence[Flow], cost: Cost, starts: Iterable[Where]) -> Placement:
    """The best order of the devices that some flows' ranks name.

    Args:
        starts: orders to begin with, of all ranks; the first is the order as it is.
    """
    starts = list(starts)
    ranks = sorted(starts[0])
    prices = _Prices(cost, len(ranks))
    before = prices.of(found, starts[0])
    best, least = dict(starts[0]), before
    if before > 0:
        for start in starts[1:]:
            seconds = prices.of(found, start)
            if seconds < least * (1 - GAIN):
                best, least = dict(start), seconds
    room = Counter(cost.cluster.host_of(d) for d in ranks)
    exact = _num_assignments(room) <= MOST_ASSIGNMENTS
    if exact:
        other = _Assignments(found, prices, ranks, room, least * (1 - GAIN)).best()
        if other is not None:
            best, least = other, prices.of(found, other)
    else:
        best, least = _swapped(found, prices, best, least)
    return Placement(tuple((r, best[r]) for r in ranks), before, least, exact)


def _num_assignments(room: Mapping[int, int]) -> int:
    """Of ranks to hosts, were no two hosts alike."""
    count = math.factorial(sum(room.values()))
    for n in room.values():
        count //= math.factorial(n)
    return count


class _Assignments:
    """Branch and bound over the hosts of ranks, taken in turn.

    Hosts that are empty and alike are tried once. A flow is paid when its last rank has a host.
    """

    def __init__(
        self,
        found: Sequence[Flow],
        prices: _Prices,
        ranks: Sequence[int],
        room: Mapping[int, int],
        limit: float,
    ) -> None:
        self.prices, self.ranks, self.limit = prices, ranks, limit
        cluster = prices.cost.cluster
        self.free: dict[int, list[int]] = {h: [] for h in sorted(room)}
        for d in sorted(ranks, reverse=True):
            self.free[cluster.host_of(d)].append(d)
        run = cluster.levels[0].hosts if cluster.levels else cluster.num_hosts
        self.kind = {h: (n, h // run) for h, n in room.items()}
        self.room = dict(room)
        turn = {r: k for k, r in enumerate(ranks)}
        self.paid: list[list[Flow]] = [[] for _ in ranks]
        for f in found:
            self.paid[max(turn[r] for r in f.ranks)].append(f)
        self.where: Where = {}
        self.found: Where | None = None

    def best(self) -> Where | None:
        """The cheapest order below the limit, None where there is none."""
        self.extend(0, 0.0)
        return self.found

    def extend(self, turn: int, seconds: float) -> None:
        if seconds >= self.limit:
            return
        if turn == len(self.ranks):
            self.found, self.limit = dict(self.where), seconds * (1 - GAIN)
            return
        tried: set[tuple[int, int]] = set()
        for host, devices in self.free.items():
            if not devices:
                continue
            if len(devices) == self.room[host]:
                if self.kind[host] in tried:
                    continue
                tried.add(self.kind[host])
            device = devices.pop()
            self.where[self.ranks[turn]] = device
            self.extend(turn + 1, seconds + self.prices.of(self.paid[turn], self.where))
            devices.append(device)


def _swapped(
    found: Sequence[Flow], prices: _Prices, where: Where, seconds: float
) -> tuple[Where, float]:
    """Swap two ranks of different hosts while that gains."""
    cluster = prices.cost.cluster
    mine: dict[int, list[int]] = {r: [] for r in where}
    for k, f in enumerate(found):
        for r in f.ranks:
            mine[r].append(k)
    tries = 0
    gained = True
    while gained:
        gained = False
        for a, b in combinations(sorted(where), 2):
            if cluster.host_of(where[a]) == cluster.host_of(where[b]):
                continue
            tries += 1
            if tries > MOST_SWAPS:
                return where, prices.of(found, where)
            both = [found[k] for k in {*mine[a], *mine[b]}]
            now = prices.of(both, where)
            where[a], where[b] = where[b], where[a]
            if prices.of(both, where) < now - GAIN * seconds:
                gained = True
            else:
                where[a], where[b] = where[b], where[a]
    return where, prices.of(found, where)


def _axis_orders(plan: Plan) -> Iterator[Where]:
    """The plan's order; then every order of its axes: stages, where all have one shape, and those
    of each mesh."""
    meshes = plan.submeshes
    ranks = sorted(d for m in meshes for d in m.devices)
    yield {r: r for r in ranks}
    if len({m.shape for m in meshes}) == 1:
        grid = np.array([m.grid for m in meshes])
        for axes in permutations(range(grid.ndim)):
            yield dict(zip(map(int, grid.transpose(axes).ravel()), ranks, strict=True))
        return
    most = max(m.num_axes for m in meshes)
    for axes in permutations(range(most)):
        order: list[int] = []
        for m in meshes:
            mine = [a for a in axes if a < m.num_axes]
            order += map(int, m.grid.transpose(mine).ravel())
        yield dict(zip(order, (d for m in meshes for d in sorted(m.devices)), strict=True))
