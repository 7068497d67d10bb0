"""Messages over a pairwise program: a proven bound, and by how much each choice is above it.

For any messages M[pair -> end], the pairwise program is also one of the costs

    node[v] + sum of M[pair -> v]           pair[a, b] - M[pair -> a] - M[pair -> b]

and the sum of the least entries of all of them is a lower bound. A pass visits the nodes in order,
pulls what the pairs behind it can give, and pushes it on to the pairs ahead, in equal parts; passes
in both directions raise the bound (Kolmogorov, "A new look at reweighted message passing", 2015,
Sec. 3). A choice whose bound is above a known objective is in no better solution.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_alpa.plan.solve.pairwise import Pairwise
from hpc_alpa.plan.solve.problem import FloatArray, IntArray


class Messages:
    """The nodes in `order` of a pairwise program, laid out flat.

    Attributes:
        start: first choice of each node, and the number of choices.
        choices: of the last pass: each node's best under what was chosen before it.
    """

    def __init__(self, program: Pairwise, order: Sequence[int]) -> None:
        self._program, self._order = program, order
        place = {v: i for i, v in enumerate(order)}
        self._ends = [(v, a) for v in order for a in program.pair[v] if place[v] < place[a]]
        tables = [program.pair[a][b] for a, b in self._ends]
        sizes = np.array([len(program.node[v]) for v in order], np.int64)
        self.start = _offsets(sizes)
        self._seconds = np.concatenate([*(program.node[v] for v in order), np.empty(0)])
        self._node = self._seconds.copy()  # infinite also where a choice was dropped
        ends = np.array([[place[a], place[b]] for a, b in self._ends], np.int64).reshape(-1, 2)
        self._table = np.concatenate([*(table.ravel() for table in tables), np.empty(0)])
        self._first = _offsets(np.array([table.size for table in tables], np.int64))
        self._message_first = _offsets(sizes[ends].sum(axis=1))
        self._message = np.zeros(self._message_first[-1])
        owner = ends.T.ravel()
        self._pairs = np.tile(np.arange(len(ends)), 2)[np.argsort(owner, kind="stable")]
        self._pairs_start = np.searchsorted(np.sort(owner), np.arange(len(sizes) + 1))
        self._shape = (self.start, ends, self._table, self._first, self._message_first)
        self.choices = np.zeros(len(sizes), np.int64)
        self._scratch = np.zeros(sizes.max(initial=1))

    def run(self, forward: bool) -> None:
        """One pass."""
        _kernels()[0](
            self._node,
            *self._shape,
            self._message,
            self._pairs,
            self._pairs_start,
            forward,
            self.choices,
            self._scratch,
        )

    def bound(self) -> tuple[float, FloatArray]:
        """The bound, and per choice how far that of any assignment with it is above it."""
        above = np.zeros(len(self._node))
        least = _kernels()[1](self._node, *self._shape, self._message, above)
        return self._program.constant + float(least), above

    def objective(self) -> float:
        """Of the choices of the last pass."""
        return self.seconds(self.choices)

    def seconds(self, choices: IntArray) -> float:
        """The objective of one choice per node."""
        arrays = (self._seconds, *self._shape[:4])
        return self._program.constant + float(_kernels()[2](*arrays, choices))

    @property
    def shape(self) -> tuple[NDArray[Any], ...]:
        """Seconds of nodes, start, ends, tables, their first entries; pairs of each node, start."""
        return (self._seconds, *self._shape[:4], self._pairs, self._pairs_start)

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
        costs, tables = self._seconds.copy(), self._table.copy()
        _kernels()[3](costs, *self._shape[:2], tables, *self._shape[3:], self._message)
        program, start, first = self._program, self.start.tolist(), self._first.tolist()
        for i, v in enumerate(self._order):
            program.node[v] = costs[start[i] : start[i + 1]]
        for e, (a, b) in enumerate(self._ends):
            table = tables[first[e] : first[e + 1]].reshape(len(program.node[a]), -1)
            program.pair[a][b], program.pair[b][a] = table, table.T


def _offsets(sizes: IntArray) -> IntArray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)]).astype(np.int64)


@cache
def _kernels() -> tuple[Callable[..., Any], ...]:
    import numba  # here and not above: only what is not solved at once pays for its import

    kernels = (_pass, _bound, _objective, _apply)
    return tuple(numba.njit(cache=True)(kernel) for kernel in kernels)


def _pass(
    node: Any,
    start: Any,
    ends: Any,
    table: Any,
    first: Any,
    message_first: Any,
    message: Any,
    pairs: Any,
    pairs_start: Any,
    forward: bool,
    choices: Any,
    total: Any,
) -> None:
    """Nodes in order, or against it. A choice that no choice of a neighbour allows becomes inf."""
    num_nodes = len(start) - 1
    for i in range(num_nodes):
        v = i if forward else num_nodes - 1 - i
        s = start[v]
        size = start[v + 1] - s
        behind = ahead = 0
        total[:size] = node[s : s + size]
        for q in range(pairs_start[v], pairs_start[v + 1]):
            e = pairs[q]
            a, b = ends[e, 0], ends[e, 1]
            size_a, size_b = start[a + 1] - start[a], start[b + 1] - start[b]
            to_a = message_first[e]
            to_b = to_a + size_a
            second = b == v
            mine = to_b if second else to_a
            if second == forward:
                behind += 1
                message[mine : mine + size] = np.inf
                if second:
                    for p in range(size_a):
                        if node[start[a] + p] == np.inf:
                            continue
                        row = first[e] + p * size_b
                        less = message[to_a + p]
                        for t in range(size_b):
                            message[mine + t] = min(message[mine + t], table[row + t] - less)
                else:
                    for p in range(size_a):
                        row = first[e] + p * size_b
                        for t in range(size_b):
                            if node[start[b] + t] < np.inf:
                                seconds = table[row + t] - message[to_b + t]
                                message[mine + p] = min(message[mine + p], seconds)
                for k in range(size):
                    if message[mine + k] == np.inf:
                        node[s + k] = np.inf
                        message[mine + k] = 0.0
            else:
                ahead += 1
            for k in range(size):
                total[k] += message[mine + k]
        best, chosen = np.inf, 0
        for k in range(size):
            if node[s + k] == np.inf:
                total[k] = np.inf
                continue
            seconds = total[k]
            for q in range(pairs_start[v], pairs_start[v + 1]):
                e = pairs[q]
                a, b = ends[e, 0], ends[e, 1]
                size_a, size_b = start[a + 1] - start[a], start[b + 1] - start[b]
                if b == v and forward:
                    entry = table[first[e] + choices[a] * size_b + k]
                    seconds += entry - message[message_first[e] + size_a + k]
                elif a == v and not forward:
                    entry = table[first[e] + k * size_b + choices[b]]
                    seconds += entry - message[message_first[e] + k]
            if seconds < best:
                best, chosen = seconds, k
        choices[v] = chosen
        if ahead:
            share = 1.0 / max(behind, ahead)
            for q in range(pairs_start[v], pairs_start[v + 1]):
                e = pairs[q]
                a, b = ends[e, 0], ends[e, 1]
                if (b == v) != forward:
                    mine = message_first[e] + (start[a + 1] - start[a] if b == v else 0)
                    for k in range(size):
                        if total[k] < np.inf:
                            message[mine + k] -= share * total[k]


def _bound(
    node: Any,
    start: Any,
    ends: Any,
    table: Any,
    first: Any,
    message_first: Any,
    message: Any,
    above: Any,
) -> float:
    """The sum of the least entries; `above` gets what each choice adds to that of its tables."""
    bound = 0.0
    above[:] = node
    for e in range(len(ends)):
        a, b = ends[e, 0], ends[e, 1]
        size_a = start[a + 1] - start[a]
        for p in range(size_a):
            above[start[a] + p] += message[message_first[e] + p]
        for t in range(start[b + 1] - start[b]):
            above[start[b] + t] += message[message_first[e] + size_a + t]
    for v in range(len(start) - 1):
        mine = above[start[v] : start[v + 1]]
        least = mine.min()
        if least == np.inf:
            return np.inf
        bound += least
        mine -= least
    for e in range(len(ends)):
        a, b = ends[e, 0], ends[e, 1]
        size_a, size_b = start[a + 1] - start[a], start[b + 1] - start[b]
        to_a = message_first[e]
        rows, columns = np.full(size_a, np.inf), np.full(size_b, np.inf)
        for p in range(size_a):
            if node[start[a] + p] == np.inf:
                continue
            for t in range(size_b):
                if node[start[b] + t] == np.inf:
                    continue
                entry = table[first[e] + p * size_b + t]
                entry -= message[to_a + p] + message[to_a + size_a + t]
                rows[p], columns[t] = min(rows[p], entry), min(columns[t], entry)
        least = rows.min()
        if least == np.inf:
            return np.inf
        bound += least
        for p in range(size_a):
            above[start[a] + p] += rows[p] - least
        for t in range(size_b):
            above[start[b] + t] += columns[t] - least
    return bound


def _objective(node: Any, start: Any, ends: Any, table: Any, first: Any, choices: Any) -> float:
    total = 0.0
    for v in range(len(start) - 1):
        total += node[start[v] + choices[v]]
    for e in range(len(ends)):
        a, b = ends[e, 0], ends[e, 1]
        total += table[first[e] + choices[a] * (start[b + 1] - start[b]) + choices[b]]
    return total


def _apply(
    node: Any, start: Any, ends: Any, table: Any, first: Any, message_first: Any, message: Any
) -> None:
    for e in range(len(ends)):
        a, b = ends[e, 0], ends[e, 1]
        size_a, size_b = start[a + 1] - start[a], start[b + 1] - start[b]
        to_a = message_first[e]
        to_b = to_a + size_a
        node[start[a] : start[a + 1]] += message[to_a:to_b]
        node[start[b] : start[b + 1]] += message[to_b : to_b + size_b]
        for p in range(size_a):
            for t in range(size_b):
                table[first[e] + p * size_b + t] -= message[to_a + p] + message[to_b + t]
