"""What there is to choose from: specs of a value, strategies of an equation; once for equals."""

from __future__ import annotations

from functools import cache, lru_cache

from hpc_alpa.ir.types import TensorType
from hpc_alpa.sharding import ShardingSpec, Strategy, num_tiles
from hpc_alpa.sharding.strategies import IDLE, Signature, strategies_for


def specs_of(type: TensorType, mesh: tuple[int, ...]) -> tuple[ShardingSpec, ...]:
    """Every way to split a value that is not partial; the replicated one first."""
    return _specs_of(type.shape, mesh)


@lru_cache(maxsize=4096)
def _specs_of(shape: tuple[int, ...], mesh: tuple[int, ...]) -> tuple[ShardingSpec, ...]:
    @cache
    def extend(axis: int) -> tuple[ShardingSpec, ...]:
        if axis < 0:
            return (ShardingSpec.replicated(len(shape)),)
        found = []
        for spec in extend(axis - 1):
            found.append(spec)
            for d in range(len(shape) if mesh[axis] > 1 else 0):
                orders = {(*spec.dims[d], axis), (axis, *spec.dims[d])}
                for axes in sorted(orders):
                    if shape[d] % num_tiles(axes, mesh) == 0:
                        found.append(spec.with_dim(d, axes))
        return tuple(dict.fromkeys(found))

    return extend(len(mesh) - 1)


@lru_cache(maxsize=4096)
def worthwhile(s: Signature, mesh: tuple[int, ...], has_maximum: bool) -> tuple[Strategy, ...]:
    """The strategies without those that no plan would choose: it keeps the program small.

    An axis of one device has nothing to split; a product of a partial operand is the whole product
    on every device; partial maxima travel only where a maximum is reduced.
    """

    def pays(n: int, role: str) -> bool:
        if n == 1 and role != IDLE:
            return False
        if role[0] == "+" and s[0].name == "dot_general":
            return False
        return role[0] != ">" or has_maximum

    found = strategies_for(s, mesh)
    return tuple(w for w in found if all(pays(n, r) for n, r in zip(mesh, w.roles, strict=True)))


@lru_cache(maxsize=4096)
def distinct(ways: tuple[Strategy, ...]) -> tuple[Strategy, ...]:
    """One strategy for each way in which operands and output lie."""
    found: dict[object, Strategy] = {}
    for s in ways:
        found.setdefault((s.inputs, s.output), s)
    return tuple(found.values())
