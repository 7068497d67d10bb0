"""A choice program: every node takes one of its choices, and values are converted between nodes.

    given     cost[v][i]            seconds of node v under its choice i
              C[p, t]               seconds of converting a value from produced class p to class t
    choose    x_v                   one choice per node; tied nodes the same one
              H                     the copies that are held from the forward to the backward window
    minimise  sum_v cost[v][x_v]  +  sum_{value, window} sum_{t needed in it} C[p, t]
              - sum_H C[p, t]
    subject   to, for each memory row,  sum of the bytes of its terms that are active  <=  limit
              and so at each point of the liveness (`liveness`)

A conversion of a value to a class is paid once per window, whoever reads it. An infinite entry of C
or cost is forbidden and is left out of every program; it is never a large number.

Terms are the columns that memory rows speak about, numbered

    one per (node, choice) | one per (value, window, p, t): the copy | one per (value, p, t): held

so a row is two arrays, and an assignment is evaluated by summing over its active terms.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike, NDArray

from hpc_alpa.errors import PlanError
from hpc_alpa.plan.solve.liveness import Liveness

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class Window(IntEnum):
    """When a reader reads a value; conversions are shared within a window."""

    FORWARD = 0
    BACKWARD = 1
    PREPARE = 2  # once a step, before the loop over microbatches
    APPLY = 3  # once a step, behind it


LOOP = (Window.FORWARD, Window.BACKWARD)


@dataclass(frozen=True, eq=False)
class Reader:
    """A node that reads a value: `needed[i]` is the class that it needs under its choice i."""

    node: int
    needed: IntArray
    window: Window = Window.FORWARD

    def __post_init__(self) -> None:
        _set(self, needed=np.asarray(self.needed, np.int64))


@dataclass(frozen=True, eq=False)
class Value:
    """What a node produces, in class `produced[i]` under its choice i, and who reads it.

    `conversion[p, t]` is in seconds, not negative, infinite where forbidden. A `holdable` value's
    copy for the forward window may be held and serve the backward window too.
    """

    producer: int
    produced: IntArray
    readers: tuple[Reader, ...]
    conversion: FloatArray
    holdable: bool = False
    name: str = ""

    def __post_init__(self) -> None:
        table = np.ascontiguousarray(self.conversion, np.float64)
        _set(self, produced=np.asarray(self.produced, np.int64), conversion=table)
        _set(self, readers=tuple(self.readers), name=self.name or f"value of node {self.producer}")
        if table.ndim != 2 or not (table >= 0).all():
            raise PlanError(
                f"{self.name}: conversion seconds of shape {table.shape} with smallest entry "
                f"{table.min(initial=0.0)}: expected [produced, needed], no negative entry, no NaN"
            )


@dataclass(frozen=True, eq=False)
class MemoryRow:
    """Bytes of the active `terms` sum up to at most `limit`. Terms that repeat add up."""

    name: str
    limit: float
    terms: IntArray
    nbytes: FloatArray

    def __post_init__(self) -> None:
        at = np.asarray(self.terms, np.int64).ravel()
        weight = np.asarray(self.nbytes, np.float64).ravel()
        _set(self, limit=float(self.limit), terms=at, nbytes=weight)
        if at.shape != weight.shape or not np.isfinite(weight).all() or (weight < 0).any():
            raise PlanError(
                f"memory row {self.name!r} has {at.size} terms and {weight.size} byte counts: "
                "expected as many of each, finite and not negative"
            )


@dataclass(frozen=True)
class Assignment:
    """A choice per node, and the copies (value, needed class) that are held."""

    choices: tuple[int, ...]
    held: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Seconds of an assignment, and bytes per memory row; the peak of the liveness comes last."""

    objective: float
    memory: FloatArray


@dataclass(frozen=True, eq=False)
class Reads:
    """All readers of a problem, one entry each, so that they are looked up at once.

    `needed[start[r] + i]` is what reader r needs under choice i of its node. What follows `start`
    has one entry per value.
    """

    value: IntArray
    node: IntArray
    window: IntArray
    needed: IntArray
    start: IntArray
    producer: IntArray
    produced: IntArray
    produced_start: IntArray
    num_produced: IntArray
    num_needed: IntArray


@dataclass(frozen=True, eq=False)
class Problem:
    """A choice program over nodes 0..n-1; see the module's docstring.

    Args:
        costs: one vector of seconds per node; infinite where a choice is forbidden.
        ties: per node, the node whose choice it shares (itself where free); chains are followed.
        names: of the nodes, for messages.
        live: memory rows as intervals of time.
        holds: per value, the first of those that hold the same copies (itself where alone); they
            are made and read alike, by tied nodes.
    """

    costs: tuple[FloatArray, ...]
    values: tuple[Value, ...] = ()
    rows: tuple[MemoryRow, ...] = ()
    ties: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    live: Liveness | None = None
    holds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        costs = tuple(np.asarray(cost, np.float64) for cost in self.costs)
        _set(self, costs=costs, values=tuple(self.values), rows=tuple(self.rows))
        _set(self, ties=tuple(self.ties) or tuple(range(len(costs))))
        _set(self, names=tuple(self.names) or tuple(f"node {v}" for v in range(len(costs))))
        _set(self, holds=tuple(self.holds) or tuple(range(len(self.values))))
        for node, cost in enumerate(self.costs):
            if cost.ndim != 1 or not cost.size or np.isnan(cost).any() or (cost == -np.inf).any():
                raise PlanError(f"{self.names[node]}: costs {cost} are not a vector of seconds")
            if len(self.costs[self.ties[node]]) != len(cost):
                raise PlanError(
                    f"{self.names[node]} with {len(cost)} choices is tied to "
                    f"{self.names[self.ties[node]]} with {len(self.costs[self.ties[node]])}"
                )
        for value in () if self._classes_fit() else self.values:
            ends = [(value.producer, value.produced, value.conversion.shape[0])]
            ends += [(r.node, r.needed, value.conversion.shape[1]) for r in value.readers]
            for node, classes, bound in ends:
                if classes.shape != self.costs[node].shape or not _within(classes, bound):
                    raise PlanError(
                        f"{value.name} at {self.names[node]}: classes {classes} for "
                        f"{len(self.costs[node])} choices and {bound} classes"
                    )
        for k, first in enumerate(self.holds):
            if (
                k != first
                and self.values[k].conversion.shape != self.values[first].conversion.shape
            ):
                raise PlanError(
                    f"{self.values[k].name} holds as {self.values[first].name} does, but has "
                    f"conversions of shape {self.values[k].conversion.shape}, not "
                    f"{self.values[first].conversion.shape}"
                )
        for row in self.rows:
            if not _within(row.terms, self.num_terms):
                raise PlanError(f"memory row {row.name!r} names a term beyond {self.num_terms}")
        if self.live is not None and not _within(self.live.term, self.num_terms):
            raise PlanError(f"the liveness names a term beyond {self.num_terms}")

    def _classes_fit(self) -> bool:
        """Whether all classes are within the conversions, seen at once."""
        sizes = [len(cost) for cost in self.costs]
        for value in self.values:
            if value.produced.shape != (sizes[value.producer],):
                return False
            for reader in value.readers:
                if reader.needed.shape != (sizes[reader.node],):
                    return False
        reads, size = self.reads, np.array(sizes, np.int64)
        made = np.repeat(reads.num_produced, size[reads.producer])
        wanted = np.repeat(reads.num_needed[reads.value], size[reads.node])
        both = ((reads.produced, made), (reads.needed, wanted))
        return all(bool(((c >= 0) & (c < bound)).all()) for c, bound in both)

    # where things lie in the flat numbering of terms

    @cached_property
    def choice_offset(self) -> IntArray:
        """First term of each node, and the number of choices of all nodes."""
        return _offsets([len(cost) for cost in self.costs])

    @cached_property
    def cell_offset(self) -> IntArray:
        """First cell (value, p, t) of each value, and the number of cells."""
        return _offsets([value.conversion.size for value in self.values])

    @property
    def num_terms(self) -> int:
        return int(self.choice_offset[-1] + (len(Window) + 1) * self.cell_offset[-1])

    def choice_terms(self, node: int) -> IntArray:
        """Terms of the node's choices."""
        return np.arange(self.choice_offset[node], self.choice_offset[node + 1])

    def copy_terms(self, value: int, window: Window) -> IntArray:
        """Terms [p, t] of the copies of a value in a window."""
        first = int(self.choice_offset[-1] + window * self.cell_offset[-1])
        return self._cells(value) + first

    def held_terms(self, value: int) -> IntArray:
        """Terms [p, t]: the copy is held from forward to backward."""
        first = int(self.choice_offset[-1] + len(Window) * self.cell_offset[-1])
        return self._cells(value) + first

    def _cells(self, value: int) -> IntArray:
        start, stop = self.cell_offset[value : value + 2].tolist()
        return np.arange(start, stop).reshape(self.values[value].conversion.shape)

    @cached_property
    def _conversions(self) -> tuple[FloatArray, IntArray]:
        """All conversion tables end to end, shared ones once, and where each value's begins."""
        place: dict[int, int] = {}
        tables: list[FloatArray] = []
        for value in self.values:
            if id(value.conversion) not in place:
                place[id(value.conversion)] = len(tables)
                tables.append(value.conversion.ravel())
        starts = _offsets([table.size for table in tables])
        which = np.array([place[id(value.conversion)] for value in self.values], np.int64)
        return concatenate(tables), starts[which]

    def cell_seconds(self, cells: IntArray) -> FloatArray:
        """Seconds of the conversions of these cells."""
        table, start = self._conversions
        value = np.searchsorted(self.cell_offset, cells, side="right") - 1
        seconds: FloatArray = table[start[value] + cells - self.cell_offset[value]]
        return seconds

    @cached_property
    def reads(self) -> Reads:
        """The readers laid out flat."""
        readers = [(k, r) for k, value in enumerate(self.values) for r in value.readers]
        shapes = np.array([v.conversion.shape for v in self.values], np.int64).reshape(-1, 2)
        produced = [value.produced for value in self.values]
        needed = [reader.needed for _, reader in readers]
        return Reads(
            value=np.array([k for k, _ in readers], np.int64),
            node=np.array([r.node for _, r in readers], np.int64),
            window=np.array([r.window for _, r in readers], np.int64),
            needed=concatenate(needed).astype(np.int64),
            start=_offsets([part.size for part in needed])[:-1],
            producer=np.array([value.producer for value in self.values], np.int64),
            produced=concatenate(produced).astype(np.int64),
            produced_start=_offsets([part.size for part in produced])[:-1],
            num_produced=shapes[:, 0],
            num_needed=shapes[:, 1],
        )

    @cached_property
    def term_costs(self) -> FloatArray:
        """Seconds of each term; a held copy saves its second conversion."""
        conversion = concatenate([value.conversion.ravel() for value in self.values])
        saved = np.where(np.isfinite(conversion), -conversion, 0.0)
        return np.concatenate([*self.costs, *[conversion] * len(Window), saved])

    @cached_property
    def row_matrix(self) -> scipy.sparse.csr_array:
        """Bytes [row, term]."""
        starts = _offsets([row.terms.size for row in self.rows])
        nbytes = concatenate([row.nbytes for row in self.rows])
        terms = concatenate([row.terms for row in self.rows]).astype(np.int64)
        shape = (len(self.rows), self.num_terms)
        matrix = scipy.sparse.csr_array((nbytes, terms, starts), shape=shape)
        matrix.sum_duplicates()
        return matrix

    @cached_property
    def bytes_of_term(self) -> scipy.sparse.csc_array:
        """`row_matrix` by columns."""
        return self.row_matrix.tocsc()

    @cached_property
    def limits(self) -> FloatArray:
        """Bytes per memory row, and of the liveness."""
        peak = [] if self.live is None else [self.live.limit]
        return np.array([row.limit for row in self.rows] + peak, np.float64)

    def explicit(self, most: int) -> "Problem | None":
        """The problem with a memory row for each point; None if they have over `most` terms."""
        if self.live is None:
            return self
        if int((self.live.stop - self.live.start).sum()) > most:
            return None
        matrix = self.live.rows(np.arange(self.live.num_points), self.num_terms)
        rows = tuple(
            MemoryRow(
                self.live.name_of(t),
                self.live.limit,
                matrix.indices[matrix.indptr[t] : matrix.indptr[t + 1]],
                matrix.data[matrix.indptr[t] : matrix.indptr[t + 1]],
            )
            for t in range(self.live.num_points)
        )
        return replace(self, rows=(*self.rows, *rows), live=None)

    @property
    def limited(self) -> bool:
        """Whether there is any memory row."""
        return bool(self.rows) or self.live is not None

    @cached_property
    def priced(self) -> NDArray[np.bool_]:
        """Terms with bytes in some memory row."""
        priced = np.zeros(self.num_terms, np.bool_)
        priced[self.row_matrix.indices[self.row_matrix.data > 0]] = True
        if self.live is not None:
            priced[self.live.term[self.live.nbytes > 0]] = True
        held = priced[self.num_terms - int(self.cell_offset[-1]) :]
        if held.any():
            value, place = ragged(np.diff(self.cell_offset))
            together = self.cell_offset[np.array(self.holds, np.int64)[value]] + place
            some = np.zeros(len(held), np.bool_)
            some[together[held]] = True
            held[:] = some[together]
        return priced


def leaders(problem: Problem) -> IntArray:
    """The free node behind each node's chain of ties. Raises PlanError on a cycle."""
    leader = np.array(problem.ties, np.int64)
    for _ in range(len(leader).bit_length() + 1):
        leader = leader[leader]
    if (np.array(problem.ties, np.int64)[leader] != leader).any():
        node = int(np.flatnonzero(np.array(problem.ties)[leader] != leader)[0])
        raise PlanError(f"the ties of {problem.names[node]} form a cycle: tie one node to itself")
    return leader


def needed_cells(problem: Problem, choices: Sequence[int] | IntArray, window: Window) -> IntArray:
    """The cells (value, p, t) that some reader in the window needs, each once, in order."""
    return np.unique(_cells_read(problem, choices)[problem.reads.window == window])


def _cells_read(problem: Problem, choices: Sequence[int] | IntArray) -> IntArray:
    """The cell of each reader."""
    x, reads = np.asarray(choices, np.int64), problem.reads
    p = reads.produced[reads.produced_start + x[reads.producer]]
    t = reads.needed[reads.start + x[reads.node]]
    row: IntArray = problem.cell_offset[:-1] + p * reads.num_needed
    return np.asarray(row[reads.value] + t, np.int64)


def holdable_copies(
    problem: Problem, choices: Sequence[int] | IntArray
) -> tuple[tuple[int, int, int], ...]:
    """(value, needed class, term) of the copies that forward and backward both need."""
    both = np.intersect1d(
        needed_cells(problem, choices, Window.FORWARD),
        needed_cells(problem, choices, Window.BACKWARD),
        assume_unique=True,
    )
    owner = np.searchsorted(problem.cell_offset, both, side="right") - 1
    first = problem.choice_offset[-1] + len(Window) * problem.cell_offset[-1]
    return tuple(
        (int(k), int((cell - problem.cell_offset[k]) % problem.values[k].conversion.shape[1]), term)
        for k, cell, term in zip(owner, both, (first + both).tolist(), strict=True)
        if problem.values[k].holdable
    )


def complete(
    problem: Problem, choices: Sequence[int], held: Iterable[tuple[int, int]] = ()
) -> Assignment:
    """The assignment of these choices that holds `held` and every copy whose holding is free."""
    first = problem.holds
    asked = frozenset((first[k], t) for k, t in held)
    copies = holdable_copies(problem, choices)
    return Assignment(
        tuple(int(choice) for choice in choices),
        frozenset(
            (k, t) for k, t, term in copies if (first[k], t) in asked or not problem.priced[term]
        ),
    )


def evaluate(problem: Problem, assignment: Assignment) -> Evaluation:
    """Objective and memory of an assignment, exactly as defined. Raises PlanError if it is none."""
    choices = np.array(assignment.choices, np.int64)
    wrong = (choices != choices[list(problem.ties)]) | (choices < 0)
    wrong |= choices >= np.diff(problem.choice_offset)
    if wrong.any():
        node = int(wrong.argmax())
        raise PlanError(
            f"{problem.names[node]} takes choice {choices[node]} of {len(problem.costs[node])} and "
            f"{problem.names[problem.ties[node]]}, which it is tied to, "
            f"choice {choices[problem.ties[node]]}"
        )
    possible = {(k, t): term for k, t, term in holdable_copies(problem, choices)}
    if not assignment.held <= possible.keys():
        missing = sorted(assignment.held - possible.keys())
        raise PlanError(
            f"copies {missing} are held, but not needed in both windows or not holdable"
        )
    groups = {(problem.holds[k], t) for k, t in assignment.held}
    alike = {(k, t) for k, t in possible if (problem.holds[k], t) in groups}
    apart = alike - assignment.held
    if apart:
        raise PlanError(f"copies {sorted(apart)} are not held, but those of equal values are")
    first, num_cells = problem.choice_offset[-1], problem.cell_offset[-1]
    nodes = problem.choice_offset[:-1] + choices
    cells = [needed_cells(problem, choices, window) for window in Window]
    held = np.array([possible[copy] for copy in sorted(assignment.held)], np.int64)
    seconds = np.concatenate([*problem.costs, np.empty(0)])[nodes].sum()
    seconds += sum(problem.cell_seconds(part).sum() for part in cells)
    saved = problem.cell_seconds(held - first - len(Window) * num_cells)
    seconds -= saved[np.isfinite(saved)].sum()
    if not problem.limited:
        return Evaluation(float(seconds), np.empty(0))
    copies = [first + window * num_cells + part for window, part in zip(Window, cells, strict=True)]
    active = np.concatenate([nodes, *copies, held])
    memory = np.asarray(problem.bytes_of_term[:, active].sum(axis=1), np.float64).ravel()
    if problem.live is not None:
        activity = np.zeros(problem.num_terms)
        activity[active] = 1.0
        memory = np.append(memory, problem.live.usage(activity).max(initial=0.0))
    return Evaluation(float(seconds), memory)


def ragged(sizes: IntArray) -> tuple[IntArray, IntArray]:
    """For blocks of these sizes laid end to end: each element's block and its place within it."""
    owner = np.repeat(np.arange(len(sizes)), sizes)
    return owner, np.arange(len(owner)) - _offsets(sizes)[owner]


def concatenate(parts: Sequence[NDArray[np.generic]]) -> NDArray[np.float64]:
    """`numpy.concatenate` that gives an empty array for no parts."""
    return np.concatenate(parts) if parts else np.empty(0)


def _offsets(sizes: ArrayLike) -> IntArray:
    return np.concatenate([[0], np.cumsum(np.asarray(sizes, np.int64))]).astype(np.int64)


def _within(classes: IntArray, bound: int) -> bool:
    return bool((classes >= 0).all() and (classes < bound).all())


def _set(target: object, **attributes: object) -> None:
    # lists become tuples and arrays once; a frozen dataclass is set through object's own method
    for name, value in attributes.items():
        object.__setattr__(target, name, value)
