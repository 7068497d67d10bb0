"""Messages over a program of costs, pairs and stars: a proven bound, and how far choices are above.

For any messages M[factor -> node], the program is also one of the costs

    node[v] + sum of M[factor -> v]           factor[a, ..., z] - M[factor -> a] - ...

and the sum of the least entries of all of them is a lower bound. A pass visits the nodes in order,
pulls what the factors behind it can give, and pushes it on to the factors ahead, in equal parts;
passes in both directions raise the bound (Kolmogorov, "A new look at reweighted message passing",
2015, Sec. 3). A choice whose bound is above a known objective is in no better solution.
"""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpc_alpa.plan.solve.pairwise import Pairwise
from hpc_alpa.plan.solve.problem import FloatArray, IntArray, ragged

if TYPE_CHECKING:
    from hpc_alpa.plan.solve.passes import Pairs, Stars


class Messages:
    """The nodes in `order` of a program, laid out flat.

    Attributes:
        start: first choice of each node, and the number of choices.
        choices: of the last pass that chose: each node's best under what was chosen before it.
    """

    def __init__(self, program: Pairwise, order: Sequence[int]) -> None:
        self._program, self._order = program, order
        place = {v: i for i, v in enumerate(order)}
        sizes = np.array([len(program.node[v]) for v in order], np.int64)
        self.start = _offsets(sizes)
        self._pair_ends = [(v, a) for v in order for a in program.pair[v] if place[v] < place[a]]
        self._pairs = _pairs(program, self._pair_ends, place, sizes)
        self._stars = _stars(program, place, sizes)
        self._room = _passes().Room.of(self._stars)
        self._message = np.zeros(int(sizes[self._pairs.ends].sum()))
        charges = [charge for star in program.stars for charge in star.charge]
        self._star_message = -np.concatenate([*charges, np.empty(0)])
        self._seconds = np.concatenate([*(program.node[v] for v in order), np.empty(0)])
        port, choice = ragged(sizes[self._stars.node])
        at = self.start[self._stars.node][port] + choice
        np.subtract.at(self._seconds, at, self._star_message)  # as it was before the charges
        self._node = self._seconds.copy()  # infinite also where a choice was dropped
        self.choices = np.zeros(len(sizes), np.int64)

    def run(self, forward: bool, choose: bool = True) -> None:
        """One pass; the choices cost as much time again where there are stars."""
        _passes().one_pass(*self._all, forward, self.choices, choose)

    def bound(self) -> tuple[float, FloatArray]:
        """The bound, and per choice how far that of any assignment with it is above it."""
        above = np.zeros(len(self._node))
        least = _passes().bound_of(*self._all, above)
        return self._program.constant + float(least), above

    @property
    def _all(self) -> tuple[Any, ...]:
        arrays = (self._node, self.start, self._pairs, self._message)
        return (*arrays, self._stars, self._star_message, self._room)

    def objective(self) -> float:
        """Of the choices of the last pass."""
        return self.seconds(self.choices)

    def seconds(self, choices: IntArray) -> float:
        """The objective of one choice per node."""
        arrays = (self._seconds, self.start, self._pairs, self._stars)
        return self._program.constant + float(_passes().objective_of(*arrays, choices))

    @property
    def shape(self) -> tuple[NDArray[Any], ...]:
        """Of pairs alone: seconds of nodes, start, ends, tables, first entries; pairs, start."""
        p = self._pairs
        return (self._seconds, self.start, p.ends, p.table, p.first, p.of, p.start)

    def surcharge(self, seconds: FloatArray) -> None:
        """Add to the seconds of every choice, as a price on memory does; in place of the last."""
        self._node = np.where(np.isfinite(self._node), self._seconds + seconds, np.inf)

    def drop(self, dead: NDArray[np.bool_]) -> None:
        """Never choose these again."""
        self._node[dead] = np.inf

    @property
    def alive(self) -> NDArray[np.bool_]:
        """Choices that were not dropped."""
        alive: NDArray[np.bool_] = np.isfinite(self._node)
        return alive

    def apply(self) -> None:
        """Write the costs that the messages make of the program into it."""
        costs, tables = self._seconds.copy(), self._pairs.table.copy()
        _passes().apply(
            *(costs, self.start, self._pairs, tables, self._message),
            *(self._stars, self._star_message),
        )
        program, start, first = self._program, self.start.tolist(), self._pairs.first.tolist()
        for i, v in enumerate(self._order):
            program.node[v] = costs[start[i] : start[i + 1]]
        for e, (a, b) in enumerate(self._pair_ends):
            table = tables[first[e] : first[e + 1]].reshape(len(program.node[a]), -1)
            program.pair[a][b], program.pair[b][a] = table, table.T
        parts = np.split(-self._star_message, self._stars.message[1:-1])
        for star, port in zip(program.stars, self._stars.ports.tolist(), strict=False):
            star.charge = parts[port : port + len(star.nodes)]


def _pairs(
    program: Pairwise, pairs: Sequence[tuple[int, int]], place: dict[int, int], sizes: IntArray
) -> "Pairs":
    tables = [program.pair[a][b] for a, b in pairs]
    ends = np.array([[place[a], place[b]] for a, b in pairs], np.int64).reshape(-1, 2)
    of, start = _by_node(ends.T.ravel(), len(sizes))
    layout: Pairs = _passes().Pairs(
        ends=ends,
        table=np.concatenate([*(table.ravel() for table in tables), np.empty(0)]),
        first=_offsets(np.array([table.size for table in tables], np.int64)),
        message=_offsets(sizes[ends].sum(axis=1)),
        of=of % max(1, len(ends)),
        start=start,
    )
    return layout


def _stars(program: Pairwise, place: dict[int, int], sizes: IntArray) -> "Stars":
    stars = program.stars
    ports = np.array([len(star.nodes) for star in stars], np.int64)
    nodes = [np.array([place[v] for v in star.nodes], np.int64) for star in stars]
    others = [np.array([np.delete(of, q) for q in range(len(of))]) for of in nodes]
    node = np.concatenate([*nodes, np.empty(0, np.int64)])
    of, start = _by_node(node, len(sizes))
    tables = [star.conversion for star in stars]
    classes = [classes for star in stars for classes in star.classes]
    layout: Stars = _passes().Stars(
        table=np.concatenate([*(table.ravel() for table in tables), np.empty(0)]),
        turned=np.concatenate([*(table.T.ravel() for table in tables), np.empty(0)]),
        first=_offsets(np.array([table.size for table in tables], np.int64))[:-1],
        sizes=np.array([table.shape for table in tables], np.int64).reshape(-1, 2),
        ports=_offsets(ports),
        star=np.repeat(np.arange(len(stars)), ports),
        node=node,
        least=np.concatenate([*(of.min(axis=1) for of in others), np.empty(0, np.int64)]),
        most=np.concatenate([*(of.max(axis=1) for of in others), np.empty(0, np.int64)]),
        classes=np.concatenate([*classes, np.empty(0, np.int64)]),
        message=_offsets(sizes[node]),
        of=of,
        start=start,
    )
    return layout


def _by_node(node: IntArray, num_nodes: int) -> tuple[IntArray, IntArray]:
    """Places in `node` sorted by what stands there, and the first place of each node."""
    start: IntArray = np.searchsorted(np.sort(node), np.arange(num_nodes + 1))
    return np.argsort(node, kind="stable"), start


def _offsets(sizes: IntArray) -> IntArray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)]).astype(np.int64)


@cache
def _passes() -> Any:
    from hpc_alpa.plan.solve import passes  # here and not above: it compiles

    return passes
