"""Presolve of a choice program, exact: the optimum of the reduced problem expands to an optimum.

forced              nodes that decide each other's choice are tied                -> forced
ties                tied nodes become one node, and what equal layers share one   -> _merge_ties()
free holds          a copy that no memory row prices is held whenever it can be:
                    its forward and backward readers share one window             -> _merge_ties()
own readers         a conversion between tied nodes is a cost of their choice     -> _merge_ties()
arc consistency     choices with only forbidden conversions are dropped           -> _consistent()
dominance           a choice that another one replaces at no cost is dropped      -> _undominated()
equal values        become one value, as many times as dear                       -> _rebuild()
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from hpc_alpa.errors import InfeasibleError
from hpc_alpa.plan.solve.forced import Forced
from hpc_alpa.plan.solve.liveness import Liveness
from hpc_alpa.plan.solve.problem import (
    Assignment,
    FloatArray,
    IntArray,
    MemoryRow,
    Problem,
    Reader,
    Value,
    Window,
    complete,
    leaders,
    ragged,
)

Mask = NDArray[np.bool_]
_Reading = tuple[int, bytes, Window]  # a node, the classes it needs, when


@dataclass(frozen=True, eq=False)
class Reduced:
    """A smaller problem without ties, and the way back.

    Args:
        forced: the original problem with more ties, which the fields below speak of.
        node_of: reduced node of each original node.
        choices_of: per reduced node, the original choice behind each of its choices.
        held_of: per reduced value, the original value and the original class behind each needed
            class. Only a holdable value uses it, and that one stands for itself alone.
    """

    problem: Problem
    original: Problem
    forced: Forced
    node_of: IntArray
    choices_of: tuple[IntArray, ...]
    held_of: tuple[tuple[tuple[int, ...], IntArray], ...]

    def expand(self, assignment: Assignment) -> Assignment:
        """The assignment of the original problem with the same objective and memory."""
        choices = [int(self.choices_of[v][assignment.choices[v]]) for v in self.node_of.tolist()]
        held = [
            (original, int(self.held_of[k][1][t]))
            for k, t in assignment.held
            for original in self.held_of[k][0]
        ]
        return complete(self.original, self.forced.expand(choices), held)

    def shrink(self, assignment: Assignment) -> Assignment | None:
        """The reduced assignment that expands to this one's choices; None if some were dropped."""
        choices = [0] * len(self.choices_of)
        forced = self.forced.shrink(assignment.choices)
        for v, choice in zip(self.node_of.tolist(), forced, strict=True):
            at = int(np.searchsorted(self.choices_of[v], choice))
            if at == len(self.choices_of[v]) or self.choices_of[v][at] != choice:
                return None
            choices[v] = at
        return complete(self.problem, choices)


def reduce(problem: Problem, keep: Sequence[int] = ()) -> Reduced:
    """The reduced problem. Nodes in `keep` keep all their choices.

    Raises:
        InfeasibleError: forbidden choices and conversions leave a node without a choice.
    """
    forced = Forced.of(problem, keep)
    try:
        reduced = _reduce(forced.problem, keep)
    except InfeasibleError:
        forced = Forced.none(problem)  # whose messages speak of conversions that the user knows
        reduced = _reduce(problem, keep)
    return replace(reduced, original=problem, forced=forced)


def _reduce(problem: Problem, keep: Sequence[int]) -> Reduced:
    groups, node_of = np.unique(leaders(problem), return_inverse=True)
    touched = _touched(problem)
    merged, origin = _merge_ties(problem, groups, node_of, touched)
    kept = {int(node_of[node]) for node in keep}
    alive = _consistent(merged, kept)
    nbytes = _choice_nbytes(problem, node_of)
    alive = _undominated(merged, alive, kept, touched[[own[0] for own in origin]], nbytes)
    return _rebuild(problem, merged, origin, node_of, alive, touched)


def _touched(problem: Problem) -> Mask:
    """Values of which a memory row prices some copy."""
    if not problem.limited:
        return np.zeros(len(problem.values), np.bool_)
    first = problem.choice_offset[-1]
    cells = (np.flatnonzero(problem.priced[first:])) % max(1, problem.cell_offset[-1])
    touched = np.zeros(len(problem.values), np.bool_)
    holds = np.array(problem.holds, np.int64)
    touched[holds[np.searchsorted(problem.cell_offset, cells, side="right") - 1]] = True
    return touched[holds]


def _merge_ties(
    problem: Problem, groups: IntArray, node_of: IntArray, touched: Mask
) -> tuple[Problem, list[tuple[int, ...]]]:
    """One node per group of tied nodes, one value for those that become equal, as equal layers do.

    Returns the problem, without rows, and for each of its values the first original one.
    """
    costs = [np.zeros(len(problem.costs[node])) for node in groups]
    for node, cost in zip(node_of, problem.costs, strict=True):
        costs[node] = costs[node] + cost
    text: dict[int, bytes] = {}  # of an array, by its identity: layers share theirs

    def content(classes: IntArray) -> bytes:
        return text.setdefault(id(classes), classes.tobytes())

    found: dict[object, tuple[list[int], dict[_Reading, Reader], dict[int, int]]] = {}
    table = {id(value.conversion): value.conversion for value in problem.values}
    group_of = node_of.tolist()
    for k, (value, priced) in enumerate(zip(problem.values, touched.tolist(), strict=True)):
        merge = value.holdable and not priced
        readers: dict[_Reading, Reader] = {}
        for reader in value.readers:
            window = Window.FORWARD if merge and reader.window == Window.BACKWARD else reader.window
            readers[group_of[reader.node], content(reader.needed), window] = reader
        made = group_of[value.producer], content(value.produced), value.conversion.shape
        alone = priced and value.holdable
        key: object = problem.holds[k] if alone else (*made, priced, frozenset(readers))
        own, _, times = found.setdefault(key, ([], readers, {}))
        own.append(k)
        times[id(value.conversion)] = times.get(id(value.conversion), 0) + 1
    values, origin = [], []
    for own, unique, times in found.values():
        k = own[0]
        value, priced = problem.values[k], bool(touched[k])
        producer = group_of[value.producer]
        conversion = value.conversion
        if times != {id(conversion): 1}:
            conversion = np.sum([count * table[which] for which, count in times.items()], axis=0)
        alone = Counter(window for _, _, window in unique)
        readers_left = []
        for (node, _, window), reader in unique.items():
            if node == producer and alone[window] == 1 and not priced:
                costs[producer] = costs[producer] + conversion[value.produced, reader.needed]
            else:
                readers_left.append(Reader(node, reader.needed, window))
        if readers_left:
            holdable = value.holdable and priced
            kept = tuple(readers_left)
            values.append(Value(producer, value.produced, kept, conversion, holdable, value.name))
            origin.append(tuple(own))
    names = tuple(problem.names[v] for v in groups)
    return Problem(tuple(costs), tuple(values), names=names), origin


def _choice_nbytes(problem: Problem, node_of: IntArray) -> list[FloatArray]:
    """Bytes [row, choice] of each group in the memory rows."""
    nbytes = [np.zeros((0, 1))] * (int(node_of.max(initial=-1)) + 1)
    if problem.rows:
        sizes = np.zeros(len(nbytes), np.int64)
        sizes[node_of] = np.diff(problem.choice_offset)
        start = np.concatenate([[0], np.cumsum(sizes)])
        owner, place = ragged(sizes[node_of])
        column = start[node_of[owner]] + place
        ones = (np.ones(len(column)), (np.arange(len(column)), column))
        to_group = scipy.sparse.csr_array(ones, (len(column), int(start[-1])))
        nbytes = np.split(
            (problem.row_matrix[:, : len(column)] @ to_group).toarray(), start[1:-1], 1
        )
    if problem.live is not None:
        for node, own in _live_nbytes(problem, problem.live):
            known = nbytes[node_of[node]]
            nbytes[node_of[node]] = np.concatenate([known, own]) if known.size else own
    return nbytes


def _live_nbytes(problem: Problem, live: Liveness) -> Iterator[tuple[int, FloatArray]]:
    """Nodes with the bytes [interval, choice] of their entries."""
    chosen = np.flatnonzero(live.term < problem.choice_offset[-1])
    node = np.searchsorted(problem.choice_offset, live.term[chosen], side="right") - 1
    order = np.lexsort((live.stop[chosen], live.start[chosen], node))
    key = np.stack([node, live.start[chosen], live.stop[chosen]])[:, order]
    new = np.flatnonzero((np.diff(key, axis=1, prepend=-1) != 0).any(axis=0))
    for a, b in itertools.pairwise([*new.tolist(), len(order)]):
        v = int(key[0, a])
        own = np.zeros((1, len(problem.costs[v])))
        entries = chosen[order[a:b]]
        np.add.at(own[0], live.term[entries] - problem.choice_offset[v], live.nbytes[entries])
        yield v, own


def _consistent(problem: Problem, kept: set[int]) -> list[Mask]:
    """Choices that have, for each conversion, a choice at its other end that is not forbidden."""
    alive = [np.isfinite(cost) for cost in problem.costs]
    for node in kept:
        alive[node][:] = True
    partial = [
        (value, reader, np.isfinite(value.conversion)[np.ix_(value.produced, reader.needed)])
        for value in problem.values
        if not np.isfinite(value.conversion).all()
        for reader in value.readers
    ]
    changed = True
    while changed:
        changed = False
        for value, reader, possible in partial:
            v, u = value.producer, reader.node
            support = {
                v: (possible & alive[u]).any(axis=1),
                u: (possible & alive[v][:, None]).any(axis=0),
            }
            if v == u:
                support = {v: possible.diagonal()}
            for node in support.keys() - kept:
                if (alive[node] & ~support[node]).any():
                    alive[node] &= support[node]
                    changed = True
                    if not alive[node].any():
                        _raise_inconsistent(problem, node, value, reader)
    for node, mask in enumerate(alive):
        if not mask.any():
            raise InfeasibleError(f"every choice of {problem.names[node]} has infinite cost")
    return alive


def _raise_inconsistent(problem: Problem, node: int, value: Value, reader: Reader) -> None:
    raise InfeasibleError(
        f"no choice of {problem.names[node]} is possible: each needs a forbidden conversion, the "
        f"last one of {value.name} from {problem.names[value.producer]} to "
        f"{problem.names[reader.node]}. Allow a conversion between them or another choice of either"
    )


def _undominated(
    problem: Problem,
    alive: list[Mask],
    kept: set[int],
    touched: Mask,
    nbytes: list[FloatArray],
) -> list[Mask]:
    """Choices without another that costs no more in seconds, bytes and every conversion.

    A class may stand in for another if its conversions cost no more; a needed class only where its
    reader is alone in the window, since elsewhere its copy may be paid for already.
    """
    replaces: dict[int, list[tuple[IntArray, Mask]]] = defaultdict(list)
    for value, priced in zip(problem.values, touched, strict=True):
        table = value.conversion
        alone = Counter(reader.window for reader in value.readers)
        same: Mask = np.eye(max(table.shape), dtype=np.bool_)
        better: Mask = same if priced else np.all(table[:, None] <= table[None, :], axis=2)
        replaces[value.producer].append((value.produced, better))
        for reader in value.readers:
            free = alone[reader.window] == 1 and not priced
            better = np.all(table.T[:, None] <= table.T[None, :], axis=2) if free else same
            replaces[reader.node].append((reader.needed, better))
    result = []
    for node, cost in enumerate(problem.costs):
        if node in kept:
            result.append(alive[node])
            continue
        no_worse = cost[:, None] <= cost[None, :]
        no_worse &= (nbytes[node][:, :, None] <= nbytes[node][:, None, :]).all(axis=0)
        for classes, better in replaces[node]:
            no_worse &= better[np.ix_(classes, classes)]
        first = np.tri(len(cost), k=-1, dtype=np.bool_).T  # of equal choices the first one stays
        dominated = (no_worse & (~no_worse.T | first) & alive[node][:, None]).any(axis=0)
        result.append(alive[node] & ~dominated)
    return result


def _rebuild(
    problem: Problem,
    merged: Problem,
    origin: list[tuple[int, ...]],
    node_of: IntArray,
    alive: list[Mask],
    touched: Mask,
) -> Reduced:
    """The problem of the choices that are alive, with equal values merged and rows renumbered."""
    choices_of = tuple(np.flatnonzero(mask) for mask in alive)
    costs = tuple(cost[kept] for cost, kept in zip(merged.costs, choices_of, strict=True))
    found: dict[object, int] = {}  # what makes values equal -> index of the first
    values: list[Value] = []
    held_of: list[tuple[tuple[int, ...], IntArray]] = []
    classes: list[tuple[int, int, IntArray, IntArray]] = []  # value, new value, its p and t
    for own, value in zip(origin, merged.values, strict=True):
        k = own[0]
        if not value.readers:
            continue
        num_made, num_wanted = value.conversion.shape
        produced, made = _compress([value.produced[choices_of[value.producer]]], num_made)
        needed, wanted = _compress(
            [r.needed[choices_of[r.node]] for r in value.readers], num_wanted
        )
        conversion = value.conversion[made][:, wanted]
        if not (touched[k] or conversion.any()):
            continue
        readers = tuple(replace(r, needed=t) for r, t in zip(value.readers, needed, strict=True))
        small = replace(value, produced=produced[0], readers=readers, conversion=conversion)
        new = found.setdefault(k if value.holdable else _signature(small), len(values))
        if new == len(values):
            values.append(small)
            held_of.append((own, wanted))
        else:
            values[new] = replace(values[new], conversion=values[new].conversion + conversion)
        classes += [(j, new, made, wanted) for j in own]
    bare = Problem(costs, tuple(values), names=merged.names)
    touched_classes = [c for c in classes if touched[c[0]]]
    rows, live = _renumber(problem, bare, node_of, choices_of, touched_classes)
    result = replace(bare, rows=rows, live=live)
    return Reduced(result, problem, Forced.none(problem), node_of, choices_of, tuple(held_of))


def _compress(parts: Sequence[IntArray], bound: int) -> tuple[list[IntArray], IntArray]:
    """The parts renumbered to the classes below `bound` that they use, and these classes."""
    used = np.zeros(bound, np.bool_)
    for part in parts:
        used[part] = True
    if used.all():
        return list(parts), np.arange(bound)
    code = np.cumsum(used) - 1
    return [code[part] for part in parts], np.flatnonzero(used)


def _signature(value: Value) -> object:
    readers = frozenset((r.node, r.needed.tobytes(), r.window) for r in value.readers)
    return value.producer, value.produced.tobytes(), readers, value.conversion.tobytes()


def _renumber(
    problem: Problem,
    bare: Problem,
    node_of: IntArray,
    choices_of: tuple[IntArray, ...],
    classes: Iterable[tuple[int, int, IntArray, IntArray]],
) -> tuple[tuple[MemoryRow, ...], Liveness | None]:
    """The memory rows over the terms of the reduced problem; dropped terms are never active."""
    if not problem.limited:
        return (), None
    dropped = bare.num_terms
    new_term = np.full(problem.num_terms, dropped)
    sizes = np.diff(bare.choice_offset)
    owner, place = ragged(sizes[node_of])
    group = node_of[owner]
    choice = np.concatenate(choices_of)[bare.choice_offset[group] + place]
    new_term[problem.choice_offset[owner] + choice] = bare.choice_offset[group] + place
    kinds = np.arange(len(Window) + 1)[:, None]  # the copy of each window, and the held one
    ends = (problem, bare)
    steps = [p.choice_offset[-1] + kinds * p.cell_offset[-1] for p in ends]
    for old, new, made, wanted in classes:
        size, start = len(made) * len(wanted), bare.cell_offset[new]
        place = made[:, None] * problem.values[old].conversion.shape[1] + wanted
        cells = problem.cell_offset[old] + place.ravel()
        new_term[steps[0] + cells] = steps[1] + np.arange(start, start + size)
    rows = []
    for row in problem.rows:
        terms = new_term[row.terms]
        keep = terms < dropped
        rows.append(replace(row, terms=terms[keep], nbytes=row.nbytes[keep]))
    if problem.live is None:
        return tuple(rows), None
    terms = new_term[problem.live.term]
    live = problem.live.at(terms, (terms < dropped) & (problem.live.nbytes > 0))
    live = live.compressed(_most(bare, live))
    return tuple(rows), live if live.num_points else None


def _most(problem: Problem, live: Liveness) -> FloatArray:
    """Per entry, the most bytes of its node's choices in the interval, given to one entry."""
    most = live.nbytes.copy()
    chosen = np.flatnonzero(live.term < problem.choice_offset[-1])
    node = np.searchsorted(problem.choice_offset, live.term[chosen], side="right") - 1
    order = np.lexsort((-live.nbytes[chosen], live.stop[chosen], live.start[chosen], node))
    key = np.stack([node, live.start[chosen], live.stop[chosen]])[:, order]
    repeated = (np.diff(key, axis=1, prepend=-1) == 0).all(axis=0)
    most[chosen[order[repeated]]] = 0.0
    return most
