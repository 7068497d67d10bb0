"""Every assignment of a choice program at once, as arrays: the oracle for up to 1e8 of them.

Written from the definition in `plan.solve.problem`, and from none of the solvers. Holding may not
be priced by a row here, so that whatever can be held is held.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hpc_alpa.plan.solve.problem import Problem, Window, leaders

_AT_ONCE = 2**20


@dataclass(frozen=True, eq=False)
class Part:
    """An amount over the choices of some nodes."""

    scope: tuple[int, ...]
    amount: np.ndarray


def best(problem: Problem) -> float | None:
    """The least objective of all assignments that fit; None if there is none."""
    leader = leaders(problem).tolist()
    free = sorted(set(leader))
    sizes = [len(problem.costs[v]) for v in free]
    place = {v: free.index(leader[v]) for v in range(len(leader))}
    seconds, *rows = [
        [_placed(part, place) for part in parts]
        for parts in (_seconds(problem), *(_bytes(problem, r) for r in range(len(problem.rows))))
    ]
    fixed = 0  # leading nodes whose choices are looped over, so that the rest fits in memory
    while math.prod(sizes[fixed:]) > _AT_ONCE:
        fixed += 1
    least = math.inf
    for head in np.ndindex(*sizes[:fixed]):
        total = _total(seconds, head, sizes[fixed:])
        for row, parts in zip(problem.rows, rows, strict=True):
            over = _total(parts, head, sizes[fixed:]) > row.limit * (1 + 1e-9)
            total = np.where(over, np.inf, total)
        least = min(least, float(total.min()))
    return least if math.isfinite(least) else None


def _placed(part: Part, place: dict[int, int]) -> Part:
    """The part over leaders, in order; the diagonal where two nodes of it are tied."""
    letters = [place[v] for v in part.scope]
    scope = tuple(sorted(set(letters)))
    return Part(scope, np.einsum(part.amount, letters, list(scope)))


def _total(parts: list[Part], head: tuple[int, ...], sizes: list[int]) -> np.ndarray:
    total = np.zeros(sizes)
    for part in parts:
        index = tuple(head[v] if v < len(head) else slice(None) for v in part.scope)
        left = [v - len(head) for v in part.scope if v >= len(head)]
        shape = [sizes[v] if v in left else 1 for v in range(len(sizes))]
        total += part.amount[index].reshape(shape)
    return total


def _needed(problem: Problem, k: int, windows: tuple[Window, ...], t: int) -> Part:
    """Over producer and readers: whether some reader in the windows needs class t."""
    value = problem.values[k]
    scope = [value.producer]
    scope += [r.node for r in value.readers if r.window in windows and r.node not in scope]
    scope = list(dict.fromkeys(scope))
    grid = np.indices([len(problem.costs[v]) for v in scope], sparse=True)
    needed = np.zeros([len(problem.costs[v]) for v in scope], np.bool_)
    for reader in value.readers:
        if reader.window in windows:
            needed |= reader.needed[grid[scope.index(reader.node)]] == t
    return Part(tuple(scope), needed)


def _seconds(problem: Problem) -> Iterator[Part]:
    for v, cost in enumerate(problem.costs):
        yield Part((v,), cost)
    for k, value in enumerate(problem.values):
        windows: list[tuple[Window, ...]] = [(w,) for w in Window]
        if value.holdable:
            windows = [(Window.FORWARD, Window.BACKWARD), (Window.PREPARE,), (Window.APPLY,)]
        for together in windows:
            for t in range(value.conversion.shape[1]):
                part = _needed(problem, k, together, t)
                if part.amount.any():
                    pays = _along_producer(value.conversion[value.produced, t], part)
                    yield Part(part.scope, np.where(part.amount, pays, 0.0))


def _along_producer(amount: np.ndarray, part: Part) -> np.ndarray:
    return amount.reshape([-1] + [1] * (len(part.scope) - 1))


def _bytes(problem: Problem, row: int) -> Iterator[Part]:
    """What a row holds: bytes of choices, and of copies."""
    held: dict[int, float] = defaultdict(float)
    entries = problem.rows[row]
    for term, nbytes in zip(entries.terms.tolist(), entries.nbytes.tolist(), strict=True):
        held[term] += nbytes
    for v in range(len(problem.costs)):
        yield Part((v,), np.array([held[t] for t in problem.choice_terms(v).tolist()]))
    for k, value in enumerate(problem.values):
        for window in Window:
            terms = problem.copy_terms(k, window)
            nbytes = np.array([[held[t] for t in line] for line in terms.tolist()])
            for t in np.flatnonzero(nbytes.any(axis=0)).tolist():
                part = _needed(problem, k, (window,), t)
                amount = _along_producer(nbytes[value.produced, t], part)
                yield Part(part.scope, np.where(part.amount, amount, 0.0))
