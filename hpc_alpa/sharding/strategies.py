"""Strategies: the ways in which a rule lets one equation run on a mesh.

Each mesh axis gets a role: a factor that it splits, a set of linear operands that are partial along
it (`+01`, `>0`), or nothing (`-`). Specs of operands and output follow from the roles.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast

from hpc_alpa.ir.graph import Eqn
from hpc_alpa.ir.op import Op, Types
from hpc_alpa.ir.types import TensorType
from hpc_alpa.ops.rule import Dim, Rule
from hpc_alpa.sharding.spec import MAX, SUM, MeshShape, ShardingSpec, num_tiles

IDLE = "-"


@dataclass(frozen=True, slots=True)
class Strategy:
    """One way to run one equation on a mesh.

    Attributes:
        roles: for each mesh axis, a factor's name, `+01` or `>0` (which operands are partial), or
            `-`.
        inputs, output: specs of the operands and of the output.
    """

    roles: tuple[str, ...]
    inputs: tuple[ShardingSpec, ...]
    output: ShardingSpec
    _hash: int = field(init=False, repr=False, compare=False, default=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.inputs, self.output)))

    def __hash__(self) -> int:
        return self._hash

    def axes_of(self, factor: str) -> tuple[int, ...]:
        """Mesh axes that split a factor, major first."""
        return tuple(a for a, r in enumerate(self.roles) if r == factor)

    def __str__(self) -> str:
        return ",".join(self.roles)


# Equal layers have equal equations but for their values' numbers: the caches leave these out.
Signature = tuple[Op, Types, TensorType, tuple[tuple[str, Any], ...]]


def signature(e: Eqn) -> Signature:
    """What an equation's rule, strategies and work depend on."""
    return e.op, e.input_types, e.output.type, e.params


def rule_of(e: Eqn) -> Rule:
    """The rule of an equation, bound to its shapes."""
    return rule_for(signature(e))


@lru_cache(maxsize=65536)
def rule_for(s: Signature) -> Rule:
    """The rule of all equations of a signature."""
    op, inputs, output, params = s
    return cast(Rule, op.rule(inputs, output, dict(params)))


def strategies(e: Eqn, mesh: MeshShape) -> tuple[Strategy, ...]:
    """Every strategy of an equation whose tiles are even, on a mesh of any number of axes."""
    return strategies_for(signature(e), mesh)


@lru_cache(maxsize=65536)
def strategies_for(s: Signature, mesh: MeshShape) -> tuple[Strategy, ...]:
    """`strategies` of all equations of a signature."""
    rule = rule_for(s)
    roles = possible_roles(rule)
    # On an axis of one device every role is the idle one.
    axes = (roles if n > 1 else [IDLE] for n in mesh)
    found = (apply_roles(rule, r, mesh) for r in itertools.product(*axes))
    return tuple(s for s in found if s is not None)


@lru_cache(maxsize=65536)
def strategy_for(s: Signature, roles: tuple[str, ...], mesh: MeshShape) -> Strategy | None:
    """The strategy of these roles for all equations of a signature; None where there is none."""
    rule = rule_for(s)
    known = len(roles) == len(mesh) and {*roles} <= {*possible_roles(rule)}
    return apply_roles(rule, roles, mesh) if known else None


def possible_roles(rule: Rule) -> list[str]:
    """What one mesh axis may do, the idle role first."""
    split = [f for f, n in rule.sizes.items() if not rule.marked(f, "^") and n > 1]
    sums = [SUM + "".join(map(str, s)) for s in rule.sums]
    maxima = [MAX + "".join(map(str, s)) for s in rule.maxima]
    return [IDLE, *split, *sums, *maxima]


def apply_roles(rule: Rule, roles: tuple[str, ...], mesh: MeshShape) -> Strategy | None:
    """The strategy of these roles, or None where the mesh does not divide or specs do not exist."""
    axes = {f: tuple(a for a, r in enumerate(roles) if r == f) for f in rule.sizes}
    if any(n % num_tiles(axes[f], mesh) for f, n in rule.sizes.items()):
        return None
    linear = {a: (r[0], set(map(int, r[1:]))) for a, r in enumerate(roles) if r[0] in (SUM, MAX)}
    reduced = {
        a: mark for f in rule.sizes for mark in (SUM, MAX) if rule.marked(f, mark) for a in axes[f]
    }
    inputs = []
    for k, dims in enumerate(rule.inputs):
        partial = {a: kind for a, (kind, operands) in linear.items() if k in operands}
        inputs.append(_spec(dims, partial, axes, rule, mesh))
    output = _spec(rule.output, {a: k for a, (k, _) in linear.items()} | reduced, axes, rule, mesh)
    if output is None or None in inputs:
        return None
    return Strategy(roles, tuple(s for s in inputs if s is not None), output)


def _spec(
    dims: tuple[Dim, ...],
    partial: dict[int, str],
    axes: dict[str, tuple[int, ...]],
    rule: Rule,
    mesh: MeshShape,
) -> ShardingSpec | None:
    """None when a tile would not be contiguous, or sums and maxima would mix."""
    split = []
    for dim in dims:
        # A factor behind one that is not split down to size 1 has no contiguous tile.
        whole = True
        for factor in dim:
            if axes[factor] and not whole:
                return None
            whole = whole and num_tiles(axes[factor], mesh) == rule.sizes[factor]
        split.append(tuple(a for factor in dim for a in axes[factor]))
    kinds = set(partial.values())
    if len(kinds) > 1:
        return None
    return ShardingSpec(tuple(split), tuple(sorted(partial)), kinds.pop() if kinds else "")
