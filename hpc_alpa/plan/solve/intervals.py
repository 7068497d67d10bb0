"""Memory laid out by node: intervals of points, each with the bytes of every choice of its node."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hpc_alpa.plan.solve.liveness import FloatArray, IntArray
from hpc_alpa.plan.solve.problem import Problem


@dataclass(frozen=True, eq=False)
class Intervals:
    """What the kernels read: interval j of node v holds `nbytes[first[j] + choice]`.

    Args:
        of_node: first interval of each node, and the number of intervals.
        begin, end: points of each interval.
        limit: bytes at each point.
    """

    of_node: IntArray
    begin: IntArray
    end: IntArray
    first: IntArray
    nbytes: FloatArray
    limit: FloatArray

    @classmethod
    def of(cls, problem: Problem, place: IntArray, num_nodes: int) -> Self | None:
        """Liveness and memory rows, a point each; None where they speak of copies.

        Args:
            place: of each node of the problem among `num_nodes`.
        """
        offset, live = problem.choice_offset, problem.live
        points = np.arange(len(problem.rows))
        sizes = [row.terms.size for row in problem.rows]
        term = [row.terms for row in problem.rows]
        nbytes = [row.nbytes for row in problem.rows]
        begin = [np.repeat(points, sizes)]
        end = [np.repeat(points + 1, sizes)]
        limit = [np.array([row.limit for row in problem.rows], np.float64)]
        if live is not None:
            term, nbytes = [*term, live.term], [*nbytes, live.nbytes]
            begin, end = [*begin, live.start + len(points)], [*end, live.stop + len(points)]
            limit.append(np.full(live.num_points, live.limit))
        terms = np.concatenate([*term, np.empty(0, np.int64)])
        if (terms >= offset[-1]).any():
            return None
        node = np.searchsorted(offset, terms, side="right") - 1
        key = np.stack([place[node], np.concatenate(begin), np.concatenate(end)]).astype(np.int64)
        order = np.lexsort(key[::-1])
        new = (np.diff(key[:, order], axis=1, prepend=-1) != 0).any(axis=0)
        which = np.empty(len(order), np.int64)
        which[order] = np.cumsum(new) - 1
        head = order[new]
        counts = np.diff(offset)[node[head]]
        first = np.cumsum(counts) - counts
        held = np.zeros(counts.sum())
        np.add.at(held, first[which] + terms - offset[node], np.concatenate([*nbytes, np.empty(0)]))
        of_node = np.searchsorted(key[0, head], np.arange(num_nodes + 1))
        return cls(of_node, key[1, head], key[2, head], first, held, np.concatenate(limit))

    @property
    def owner(self) -> IntArray:
        """Node of each interval."""
        return np.repeat(np.arange(len(self.of_node) - 1), np.diff(self.of_node))

    def usage(self, choices: IntArray) -> FloatArray:
        """Bytes at each point."""
        held = self.nbytes[self.first + choices[self.owner]]
        size = len(self.limit) + 1
        change = np.bincount(self.begin, held, size) - np.bincount(self.end, held, size)
        return np.cumsum(change)[:-1]

    def price(self, start: IntArray, prices: FloatArray) -> FloatArray:
        """Seconds per choice under a price of a byte at each point; `start` as of `Messages`."""
        total = np.concatenate([[0.0], np.cumsum(prices)])
        rate = total[self.end] - total[self.begin]
        sizes = np.diff(start)[self.owner]
        place = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        choice = np.repeat(start[self.owner], sizes) + place
        seconds = np.repeat(rate, sizes) * self.nbytes[np.repeat(self.first, sizes) + place]
        return np.bincount(choice, seconds, int(start[-1])).astype(np.float64)

    def part(self, nodes: Sequence[int] | IntArray, choices: IntArray) -> Self:
        """Those of some nodes, under what is left by the other nodes' choices."""
        chosen = np.zeros(len(self.of_node) - 1, np.bool_)
        chosen[nodes] = True
        others = ~chosen[self.owner]
        held = np.where(others, self.nbytes[self.first + choices[self.owner]], 0.0)
        size = len(self.limit) + 1
        change = np.bincount(self.begin, held, size) - np.bincount(self.end, held, size)
        count = np.diff(self.of_node)[nodes]
        of_node = np.concatenate([[0], np.cumsum(count)])
        which = np.repeat(self.of_node[:-1][nodes] - of_node[:-1], count) + np.arange(of_node[-1])
        left = self.limit - np.cumsum(change)[:-1]
        columns = self.begin[which], self.end[which], self.first[which]
        return type(self)(of_node, *columns, self.nbytes, left)

    def fits(self, choices: IntArray) -> NDArray[np.bool_] | bool:
        """Whether no point is over its limit."""
        slack = 1e-9 * np.maximum(1.0, np.abs(self.limit))
        return bool((self.usage(choices) <= self.limit + slack).all())
