"""Nodes whose choices decide each other's become tied: a conversion that allows one of each.

Where the allowed entries of a conversion pair the choices of producer and reader one to one, the
reader's choices are put into the producer's order, and the two are tied. In graphs of compilers
most nodes go this way (aliases, elementwise chains).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from hpc_alpa.plan.solve.problem import IntArray, MemoryRow, Problem, Reader, leaders

_Pairs = dict[int, list[tuple[int, IntArray]]]


@dataclass(frozen=True, eq=False)
class Forced:
    """The problem with more ties: choice i of a node is choice `order[node][i]` of the original.

    No order: nothing is forced.
    """

    problem: Problem
    order: tuple[IntArray, ...]

    @classmethod
    def none(cls, problem: Problem) -> Self:
        """No more ties."""
        return cls(problem, ())

    @classmethod
    def of(cls, problem: Problem, keep: Sequence[int] = ()) -> Self:
        """Tie what is forced; nothing where nodes are kept, whose choices must stay as they are."""
        pairs = {} if len(keep) else _one_to_one(problem)
        if not pairs:
            return cls.none(problem)
        order = [np.arange(len(cost)) for cost in problem.costs]
        ties = list(problem.ties)
        leader = leaders(problem).tolist()
        followers: dict[int, list[int]] = {}
        for v, first in enumerate(leader):
            followers.setdefault(first, []).append(v)
        seen: set[int] = set()
        for root in sorted(followers):
            if root in seen:
                continue
            seen.add(root)
            stack = [root]
            while stack:
                v = stack.pop()
                for member in followers[v]:
                    for other, partner in pairs.get(member, []):
                        group = leader[other]
                        if group in seen:
                            continue
                        seen.add(group)
                        for u in followers[group]:
                            order[u] = partner[order[member]]
                        ties[group] = root
                        stack.append(group)
        return cls(_permuted(problem, ties, order), tuple(order))

    def expand(self, choices: Sequence[int]) -> list[int]:
        """The choices of the original problem."""
        if not self.order:
            return list(choices)
        return [int(o[x]) for o, x in zip(self.order, choices, strict=True)]

    def shrink(self, choices: Sequence[int]) -> list[int]:
        """The choices of this problem."""
        if not self.order:
            return list(choices)
        return [int((o == x).argmax()) for o, x in zip(self.order, choices, strict=True)]


def _one_to_one(problem: Problem) -> _Pairs:
    """Per node, the nodes that it decides, with their choice for each of its own."""
    pairs: _Pairs = {}
    for value in problem.values:
        finite = np.isfinite(value.conversion)
        if finite.all():
            continue
        for reader in value.readers:
            v, u = value.producer, reader.node
            size = len(value.produced)
            if v == u or size != len(reader.needed):
                continue
            allowed = finite[value.produced][:, reader.needed]
            if (allowed.sum(axis=0) == 1).all() and (allowed.sum(axis=1) == 1).all():
                partner = allowed.argmax(axis=1)
                pairs.setdefault(v, []).append((u, partner))
                pairs.setdefault(u, []).append((v, np.argsort(partner)))
    return pairs


def _permuted(problem: Problem, ties: list[int], order: list[IntArray]) -> Problem:
    costs = tuple(cost[o] for cost, o in zip(problem.costs, order, strict=True))
    moved = [bool((o[1:] < o[:-1]).any()) for o in order]

    def own(node: int, classes: IntArray) -> IntArray:
        return classes[order[node]] if moved[node] else classes

    values = []
    for value in problem.values:
        if moved[value.producer] or any(moved[r.node] for r in value.readers):
            readers = (Reader(r.node, own(r.node, r.needed), r.window) for r in value.readers)
            made = own(value.producer, value.produced)
            value = replace(value, produced=made, readers=tuple(readers))
        values.append(value)
    term = np.arange(problem.num_terms)
    for v in np.flatnonzero(moved).tolist():
        o = order[v]
        term[problem.choice_offset[v] + o] = problem.choice_terms(v)
    rows = tuple(
        MemoryRow(row.name, row.limit, term[row.terms], row.nbytes) for row in problem.rows
    )
    live = problem.live and problem.live.at(
        term[problem.live.term], np.ones(len(problem.live.term), np.bool_)
    )
    return Problem(costs, tuple(values), rows, tuple(ties), problem.names, live, problem.holds)
