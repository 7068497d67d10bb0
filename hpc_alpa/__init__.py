"""hpc_alpa measures a machine, splits a training step over its devices, and runs it by MPI.

    step = hpc_alpa.parallelize(train_step)
    state = step.create(init, seed=0)
    for batch in batches:
        state, metrics = step(state, batch)

Names are loaded when they are first used: importing starts neither MPI nor CUDA.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hpc_alpa.runtime import hooks as _hooks

if TYPE_CHECKING:
    from hpc_alpa import nn, random
    from hpc_alpa.api import Batch, ParallelStep, fetch, parallelize
    from hpc_alpa.cluster import Cluster
    from hpc_alpa.errors import HpcAlpaError
    from hpc_alpa.plan.plan import Plan
    from hpc_alpa.pytree import static_field, tree_map
    from hpc_alpa.runtime.launch import init
    from hpc_alpa.trace import grad, layer, value_and_grad

__version__ = "0.1.0"

# alphabetical: public name -> module
_WHERE = {
    "Batch": "hpc_alpa.api",
    "Cluster": "hpc_alpa.cluster",
    "HpcAlpaError": "hpc_alpa.errors",
    "ParallelStep": "hpc_alpa.api",
    "Plan": "hpc_alpa.plan.plan",
    "fetch": "hpc_alpa.api",
    "grad": "hpc_alpa.trace",
    "init": "hpc_alpa.runtime.launch",
    "layer": "hpc_alpa.trace",
    "parallelize": "hpc_alpa.api",
    "static_field": "hpc_alpa.pytree",
    "tree_map": "hpc_alpa.pytree",
    "value_and_grad": "hpc_alpa.trace",
}
_ROOMS = ("nn", "random")

__all__ = [
    "Batch", "Cluster", "HpcAlpaError", "ParallelStep", "Plan", "fetch", "grad", "init", "layer",
    "nn", "parallelize", "random", "static_field", "tree_map", "value_and_grad",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"hpc_alpa.{name}")
    raise AttributeError(f"module 'hpc_alpa' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# Under a launcher an exception on one rank must end the job, also before MPI starts.
_hooks.install()
