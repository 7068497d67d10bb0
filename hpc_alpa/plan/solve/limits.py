"""Memory limits whose rows are made where they are missed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hpc_alpa.plan.solve.problem import Assignment, MemoryRow, Problem

Rows = Callable[[Assignment], Sequence[MemoryRow]]


@dataclass(frozen=True)
class Apart:
    """The same problem with fewer ties: equal layers are alike in blocks.

    Attributes:
        block: of each node, from 0; -1 for none.
    """

    problem: Problem
    block: tuple[int, ...]


@dataclass(frozen=True)
class Limits:
    """Memory rows that are too many to be listed in a problem.

    Attributes:
        rows_of: the rows that an assignment does not meet, none if it fits; the same object for
            the same row.
        content: arrays that say what the rows are, for a name under which a solution is stored.
        apart: made where a wide gap is left: what equal layers hold adds up in large steps, while
            they are all alike.
    """

    rows_of: Rows
    content: Callable[[], Sequence[object]] = tuple
    apart: Callable[[], Apart] | None = None
