"""Exact min-sum elimination of factors over a tree decomposition.

A factor is a table of seconds over some nodes. Eliminating node v adds the factors that speak of v,
takes the minimum over v's choices; the factors are kept, and give v's choice on the way back:

    table[u...] = min over i of  sum of factors[i, u...]

The order is greedy, smallest table first; for networks, whose graphs are nearly chains, its width
does not grow with their depth.
"""

import heapq
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hpc_alpa.errors import PlanError
from hpc_alpa.plan.solve.problem import FloatArray

LARGEST_TABLE = 2**24  # entries; 128 MiB of seconds

Steps = Sequence[tuple[int, tuple[int, ...]]]  # each node to eliminate, and the nodes around it


class WidthError(PlanError):
    """Elimination would need a table that is too large; the integer program has no such limit."""


@dataclass(frozen=True, eq=False)
class Factor:
    """Seconds over the choices of the nodes in `scope`, one array dim per node."""

    scope: tuple[int, ...]
    seconds: FloatArray


def order(
    sizes: Sequence[int], scopes: Iterable[Sequence[int]], keep: Iterable[int] = ()
) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Nodes to eliminate, each with the nodes that its table is over, smallest table first."""
    weight = [math.log2(size) for size in sizes]
    adjacent: list[set[int]] = [set() for _ in sizes]
    for scope in scopes:
        for a, b in itertools.permutations(scope, 2):
            adjacent[a].add(b)

    def cost(node: int) -> float:
        return weight[node] + sum(weight[other] for other in adjacent[node])

    left = set(range(len(sizes))) - set(keep)
    current = {node: cost(node) for node in left}
    heap = [(size, node) for node, size in current.items()]
    heapq.heapify(heap)
    steps = []
    while left:
        size, node = heapq.heappop(heap)
        if node not in left or size != current[node]:
            continue  # an entry from before the node's neighbours changed
        left.remove(node)
        around = tuple(sorted(adjacent[node]))
        steps.append((node, around))
        for a in around:
            adjacent[a].remove(node)
            adjacent[a].update(b for b in around if b != a)
        for a in left.intersection(around):
            current[a] = cost(a)
            heapq.heappush(heap, (current[a], a))
    return tuple(steps)


def largest_table(sizes: Sequence[int], steps: Steps) -> int:
    """Entries of the largest table that the elimination adds up."""
    return max((math.prod(sizes[v] for v in (node, *around)) for node, around in steps), default=1)


def require_width(
    sizes: Sequence[int], steps: Steps, names: Sequence[str], limit: int = LARGEST_TABLE
) -> None:
    """Raise WidthError if some table of the elimination has more than `limit` entries."""
    for node, around in steps:
        entries = math.prod(sizes[v] for v in (node, *around))
        if entries > limit:
            raise WidthError(
                f"eliminating {names[node]} needs a table of {entries} entries over "
                f"{', '.join(names[v] for v in (node, *around))}; at most {limit} are allowed. "
                "Solve the integer program instead, or merge choices"
            )


def contract(
    sizes: Sequence[int], factors: Iterable[Factor], steps: Steps, keep: Sequence[int]
) -> tuple[FloatArray, list[list[Factor]]]:
    """Eliminate. Returns the table over the kept nodes, and the factors that each step added up."""
    rank = {node: i for i, (node, _) in enumerate(steps)}
    buckets: list[list[Factor]] = [[] for _ in range(len(steps) + 1)]

    def put(factor: Factor) -> None:
        first = min((rank.get(node, len(steps)) for node in factor.scope), default=len(steps))
        buckets[first].append(factor)

    for factor in factors:
        put(factor)
    for i, (node, around) in enumerate(steps):
        put(Factor(around, _sum(buckets[i], (node, *around), sizes).min(axis=0)))
    return _sum(buckets[-1], keep, sizes), buckets[:-1]


def trace_back(
    steps: Steps, buckets: Sequence[Sequence[Factor]], kept: Mapping[int, int]
) -> dict[int, int]:
    """The choices behind an entry of the table: the argmin of each step along one path only."""
    choice = dict(kept)
    for (node, _), factors in zip(reversed(steps), reversed(buckets), strict=True):
        seconds = sum(
            factor.seconds[tuple(choice.get(v, slice(None)) for v in factor.scope)]
            for factor in factors
        )
        choice[node] = int(np.argmin(seconds))
    return choice


def _sum(factors: Iterable[Factor], scope: Sequence[int], sizes: Sequence[int]) -> FloatArray:
    """The factors added up over the nodes of `scope`, small ones first."""
    total = np.zeros([1] * len(scope))
    for factor in sorted(factors, key=lambda f: f.seconds.size):
        places = [scope.index(node) for node in factor.scope]
        shape = [1] * len(scope)
        for place, node in zip(places, factor.scope, strict=True):
            shape[place] = sizes[node]
        total = total + factor.seconds.transpose(np.argsort(places)).reshape(shape)
    return np.broadcast_to(total, [sizes[node] for node in scope])
