"""Exact reductions of a pairwise program: what has at most two neighbours is eliminated at once.

    one choice        its pairs become costs of the other node
    one neighbour     node[a] += min over v of  pair[a, v] + node[v]
    two neighbours    pair[a, b] += min over v of  pair[a, v] + node[v] + pair[v, b]
    separable pair    pair[a, b] = f[a] + g[b] is no pair

Networks are nearly chains, so that most of their nodes go, and messages have a short way. The nodes
of a star stay until it comes apart.
"""

import copy
from collections import defaultdict
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from hpc_alpa.plan.solve.pairwise import Pairwise
from hpc_alpa.plan.solve.problem import FloatArray, IntArray
from hpc_alpa.plan.solve.stars import Star

_LARGEST = 2**17  # entries of a table that is minimised over
_ROUNDING = 1e-14  # of the largest entry

Around = tuple[int, FloatArray, IntArray]  # a node, seconds [choice, its choice], its choices
Step = tuple[int, FloatArray, tuple[Around, ...]]


class Chains:
    """A pairwise program that becomes smaller, and the way back.

    Attributes:
        program: what is left; only nodes in `left` count.
        left: nodes that are still to be chosen, in the order of the problem.
    """

    def __init__(self, program: Pairwise) -> None:
        self.program = program
        self.left = sorted(range(len(program.node)), key=lambda v: (program.place[v], v))
        self._choices: list[IntArray] = [np.arange(len(c)) for c in program.node]
        self._num_choices = [len(c) for c in program.node]
        self._steps: list[Step] = []

    def copy(self) -> "Chains":
        """Another one that changes on its own."""
        other = copy.copy(self)
        other.program = self.program.copy()
        other.left, other._choices, other._steps = [*self.left], [*self._choices], [*self._steps]
        return other

    def restrict(self, alive: Sequence[NDArray[np.bool_]]) -> None:
        """Drop choices: `alive` has a mask for each node in `left`."""
        program = self.program
        smaller: dict[int, Star] = {}
        stars = defaultdict(list)
        for star in program.stars:
            for v in star.nodes:
                stars[v].append(star)
        for v, mask in zip(self.left, alive, strict=True):
            if mask.all():
                continue
            program.node[v] = program.node[v][mask]
            self._choices[v] = self._choices[v][mask]
            for a in program.pair[v]:
                table = np.ascontiguousarray(program.pair[v][a][mask])
                program.pair[v][a], program.pair[a][v] = table, table.T
            for star in stars[v]:
                star.restrict(v, mask)
                smaller[id(star)] = star
        program.stars = [star for star in program.stars if id(star) not in smaller]
        for star in smaller.values():
            program.add_star(star)

    def alive(self, v: int) -> NDArray[np.bool_]:
        """The choices of a node that were never dropped, as of the program as it was at first."""
        mask = np.zeros(self._num_choices[v], np.bool_)
        mask[self._choices[v]] = True
        return mask

    def reduce(self, keep: Collection[int] = ()) -> None:
        """Eliminate until every node has three neighbours or more, or its table were too large.

        Args:
            keep: nodes that stay.
        """
        program = self.program
        held = {v for star in program.stars for v in star.nodes} | set(keep)
        self._drop_separable()
        queue = [v for v in reversed(self.left) if v not in held]
        gone = set()
        while queue:
            v = queue.pop()
            around = tuple(program.pair[v])
            if v in gone or v in held or (len(around) > 2 and len(program.node[v]) > 1):
                continue
            sizes = [len(program.node[a]) for a in around]
            if len(program.node[v]) > 1 and np.prod([len(program.node[v]), *sizes]) > _LARGEST:
                continue
            self._eliminate(v)
            gone.add(v)
            queue += around
        self.left = [v for v in self.left if v not in gone]

    def _eliminate(self, v: int) -> None:
        program = self.program
        cost, pairs = program.node[v], dict(program.pair[v])
        program.remove(v)
        around = tuple((a, table, self._choices[a]) for a, table in pairs.items())
        self._steps.append((v, cost, around))
        if len(cost) == 1:
            program.constant += float(cost[0])
            for a, table in pairs.items():
                program.node[a] = program.node[a] + table[0]
        elif not pairs:
            program.constant += float(cost.min())
        elif len(pairs) == 1:
            [(a, table)] = pairs.items()
            program.node[a] = program.node[a] + (table + cost[:, None]).min(axis=0)
        else:
            (a, left), (b, right) = pairs.items()
            both = (left + cost[:, None])[:, :, None] + right[:, None, :]
            program.add(a, b, both.min(axis=0))
            self._drop_if_separable(a, b)

    def _drop_separable(self) -> None:
        for v in self.left:
            for a in [a for a in self.program.pair[v] if v < a]:
                self._drop_if_separable(v, a)

    def _drop_if_separable(self, a: int, b: int) -> None:
        """Make a pair that is a sum of two costs these costs."""
        program = self.program
        table = program.pair[a][b]
        if not np.isfinite(table).all():
            return
        first, second = table[:, 0], table[0]
        rest = table - first[:, None] - (second - second[0])
        if np.abs(rest).max() <= _ROUNDING * np.abs(table).max():
            program.node[a] = program.node[a] + first
            program.node[b] = program.node[b] + (second - second[0])
            del program.pair[a][b], program.pair[b][a]

    def expand(self, choices: Sequence[int]) -> IntArray:
        """Choices of all nodes of the program as it was at first, from those of `left`."""
        x = np.zeros(len(self._choices), np.int64)
        for v, choice in zip(self.left, choices, strict=True):
            x[v] = self._choices[v][choice]
        for v, cost, around in reversed(self._steps):
            seconds = cost
            for a, table, columns in around:
                seconds = seconds + table[:, np.searchsorted(columns, x[a])]
            x[v] = self._choices[v][int(np.argmin(seconds))]
        return x
