"""Conversions that several nodes share, as factors for the elimination.

A value with one reading node per window is one pairwise factor C[produced, needed], exactly. Where
k nodes share a conversion that is paid once, each pays a share a_u[p, t] of it, with a_u >= 0 and
sum_u a_u = C, over the nodes that can need t: never more than the true cost. So the elimination
gives a lower bound for every choice of shares, and proves the optimum where its assignment costs as
much. Up to `dense` reading nodes the factor is exact instead, over them all, at the price of width.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpc_alpa.plan.solve.contract import Factor
from hpc_alpa.plan.solve.problem import FloatArray, IntArray, Problem


@dataclass(frozen=True, eq=False)
class Shared:
    """A conversion that several nodes pay once: `needed`: nodes, with their classes per choice."""

    producer: int
    produced: IntArray
    conversion: FloatArray
    needed: tuple[tuple[int, tuple[IntArray, ...]], ...]

    def can_need(self) -> FloatArray:
        """[reading node, t]: whether some choice of the node needs the class."""
        can = np.zeros((len(self.needed), self.conversion.shape[1]))
        for u, (_, readers) in enumerate(self.needed):
            can[u, np.concatenate(readers)] = 1.0
        return can

    def equal_shares(self) -> FloatArray:
        """Seconds [reading node, p, t], split evenly among those that can need the class."""
        can = self.can_need()
        shares = can / np.maximum(1, can.sum(axis=0))
        seconds: FloatArray = self._finite() * shares[:, None, :]
        return seconds

    def pairwise(self, shares: FloatArray) -> list[Factor]:
        """One factor per reading node: its share of each distinct class that it needs."""
        forbidden = np.where(np.isfinite(self.conversion), 0.0, np.inf)
        return [
            _dense(self.producer, self.produced, shares[u] + forbidden, [reader])
            for u, reader in enumerate(self.needed)
        ]

    def move(self, choice: Sequence[int]) -> list[tuple[int, int, FloatArray]]:
        """The subgradient: (p, t, direction [reading node]), towards those that use the copy."""
        can, conversion = self.can_need().astype(np.bool_), self._finite()
        uses = np.zeros(can.shape)
        for u, (node, readers) in enumerate(self.needed):
            uses[u, [classes[choice[node]] for classes in readers]] = 1.0
        p = int(self.produced[choice[self.producer]])
        return [
            (p, t, np.where(can[:, t], uses[:, t] - uses[can[:, t], t].mean(), 0.0))
            for t in np.flatnonzero(uses.any(axis=0)).tolist()
            if conversion[p, t] > 0 and not uses[can[:, t], t].all()
        ]

    def _finite(self) -> FloatArray:
        return np.where(np.isfinite(self.conversion), self.conversion, 0.0)

    def dense(self) -> Factor:
        """The exact factor over the producer and all reading nodes."""
        return _dense(self.producer, self.produced, self.conversion, self.needed)


def _dense(
    producer: int,
    produced: IntArray,
    conversion: FloatArray,
    needed: Sequence[tuple[int, tuple[IntArray, ...]]],
) -> Factor:
    """Seconds of the conversions to the distinct classes that these nodes need."""
    first, *others = needed
    if not others and len(first[1]) == 1 and first[0] != producer:  # the common case, in one step
        return Factor((producer, first[0]), conversion[np.ix_(produced, first[1][0])])
    scope = [producer]
    readers: list[tuple[int, IntArray]] = []  # place in the scope, class per choice
    for node, several in needed:
        if node not in scope:
            scope.append(node)
        readers += [(scope.index(node), classes) for classes in several]
    sizes = {0: len(produced)} | {place: len(classes) for place, classes in readers}
    grid = np.indices([sizes[place] for place in range(len(scope))], sparse=True)
    seconds = np.zeros([sizes[place] for place in range(len(scope))])
    for t in range(conversion.shape[1]):
        anyone = np.zeros(seconds.shape, np.bool_)
        for place, classes in readers:
            anyone |= classes[grid[place]] == t
        seconds += np.where(anyone, conversion[produced[grid[0]], t], 0.0)
    return Factor(tuple(scope), seconds)


def shared_conversions(problem: Problem) -> list[Shared]:
    """What is paid once: one entry per value and window. Holding is free or not holdable here."""
    shared = []
    for value in problem.values:
        windows: dict[int, dict[int, list[IntArray]]] = defaultdict(lambda: defaultdict(list))
        for reader in value.readers:
            windows[reader.window][reader.node].append(reader.needed)
        for nodes in windows.values():
            needed = tuple((node, tuple(several)) for node, several in nodes.items())
            shared.append(Shared(value.producer, value.produced, value.conversion, needed))
    return shared


def factors_of(
    problem: Problem, shared: Sequence[Shared], shares: Sequence[FloatArray], dense: int
) -> list[Factor]:
    result = [Factor((node,), cost) for node, cost in enumerate(problem.costs)]
    for group, share in zip(shared, shares, strict=True):
        result += [group.dense()] if len(group.needed) <= dense else group.pairwise(share)
    return result


def scopes_of(shared: Sequence[Shared], dense: int) -> list[tuple[int, ...]]:
    """The scopes of `factors_of`, without the work."""
    scopes = []
    for group in shared:
        nodes = [node for node, _ in group.needed]
        together = [nodes] if len(nodes) <= dense else [[node] for node in nodes]
        scopes += [tuple({group.producer, *several}) for several in together]
    return scopes


def learn(
    shared: Sequence[Shared],
    shares: Sequence[FloatArray],
    choice: Sequence[int],
    dense: int,
    missing: float,
) -> bool:
    """Move the shares along the subgradient, by Polyak's step for a bound `missing` seconds higher.

    Shares stay non-negative and add up to the conversion. Changes `shares`; False if none can move.
    """
    moves = [
        (group.conversion[p, t], share[:, p, t], direction)
        for group, share in zip(shared, shares, strict=True)
        if len(group.needed) > dense
        for p, t, direction in group.move(choice)
    ]
    length = sum(float(direction @ direction) for _, _, direction in moves)
    for total, share, direction in moves:
        moved = np.maximum(0.0, share + missing / length * direction)
        share[:] = moved * (total / moved.sum())
    return bool(moves)
