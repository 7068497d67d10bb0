"""The integer program of a choice program, as arrays.

Variables   s[v, i] in {0, 1}     node v takes choice i
            e[r, p, t] >= 0       flow of reader r from produced class p to needed class t
            y[w, p, t] >= 0       the copy of a value with several readers in window w
            h[p, t]               the copy is held from forward to backward
Minimise    sum cost s  +  sum C (e of a reader alone in its window, else y)  -  sum C h
Subject to  sum_i s[v, i] = 1                                               -> one choice
            sum_t e[r, p, t] = sum of s of the producer's choices making p  -> flows
            sum_p e[r, p, t] = sum of s of the reader's choices needing t   -> flows
            y[w, p, t] >= e[r, p, t] for each reader r in w                 -> shared copies
            h[p, t] <= y of forward, h[p, t] <= y of backward               -> held copies
Only s is integer, and h where a memory row prices it: with s integral the flows are, and y and h
follow their costs. Forbidden conversions have no variable. Memory rows are handed out apart, to be
added where they are violated.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from hpc_alpa.plan.solve.problem import LOOP, FloatArray, IntArray, Problem, Window, ragged


@dataclass(frozen=True, eq=False)
class Model:
    """Minimise cost @ x with lower <= matrix @ x <= upper, 0 <= x <= bound, x[integer] integral.

    The first columns are the choices, in the order of the problem's terms.
    """

    cost: FloatArray
    bound: FloatArray
    integer: IntArray
    matrix: scipy.sparse.csr_array
    lower: FloatArray
    upper: FloatArray
    num_choices: int
    held_columns: IntArray
    held_terms: IntArray
    memory: scipy.sparse.csr_array  # [memory row, column]
    limits: FloatArray


class _Builder:
    """Columns and rows as they come; every method takes and gives whole arrays."""

    def __init__(self) -> None:
        self.costs: list[FloatArray] = []
        self.entries: list[tuple[IntArray, IntArray, FloatArray]] = []
        self.lower: list[FloatArray] = []
        self.upper: list[FloatArray] = []
        self.num_columns = self.num_rows = 0

    def columns(self, cost: FloatArray) -> IntArray:
        self.costs.append(cost)
        self.num_columns += len(cost)
        return np.arange(self.num_columns - len(cost), self.num_columns)

    def rows(self, number: int, lower: float, upper: float) -> IntArray:
        self.lower.append(np.full(number, lower))
        self.upper.append(np.full(number, upper))
        self.num_rows += number
        return np.arange(self.num_rows - number, self.num_rows)

    def put(self, rows: IntArray, columns: IntArray, factor: float) -> None:
        self.entries.append((rows, columns, np.full(len(rows), factor)))

    def at_least(self, larger: IntArray, smaller: IntArray) -> None:
        rows = self.rows(len(larger), 0.0, np.inf)
        self.put(rows, larger, 1.0)
        self.put(rows, smaller, -1.0)


def build(problem: Problem) -> Model:
    """The integer program of a problem without ties."""
    builder = _Builder()
    choices = builder.columns(np.concatenate(problem.costs))
    node_of_choice, _ = ragged(np.diff(problem.choice_offset))
    builder.put(builder.rows(len(problem.costs), 1.0, 1.0)[node_of_choice], choices, 1.0)

    column_of_term = np.full(problem.num_terms, -1)
    column_of_term[choices] = choices
    if problem.values:
        _copies(problem, builder, _flows(problem, builder), column_of_term)
        held = _held(problem, builder, column_of_term)
    else:
        held = np.empty(0, np.int64)
    held_columns = column_of_term[held]

    shape = (builder.num_rows, builder.num_columns)
    rows, columns, factors = (np.concatenate(part) for part in zip(*builder.entries, strict=True))
    bound = np.full(builder.num_columns, np.inf)
    bound[choices] = 1.0
    used = np.flatnonzero(column_of_term >= 0)
    to_column = scipy.sparse.csr_array(
        (np.ones(len(used)), (used, column_of_term[used])), (problem.num_terms, shape[1])
    )
    return Model(
        cost=np.concatenate(builder.costs),
        bound=bound,
        integer=np.concatenate([choices, held_columns[problem.priced[held]]]),
        matrix=scipy.sparse.csr_array((factors, (rows, columns)), shape),
        lower=np.concatenate(builder.lower),
        upper=np.concatenate(builder.upper),
        num_choices=len(choices),
        held_columns=held_columns,
        held_terms=held,
        memory=scipy.sparse.csr_array(problem.row_matrix @ to_column),
        limits=problem.limits,
    )


@dataclass(frozen=True, eq=False)
class _Flows:
    """Columns e: number, cell (value, p, t), window, and whether other readers share the window."""

    column: IntArray
    cell: IntArray
    window: IntArray
    shared: NDArray[np.bool_]


def _flows(problem: Problem, builder: _Builder) -> _Flows:
    """Columns e with their marginals, for what some choice makes, some needs and is allowed."""
    reads = problem.reads
    num_produced, num_needed = reads.num_produced[reads.value], reads.num_needed[reads.value]
    reader, place = ragged(num_produced * num_needed)
    p, t = np.divmod(place, num_needed[reader])
    cell = problem.cell_offset[reads.value[reader]] + place
    conversion = np.concatenate([value.conversion.ravel() for value in problem.values])
    start = reads.produced_start[reads.value]
    makes = _marginal(problem, reads.producer[reads.value], num_produced, reads.produced, start)
    wants = _marginal(problem, reads.node, num_needed, reads.needed, reads.start)
    made, wanted = makes.first[reader] + p, wants.first[reader] + t
    possible = makes.used[made] & wants.used[wanted] & np.isfinite(conversion[cell])

    key = reads.value * len(Window) + reads.window
    shared = (np.bincount(key)[key] > 1)[reader[possible]]
    cost = np.where(shared, 0.0, conversion[cell[possible]])
    columns = builder.columns(cost)
    for marginal, row in ((makes, made), (wants, wanted)):
        rows = builder.rows(len(marginal.used), 0.0, 0.0)
        builder.put(rows[row[possible]], columns, 1.0)
        builder.put(rows[marginal.row], marginal.choice, -1.0)
    return _Flows(columns, cell[possible], reads.window[reader[possible]], shared)


@dataclass(frozen=True, eq=False)
class _Marginal:
    """The rows (reader, class) of one end of every reader, and the choices that are in them."""

    row: IntArray  # of each (reader, choice)
    choice: IntArray  # the column of each
    first: IntArray  # row of each reader, and the number of rows
    used: NDArray[np.bool_]  # rows with a choice


def _marginal(
    problem: Problem, nodes: IntArray, num_classes: IntArray, classes: IntArray, start: IntArray
) -> _Marginal:
    """`classes[start[r] + i]` is the class of reader r under choice i of `nodes[r]`."""
    reader, place = ragged(np.diff(problem.choice_offset)[nodes])
    first = np.concatenate([[0], np.cumsum(num_classes)])
    row = first[reader] + classes[start[reader] + place]
    used = np.zeros(first[-1], np.bool_)
    used[row] = True
    return _Marginal(row, problem.choice_offset[nodes][reader] + place, first, used)


def _copies(problem: Problem, builder: _Builder, flows: _Flows, column_of_term: IntArray) -> None:
    """Columns y above the flows of readers that share; a lone reader's flow is its copy."""
    term = problem.choice_offset[-1] + flows.window * problem.cell_offset[-1] + flows.cell
    column_of_term[term[~flows.shared]] = flows.column[~flows.shared]
    counts = flows.shared & ((problem.term_costs[term] > 0) | problem.priced[term])
    copies = np.unique(term[counts])
    column_of_term[copies] = builder.columns(problem.term_costs[copies])
    builder.at_least(column_of_term[term[counts]], flows.column[counts])


def _held(problem: Problem, builder: _Builder, column_of_term: IntArray) -> IntArray:
    """Columns h below both copies. Returns their terms."""
    first, num_cells = problem.choice_offset[-1], problem.cell_offset[-1]
    forward, backward = (
        column_of_term[first + window * num_cells :][:num_cells] for window in LOOP
    )
    held = first + len(Window) * num_cells + np.arange(num_cells)
    holdable = np.repeat(
        [value.holdable for value in problem.values], np.diff(problem.cell_offset)
    ).astype(np.bool_)
    some = holdable & (forward >= 0) & (backward >= 0) & (problem.term_costs[held] < 0)
    column_of_term[held[some]] = columns = builder.columns(problem.term_costs[held[some]])
    builder.at_least(forward[some], columns)
    builder.at_least(backward[some], columns)
    terms: IntArray = held[some]
    return terms
