"""Which dims of which values run along one factor, and what belongs together because of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

from hpc_alpa.ir.graph import Eqn, Var
from hpc_alpa.ops.rule import Dim, Rule
from hpc_alpa.sharding.strategies import rule_of

Place = tuple[Var, int]  # a dim of a value
T = TypeVar("T")


class Groups(Generic[T]):
    """Disjoint groups of things, joined one pair after the other."""

    def __init__(self) -> None:
        self._parent: dict[T, T] = {}

    def find(self, x: T) -> T:
        """The one that leads x's group: x itself where it is new."""
        while self._parent.setdefault(x, x) != x:
            self._parent[x] = self._parent[self._parent[x]]
            x = self._parent[x]
        return x

    def join(self, x: T, leader: T) -> None:
        """One group of two, led by the second's leader."""
        self._parent[self.find(x)] = self.find(leader)

    def __contains__(self, x: T) -> bool:
        return x in self._parent

    def members(self) -> tuple[T, ...]:
        """All that was joined or asked for, in that order."""
        return tuple(self._parent)


def places_of(rule: Rule, values: Iterable[Var]) -> dict[str, list[Place]]:
    """The dims that each factor of a rule runs along.

    Args:
        values: the operands, then the output.
    """
    found: dict[str, list[Place]] = {f: [] for f in rule.sizes}
    operands: tuple[tuple[Dim, ...], ...] = (*rule.inputs, rule.output)
    for v, dims in zip(values, operands, strict=True):
        for d, factors in enumerate(dims):
            for factor in factors:
                found[factor].append((v, d))
    return found


def places(e: Eqn) -> dict[str, list[Place]]:
    """The dims of an equation's operands and output that each factor runs along."""
    return places_of(rule_of(e), (*e.inputs, e.output))
