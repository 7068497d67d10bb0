"""Tensor parallelism after Megatron (Shoeybi et al. 2019, Sec. 3), with sequence parallelism too.

The weights of forward products are split, and so are attention heads; the batch is not. What runs
between the blocks is whole on every device, or, with sequence parallelism (Korthikanti et al. 2022,
Sec. 4.2.2), split along the positions: then a block begins with an all_gather and ends with a
reduce_scatter instead of an all_reduce.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from hpc_alpa.errors import ShardingError
from hpc_alpa.ir.graph import Eqn, Var
from hpc_alpa.ops.contraction import split_equation
from hpc_alpa.plan.restrictions import Restrictions
from hpc_alpa.sharding import ShardingSpec, Strategy, rule_of
from hpc_alpa.sharding.places import Groups, Place, places
from hpc_alpa.sharding.strategies import IDLE
from hpc_alpa.step import FINISHED, FORWARD, LOOP, StepGraph


@dataclass(frozen=True)
class _Dims:
    """Dims of the loop's values, by what runs along them.

    Attributes:
        rows, positions: of the batch and of its tokens.
        width: of the activations between the blocks, which a layer norm normalises.
    """

    rows: frozenset[Place]
    positions: frozenset[Place]
    width: frozenset[Place]

    @property
    def whole(self) -> frozenset[Place]:
        """What tensor parallelism alone never splits."""
        return self.rows | self.positions | self.width


def tensor_parallel(axis: int, mesh: tuple[int, ...], step: StepGraph) -> Restrictions:
    """Weights of forward products and heads are split.

    Raises:
        ShardingError: no product has anything that divides.
    """
    return _megatron(axis, mesh[axis], step)


def sequence_parallel(axis: int, mesh: tuple[int, ...], step: StepGraph) -> Restrictions:
    """What is (rows, positions, width) between the blocks is split along the positions.

    Raises:
        ShardingError: no product has anything that divides, or there are no positions that do.
    """
    dims, size = _dims(step, merged=False), mesh[axis]
    inside = _megatron(axis, size, step)
    between = {
        e.output: d
        for e in step.graph.eqns
        if e.phase in LOOP
        and e.op.name not in ("dot_general", *FINISHED)
        and (d := _position(e.output, dims)) is not None
    }
    lengths = sorted({v.type.shape[d] for v, d in between.items()})
    if not lengths or any(n % size for n in lengths):
        found = (
            f"sequences have {', '.join(map(str, lengths))} positions"
            if lengths
            else "no value has rows, positions of integer tokens, and the width of a layer norm"
        )
        raise ShardingError(
            f"sequence parallelism over {size} devices has nothing to split: {found}. Choose "
            "another number of devices, or tpN without sp"
        )
    fixed = dims.rows | dims.width

    def strategy(e: Eqn, s: Strategy) -> bool:
        role = s.roles[axis]
        if e.phase not in LOOP or e.op.name == "dot_general":
            return inside.strategy(e, s)
        if e.output in between:
            split = axis in s.output.dims[between[e.output]]
            return split or axis in s.output.partial
        if role[0] in "+>-":
            return True
        return role != step.roles.get(e.output, IDLE) and fixed.isdisjoint(places(e)[role])

    def where(v: Var, spec: ShardingSpec) -> bool:
        if v not in step.batch:
            return inside.input(v, spec)
        return all(axis not in axes or (v, d) not in fixed for d, axes in enumerate(spec.dims))

    # What a block begins with is gathered again in backward: held, it is tpN's memory (Sec. 4.2.2).
    return Restrictions(strategy, where, lambda v: v not in between)


def _megatron(axis: int, size: int, step: StepGraph) -> Restrictions:
    weights = _from_parameters(step)
    whole = _dims(step, merged=True).whole

    def forward(e: Eqn) -> set[str]:
        """What a forward product may be split along: the weight's dims, or the heads."""
        left, right, out = split_equation(e.params_dict["equation"])
        if e.inputs[1] in weights:
            return narrow(e) & set(right)
        if e.inputs[0] in weights:
            return narrow(e) & set(left)
        return set(left) & set(right) & set(out) - {step.roles.get(e.output, IDLE)}

    def narrow(e: Eqn) -> set[str]:
        """Factors along which the axis may split an equation."""
        batch = step.roles.get(e.output, IDLE)
        return {f for f, same in places(e).items() if f != batch and whole.isdisjoint(same)}

    def product(e: Eqn) -> set[str]:
        """What the axis does in a product: it splits it, forward and backward alike.

        A vocabulary that does not divide leaves its product whole; heads that do not divide are an
        error.
        """
        found = forward(e) if e.phase == FORWARD else narrow(e)
        heads = e.phase == FORWARD and weights.isdisjoint(e.inputs)
        return found if heads or _divides(e, found, size) else {IDLE}

    products: dict[Var, set[str]] = {
        e.output: product(e)
        for e in step.graph.eqns
        if e.phase in LOOP and e.op.name == "dot_general"
    }

    def strategy(e: Eqn, s: Strategy) -> bool:
        role = s.roles[axis]
        if e.output in products:
            return role in products[e.output]
        return e.phase not in LOOP or role[0] in "+>-" or role in narrow(e)

    def where(v: Var, spec: ShardingSpec) -> bool:
        return all(axis not in axes or (v, d) not in whole for d, axes in enumerate(spec.dims))

    first = [e for e in step.graph.eqns if e.phase == FORWARD and e.output in products]
    if first and all(_divides(e, forward(e), size) is None for e in first):
        e = first[0]
        sizes = ", ".join(f"{f}={n}" for f, n in rule_of(e).sizes.items())
        raise ShardingError(
            f"tensor parallelism over {size} devices has nothing to split: dot_general at "
            f"{e.source or 'an unknown line'} ({rule_of(e)}, {sizes}), and every other product, "
            f"cannot be split, as no weight's dim is a multiple of {size}. Choose another number "
            "of devices, or method='auto'"
        )
    return Restrictions(strategy, where)


def _divides(e: Eqn, factors: Iterable[str], size: int) -> str | None:
    """A factor of an equation that so many devices can split."""
    sizes = rule_of(e).sizes
    return next((f for f in factors if sizes.get(f, 1) % size == 0), None)


def _dims(step: StepGraph, merged: bool) -> _Dims:
    """Follow rows, positions and width through the rules of the loop.

    Args:
        merged: whether a dim that runs along several factors, as (rows positions) of a reshape,
            makes one of them; else it is none of them.
    """
    along: Groups[Place] = Groups()
    inside = [e for e in step.graph.eqns if e.phase in LOOP or e.op.name == "enter"]
    for e in inside:
        found = places(e)
        times = Counter(place for same in found.values() for place in same)
        for same in found.values():
            alone = merged or e.op.name in ("slot", "stack")
            kept = [place for place in same if alone or times[place] == 1]
            for place in kept:
                along.join(place, kept[0])

    def run(starts: Iterable[Place]) -> frozenset[Place]:
        leaders = {along.find(p) for p in starts}
        return frozenset(p for p in along.members() if along.find(p) in leaders)

    tokens = [v for v in step.batch if not v.type.is_floating]
    norms = [e.output for e in inside if e.op.name == "layer_norm"]
    rows = run((v, 0) for v in step.batch)
    positions = run((v, d) for v in tokens for d in range(1, v.type.ndim))
    return _Dims(rows, positions, run((v, v.type.ndim - 1) for v in norms))


def _position(v: Var, dims: _Dims) -> int | None:
    """The dim of the positions of a value of rows, positions and width; None for other values."""
    found = [
        [d for d in range(v.type.ndim) if (v, d) in kind]
        for kind in (dims.rows, dims.positions, dims.width)
    ]
    return found[1][0] if all(len(ds) == 1 for ds in found) else None


def _from_parameters(step: StepGraph) -> frozenset[Var]:
    """Values in the loop that are the state's, not computed from the batch."""
    found = {v for v in step.graph.inputs if v not in step.batch and v.type.shape}
    for e in step.graph.eqns:
        moves_only = e.op.name in ("cast", "enter", "reshape", "transpose")
        if moves_only and all(v in found for v in e.inputs):
            found.add(e.output)
    return frozenset(found)
