"""Why a choice that one could think of is not among a node's: the reasons, for `plan.why`.

Only one order of two axes along a dim is asked about; the other has the same reason.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from hpc_alpa.ir.graph import Eqn, Var
from hpc_alpa.plan.intra_op import IntraOp
from hpc_alpa.sharding import ShardingSpec, apply_roles, num_tiles, rule_of
from hpc_alpa.sharding.strategies import IDLE, possible_roles

RESTRICTED = "the method or a pin leaves it out"
UNEVEN = "its tiles would not be contiguous, or sums and maxima would mix"
UPDATE = "what updates one parameter lies alike, and not partial"
POINTLESS = "no plan gains by it: a product of a partial operand, or a maximum of none"
SLOTS = "it would split rows that the microbatches have in another order"


@dataclass(frozen=True)
class Excluded:
    """Choices that are left out for one reason: specs of an input, roles of an equation."""

    reason: str
    choices: tuple[str, ...]


def excluded(program: IntraOp, node: int) -> tuple[Excluded, ...]:
    """The choices that a node does not have, by their reason, in the order of first mention.

    Args:
        program: after `problem()`.
        node: an input of the stage's graph, or one of its equations.
    """
    graph = program.stage.graph
    n_in = len(graph.inputs)
    if node < n_in:
        found = _specs(program, graph.inputs[node], program.input_specs[node])
    else:
        found = _roles(program, graph.eqns[node - n_in], node - n_in)
    reasons: dict[str, list[str]] = {}
    for choice, reason in found:
        reasons.setdefault(reason, []).append(choice)
    return tuple(Excluded(reason, tuple(choices)) for reason, choices in reasons.items())


def _specs(program: IntraOp, v: Var, left: tuple[ShardingSpec, ...]) -> Iterator[tuple[str, str]]:
    mesh = program.pricing.mesh.shape
    places = [(None, *range(v.type.ndim)) if n > 1 else (None,) for n in mesh]
    for where in itertools.product(*places):
        dims = tuple(
            tuple(a for a, d in enumerate(where) if d == dim) for dim in range(v.type.ndim)
        )
        spec = ShardingSpec(dims)
        if spec not in left:
            yield str(spec), _why_no_spec(program, v, spec, mesh)


def _why_no_spec(program: IntraOp, v: Var, spec: ShardingSpec, mesh: tuple[int, ...]) -> str:
    for d, axes in enumerate(spec.dims):
        if v.type.shape[d] % num_tiles(axes, mesh):
            return _indivisible(f"dim {d}", v.type.shape[d], axes, mesh)
    if not program.restrictions.input(v, spec):
        return RESTRICTED
    if v in program.step.batch:
        slots = program.step.num_microbatches
        rows = v.type.shape[0] // slots
        if rows % num_tiles(spec.dims[0], mesh):
            return _indivisible(f"each of {slots} microbatches", rows, spec.dims[0], mesh)
    return UPDATE if v in program.updates.inputs else SLOTS


def _roles(program: IntraOp, e: Eqn, k: int) -> Iterator[tuple[str, str]]:
    mesh = program.pricing.mesh.shape
    rule = rule_of(e)
    for factor, size in rule.sizes.items():
        if size > 1 and rule.marked(factor, "^"):
            yield (
                factor,
                f"{e.op.name} ({rule}) needs every element of factor {factor} in one place",
            )
    left = program.equation_strategies[k]
    known = {(s.inputs, s.output) for s in left}
    roles = possible_roles(rule)
    for way in itertools.product(*(roles if n > 1 else [IDLE] for n in mesh)):
        split = {f: tuple(a for a, r in enumerate(way) if r == f) for f in rule.sizes}
        uneven = [f for f, n in rule.sizes.items() if n % num_tiles(split[f], mesh)]
        strategy = apply_roles(rule, way, mesh)
        text = ",".join(way)
        if uneven:
            f = uneven[0]
            yield text, _indivisible(f"factor {f}", rule.sizes[f], split[f], mesh)
        elif strategy is None:
            yield text, UNEVEN
        elif (strategy.inputs, strategy.output) in known:
            continue  # it lies as one of those that are left
        elif not program.restrictions.strategy(e, strategy):
            yield text, RESTRICTED
        elif e.output in program.updates.leader:
            yield text, UPDATE
        else:
            yield text, POINTLESS if program.rows.allows(e, strategy) else SLOTS


def _indivisible(what: str, size: int, axes: tuple[int, ...], mesh: tuple[int, ...]) -> str:
    over = " x ".join(f"axis {a} ({mesh[a]})" for a in axes)
    return f"{what} has {size} elements, no multiple of {over}"
