"""Seconds of equations and conversions on one mesh under one cost model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hpc_alpa.cluster import DeviceMesh
from hpc_alpa.cost import Cost, Work
from hpc_alpa.ir.graph import Eqn
from hpc_alpa.ir.types import TensorType
from hpc_alpa.ops.products import product_dims
from hpc_alpa.plan.paths import Paths, price_on
from hpc_alpa.plan.solve.problem import FloatArray
from hpc_alpa.sharding import Strategy
from hpc_alpa.sharding.local import local_types
from hpc_alpa.sharding.phases import Interior, phases, runs_in_phases
from hpc_alpa.sharding.strategies import signature


def work_of(e: Eqn, inputs: Sequence[TensorType], output: TensorType) -> Work:
    """What the cost model prices of an equation: operands read, the result written.

    A view, and the sum of one term, which is that term, move no bytes.

    Args:
        inputs, output: types of the tiles of one device.
    """
    params = e.params_dict
    only_term = e.op.name in ("accumulate", "accumulate_max") and params["slots"] == 1
    if e.op.view or only_term:
        return Work("enter" if only_term else e.op.name, 0.0, 0.0, output.dtype)
    dims = product_dims(e.op.name, tuple(inputs), output, params)
    nbytes = sum(t.nbytes for t in inputs) + output.nbytes
    dtype = output.dtype if output.is_floating or not inputs else inputs[0].dtype
    return Work(e.op.name, e.op.flops(tuple(inputs), output, params), float(nbytes), dtype, dims)


def local_work(e: Eqn, strategy: Strategy, mesh: tuple[int, ...]) -> Work:
    """The work of one device under a strategy."""
    return work_of(e, *local_types(e, strategy, mesh))


@dataclass(frozen=True)
class Pricing:
    """Seconds on one mesh under one cost model.

    Attributes:
        seconds: of the equations priced so far, by all that their price depends on.
    """

    mesh: DeviceMesh
    cost: Cost
    paths: Paths
    seconds: dict[object, float] = field(default_factory=dict)
    vectors: dict[object, FloatArray] = field(default_factory=dict)

    @classmethod
    def on(cls, mesh: DeviceMesh, cost: Cost) -> Pricing:
        """Nothing priced yet."""
        return cls(mesh, cost, Paths(mesh.shape, price_on(mesh, cost)))

    def compute_all(self, e: Eqn, ways: tuple[Strategy, ...]) -> FloatArray:
        """`compute` of each of some strategies; equal layers ask for the same."""
        at = (signature(e), ways)
        if at not in self.vectors:
            self.vectors[at] = np.array([self.compute(e, s) for s in ways])
        return self.vectors[at]

    def compute(self, e: Eqn, strategy: Strategy) -> float:
        """Seconds of one run of an equation, the all_reduces of a fused one included."""
        key = (e.op.name, e.input_types, e.output.type, e.params, strategy.roles)
        if key not in self.seconds:
            self.seconds[key] = self._compute(e, strategy)
        return self.seconds[key]

    def _compute(self, e: Eqn, strategy: Strategy) -> float:
        shape = self.mesh.shape
        if not runs_in_phases(e, strategy):
            return self.cost.compute(local_work(e, strategy, shape))
        total = 0.0
        for step in phases(e, strategy, shape):
            if isinstance(step, Interior):
                total += self.cost.compute(local_work(step.eqn, step.strategy, shape))
            else:
                m = step.move
                total += self.paths.price(m, m.nbytes(step.value.type.nbytes, shape))
        return total
