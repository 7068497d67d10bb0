"""Dims that carry the batch's rows outside the loop over microbatches.

A slot is a run of rows of the whole batch, and devices split each slot. So along such a dim a
device holds one run of rows of every slot, where along others it holds one run of the whole:

    8 rows, 2 slots, 2 devices    rows of device 0: 0 1 4 5, of device 1: 2 3 6 7

What is computed row by row, or reduced over the rows, may stay split. Such a value meets only
operands that lie alike, or are the same in all rows; it may be gathered along the dim, not split.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from hpc_alpa.ir.graph import Eqn, Graph, Var
from hpc_alpa.sharding.spec import ShardingSpec
from hpc_alpa.sharding.strategies import Signature, Strategy, rule_for, signature

Dims = frozenset[int]
NONE: Dims = frozenset()


@dataclass
class Rows:
    """What carries rows in a graph.

    Attributes:
        num_slots: 1 leaves the rows in order, so nothing is kept from being split.
        dims: of each value, the dims that carry rows in the order of a device's slots.
        factors: for each equation's output, the factors of its rule that do.
        kept: for each equation's output, the factors that may not be split: their operands do not
            lie alike, or their order matters.
    """

    num_slots: int
    dims: dict[Var, Dims] = field(default_factory=dict)
    factors: dict[Var, frozenset[str]] = field(default_factory=dict)
    kept: dict[Var, frozenset[str]] = field(default_factory=dict)
    uniform: dict[Var, Dims] = field(default_factory=dict)  # dims along which a value is the same

    @classmethod
    def of(cls, graph: Graph, batch: frozenset[Var], num_slots: int) -> Rows:
        """Follow the rows from the batch, and from what the loop stacks, through a step's graph."""
        rows = cls(num_slots)
        for v in graph.inputs:
            rows.dims[v] = frozenset([0]) if v in batch else NONE
            rows.uniform[v] = NONE
        for e in graph.eqns:
            rows._follow(e)
        return rows

    def free(self, e: Eqn) -> bool:
        """Whether any strategy is allowed."""
        return self.num_slots == 1 or not self.kept[e.output]

    def allows(self, e: Eqn, s: Strategy) -> bool:
        """Whether a strategy leaves whole what must not be split."""
        return self.num_slots == 1 or self.kept[e.output].isdisjoint(s.roles)

    def allows_split_of(self, e: Eqn) -> bool:
        """Whether devices may split the slots that a `slot` cuts."""
        return self.num_slots == 1 or e.params_dict["dim"] in self.dims[e.inputs[0]]

    def converts(self, v: Var, source: ShardingSpec, target: ShardingSpec) -> bool:
        """Whether a value may change from one spec to another: its rows can only be gathered."""
        return self.num_slots == 1 or all(
            source.dims[d][: len(target.dims[d])] == target.dims[d] for d in self.dims[v]
        )

    def runs(self, v: Var, dim: int) -> int:
        """How many runs of rows a tile has along a dim, were it split."""
        return self.num_slots if dim in self.dims[v] else 1

    def split(self, v: Var, spec: ShardingSpec) -> bool:
        """Whether the tiles of a spec hold a run of rows of every slot."""
        return self.num_slots > 1 and any(spec.dims[d] for d in self.dims[v])

    # ---------------------------------------------------------------------------------- equations
    def _follow(self, e: Eqn) -> None:
        given = tuple((self.dims[v], self.uniform[v]) for v in e.inputs)
        found = _followed(signature(e), given)
        out = e.output
        self.dims[out], self.uniform[out], self.factors[out], self.kept[out] = found


@lru_cache(maxsize=65536)
def _followed(
    s: Signature, given: tuple[tuple[Dims, Dims], ...]
) -> tuple[Dims, Dims, frozenset[str], frozenset[str]]:
    """`dims`, `uniform`, `factors` and `kept` of an equation; equal layers ask for the same.

    Args:
        given: `dims` and `uniform` of each operand.
    """
    op, _, _, frozen = s
    rule, params = rule_for(s), dict(frozen)
    carry: set[str] = set()
    other: set[str] = set()
    varying: set[str] = set()
    kept: set[str] = set()
    for (rows_in, uniform_in), dims in zip(given, rule.inputs, strict=True):
        for d, factors in enumerate(dims):
            long = [f for f in factors if rule.sizes[f] > 1]
            if d in rows_in:
                # Of a dim that is taken apart only the slots' own rows stay rows.
                alone = len(long) == 1 or op.name == "slot"
                (carry if alone else kept).update(long)
            elif d not in uniform_in:
                other.update(long)
            if d not in uniform_in:
                varying.update(long)
    kept |= {f for f in carry if f in other or rule.marked(f, "@")}
    if op.name == "slot" and params["dim"] not in given[0][0]:
        # Rows in their own order: a slot's are in one device's tile only.
        kept.update(rule.inputs[0][params["dim"]])
    carry -= kept
    rows: set[int] = set()
    uniform: set[int] = set()
    for d, factors in enumerate(rule.output):
        long = [f for f in factors if rule.sizes[f] > 1]
        if op.name == "stack" and d == params["dim"]:
            rows.add(d)
        elif long and long[0] in carry:
            if op.name != "slot" or d != params["dim"]:
                rows.add(d)
        kept.update(f for f in long[1:] if f in carry)
        if not varying.intersection(long) and not any(
            rule.marked(f, m) for f in long for m in "@^!"
        ):
            uniform.add(d)
    return frozenset(rows), frozenset(uniform), frozenset(carry - kept), frozenset(kept)
