"""Data parallelism: the batch is split; parameters and their updates are whole on every device."""

from __future__ import annotations

from hpc_alpa.ir.graph import Eqn, Var
from hpc_alpa.plan.restrictions import Restrictions
from hpc_alpa.sharding import ShardingSpec, Strategy, rule_of
from hpc_alpa.sharding.strategies import IDLE
from hpc_alpa.step import FINISHED, LOOP, StepGraph


def data_parallel(axis: int, mesh: tuple[int, ...], step: StepGraph) -> Restrictions:
    """The axis does in the loop what time does: it splits the batch, or holds terms of its sums."""

    def strategy(e: Eqn, s: Strategy) -> bool:
        role = s.roles[axis]
        if e.phase in LOOP:
            return role == step.roles.get(e.output, IDLE)
        return role == IDLE or role[0] in "+>" or role in step.rows.factors[e.output]

    def where(v: Var, spec: ShardingSpec) -> bool:
        if v in step.batch:
            return axis in spec.dims[0]
        split = _rows(step, v)
        return all((axis in axes) == (d in split) for d, axes in enumerate(spec.dims))

    return Restrictions(strategy, where)


def _rows(step: StepGraph, v: Var) -> frozenset[int]:
    """The dims along which a value that another stage makes in the loop is one slot's rows."""
    e = step.graph.producer.get(v)
    if e is None or e.phase not in LOOP or e.op.name in FINISHED:
        return frozenset()
    role = step.roles.get(v, IDLE)
    return frozenset(d for d, factors in enumerate(rule_of(e).output) if role in factors)
