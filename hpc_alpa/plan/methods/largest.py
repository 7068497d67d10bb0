"""Each parameter split along its largest dim; everything else is free.

The heuristic of GSPMD users that Alpa compares with (Zheng et al. 2022, Sec. 8.2).
"""

from __future__ import annotations

from hpc_alpa.errors import ShardingError
from hpc_alpa.ir.graph import Var
from hpc_alpa.plan.methods.state import parameters, sizes_text
from hpc_alpa.plan.restrictions import Restrictions
from hpc_alpa.sharding import ShardingSpec
from hpc_alpa.step import StepGraph


def shard_largest(axis: int, mesh: tuple[int, ...], step: StepGraph) -> Restrictions:
    """The largest dim that the axis divides, the first of equal ones; whole where none does."""
    dims = {v: _largest(v, mesh[axis]) for v in parameters(step)}
    if all(d is None for d in dims.values()):
        raise ShardingError(
            f"shard_largest has nothing to split over {mesh[axis]} devices: no dim of a parameter "
            f"is a multiple of {mesh[axis]} ({sizes_text(step, dims)}). Choose another number of "
            "devices, or method='auto'"
        )

    def where(v: Var, spec: ShardingSpec) -> bool:
        if v not in dims:
            return True
        return all((axis in axes) == (d == dims[v]) for d, axes in enumerate(spec.dims))

    return Restrictions(input=where)


def _largest(v: Var, size: int) -> int | None:
    divided = [d for d, n in enumerate(v.type.shape) if n % size == 0]
    return max(divided, key=lambda d: (v.type.shape[d], -d), default=None)
