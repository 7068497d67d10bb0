"""[Method, StepGraph] -> [Restrictions]"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from hpc_alpa.plan.methods.data import data_parallel
from hpc_alpa.plan.methods.largest import shard_largest
from hpc_alpa.plan.methods.method import Method
from hpc_alpa.plan.methods.tensor import sequence_parallel, tensor_parallel
from hpc_alpa.plan.methods.zero import zero
from hpc_alpa.plan.restrictions import Restrictions
from hpc_alpa.step import StepGraph

# kind of axis -> (the axis, the mesh, the step) -> what the kind leaves to choose from
_KINDS: dict[str, Callable[[int, tuple[int, ...], StepGraph], Restrictions]] = {  # alphabetical
    "dp": data_parallel,
    "largest": shard_largest,
    "tp": tensor_parallel,
    "tpsp": sequence_parallel,
    "zero1": partial(zero, 1),
    "zero2": partial(zero, 2),
    "zero3": partial(zero, 3),
}


def restrictions(method: Method, step: StepGraph) -> Restrictions:
    """What the method leaves to choose from, on meshes of its axes.

    Raises:
        ShardingError: the method has nothing to split, as no dim divides.
    """
    assert method.rest is None, f"{method.name} has an axis without a size: Method.over gives it"
    made = Restrictions()
    for axis, (kind, _) in enumerate(method.axes):
        made = made & _KINDS[kind](axis, method.mesh_shape, step)
    return made
