"""A choice program without rows as costs of nodes and of pairs of nodes, exactly.

    minimise  sum_v node[v][x_v]  +  sum_{a, b} pair[a, b][x_a, x_b]  +  sum of stars

A conversion with one reading node in its window is the cost of a pair. One that several nodes share
is paid once, and there are two ways to say so: as a star (`stars`), whose relaxation is tighter; or
by pairs alone, with a node for every cell: the choices of `cell` are not paid (0) and paid (1),
paid costs C[produced, t], and a reader that needs t excludes 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from hpc_alpa.plan.solve.problem import FloatArray, IntArray, Problem
from hpc_alpa.plan.solve.shares import Shared, shared_conversions
from hpc_alpa.plan.solve.stars import Star


@dataclass(eq=False)
class Pairwise:
    """Costs of nodes, pairs and stars; infinite where forbidden. Changed by who reduces it.

    Args:
        node: seconds per choice.
        pair: `pair[a][b]`: seconds [choice of a, choice of b]; `pair[b][a]` is its transpose.
        constant: seconds of whatever is chosen.
        place: of each node, where it stands in the order of the problem.
        stars: conversions that are shared.
    """

    node: list[FloatArray]
    pair: list[dict[int, FloatArray]]
    constant: float = 0.0
    place: list[int] = field(default_factory=list)
    stars: list[Star] = field(default_factory=list)

    def add(self, a: int, b: int, seconds: FloatArray) -> None:
        """Add seconds [choice of a, choice of b]; to the node itself where a is b."""
        if a == b:
            self.node[a] = self.node[a] + seconds.diagonal()
            return
        known = self.pair[a].get(b)
        total = seconds if known is None else known + seconds
        self.pair[a][b], self.pair[b][a] = total, total.T

    def add_star(self, star: Star) -> None:
        """Add a star, or what it comes apart into."""
        parts = star.parts()
        for v, seconds in parts.costs:
            self.node[v] = self.node[v] + seconds
        for a, b, table in parts.pairs:
            if table.any():
                self.add(a, b, table)
        self.stars += parts.stars

    def new_node(self, seconds: FloatArray, place: int) -> int:
        """A node more; its number."""
        self.node.append(seconds)
        self.pair.append({})
        self.place.append(place)
        return len(self.node) - 1

    def remove(self, v: int) -> None:
        """Take a node out of every pair."""
        for a in self.pair[v]:
            del self.pair[a][v]
        self.pair[v] = {}

    def copy(self) -> "Pairwise":
        """Another one that changes on its own; they share the arrays, which nobody changes."""
        pair = [dict(pairs) for pairs in self.pair]
        stars = [replace(s, classes=[*s.classes], charge=[*s.charge]) for s in self.stars]
        return Pairwise([*self.node], pair, self.constant, [*self.place], stars)

    def seconds(self, choices: Sequence[int]) -> float:
        """The objective of one choice per node."""
        total = self.constant + sum(float(c[x]) for c, x in zip(self.node, choices, strict=True))
        total += sum(star.seconds(choices) for star in self.stars)
        return total + sum(
            float(table[choices[a], choices[b]])
            for a, pairs in enumerate(self.pair)
            for b, table in pairs.items()
            if a < b
        )


def in_order(program: Pairwise) -> tuple[Pairwise, IntArray]:
    """Pairs alone with nodes numbered in the order of the problem; the new number of each."""
    order = sorted(range(len(program.node)), key=lambda v: (program.place[v], v))
    number = np.empty(len(order), np.int64)
    number[order] = np.arange(len(order))
    of = number.tolist()
    pair = [{of[a]: table for a, table in program.pair[v].items()} for v in order]
    place = [program.place[v] for v in order]
    return Pairwise([program.node[v] for v in order], pair, program.constant, place), number


def pairwise(problem: Problem, stars: bool = False) -> Pairwise:
    """The program of a problem without ties; its rows are left out. The first nodes are its own.

    Args:
        stars: whether shared conversions are stars where they can be, else pairs with cells.
    """
    result = Pairwise(list(problem.costs), [{} for _ in problem.costs])
    result.place = list(range(len(problem.costs)))
    for group in shared_conversions(problem):
        if not group.conversion.any():
            continue
        star = Star.of(group) if stars and len(group.needed) > 1 else None
        if star is None:
            _add(result, group)
        else:
            result.add_star(star)
    return result


def _add(result: Pairwise, group: Shared) -> None:
    """The pairs, and the cells, of one conversion that is paid once."""
    seconds = group.conversion[group.produced]  # [choice of the producer, t]
    if len(group.needed) == 1 and len(group.needed[0][1]) == 1:  # the common case, in one step
        result.add(group.producer, group.needed[0][0], seconds[:, group.needed[0][1][0]])
        return
    readers = [(u, _needs(classes, seconds.shape[1])) for u, classes in group.needed]
    can = np.array([needs.any(axis=0) for _, needs in readers])
    alone = can.sum(axis=0) == 1
    finite = np.isfinite(seconds)
    paid = np.where(finite, seconds, 0.0)
    for u, needs in readers:
        table = paid[:, alone] @ needs[:, alone].T
        forbidden = (~finite).astype(np.float64) @ needs.T
        if table.any() or forbidden.any():
            result.add(group.producer, u, np.where(forbidden > 0, np.inf, table))
    for t in np.flatnonzero(~alone & can.any(axis=0) & paid.any(axis=0)).tolist():
        cell = result.new_node(np.zeros(2), group.producer)
        pays = np.zeros((2, len(seconds)))
        pays[1] = paid[:, t]
        result.add(cell, group.producer, pays)
        for u, needs in readers:
            if needs[:, t].any():
                excludes = np.zeros((2, len(needs)))
                excludes[0, needs[:, t] > 0] = np.inf
                result.add(cell, u, excludes)


def _needs(classes: Sequence[NDArray[np.int64]], num_classes: int) -> FloatArray:
    """[choice of a reader, t]: 1 where it needs t."""
    needs = np.zeros((len(classes[0]), num_classes))
    for several in classes:
        needs[np.arange(len(several)), several] = 1.0
    return needs
