"""The equations that update one parameter: elementwise, of one shape, once a step.

They lie alike, with the optimizer state that only they read: one choice for all of them. A plan
gains nothing from another spec in their middle, and an optimizer has most of a step's equations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from hpc_alpa.ir.graph import Eqn, Var
from hpc_alpa.sharding import ShardingSpec, Strategy, apply_roles
from hpc_alpa.sharding.places import Groups
from hpc_alpa.sharding.strategies import IDLE, Signature, rule_for, signature
from hpc_alpa.step import APPLY, StageGraph
from hpc_alpa.step.rows import Rows

ELEMENTWISE = (  # alphabetical
    "add", "cast", "compare", "div", "exp", "log", "max", "min", "mul", "neg", "pow", "rsqrt",
    "select", "sqrt", "sub", "tanh",
)  # fmt: skip


@dataclass(frozen=True)
class Updates:
    """Groups of equations that lie alike.

    Attributes:
        leader: for each output of a grouped equation, the output that stands for its group.
        inputs: for each input that only one group reads, that group's leader.
    """

    leader: Mapping[Var, Var]
    inputs: Mapping[Var, Var]

    @classmethod
    def of(cls, stage: StageGraph, rows: Rows) -> Updates:
        """The groups of a stage; equations on the batch's rows stay out of them."""
        graph = stage.graph
        members = [
            e
            for e in graph.eqns
            if e.phase == APPLY
            and e.op.name in ELEMENTWISE
            and e.output.type.shape
            and not any(rows.dims[v] for v in (*e.inputs, e.output))
        ]
        grouped = {e.output for e in members}
        together: Groups[Var] = Groups()
        for e in members:
            for v in e.inputs:
                if v in grouped and v.type.shape == e.output.type.shape:
                    together.join(e.output, v)
        leader = {v: together.find(v) for v in grouped}
        inputs: dict[Var, Var] = {}
        for v in graph.inputs:
            readers = graph.readers[v]
            groups = {leader.get(e.output) for e in readers}
            only = groups.pop() if len(groups) == 1 else None
            if only is not None and v.type.shape == only.type.shape:
                inputs[v] = only
        return cls(leader, inputs)


def uniform(
    e: Eqn,
    specs: tuple[ShardingSpec, ...],
    mesh: tuple[int, ...],
    allowed: Callable[[Eqn, Strategy], bool],
) -> tuple[Strategy, ...]:
    """The strategies under which operands and output all lie in one of the specs, in their order.

    What the restrictions forbid is left out for every member of a group alike: they see only roles,
    which are the same for all.
    """
    return tuple(s for s in _uniform(signature(e), specs, mesh) if allowed(e, s))


@lru_cache(maxsize=4096)
def _uniform(
    s: Signature, specs: tuple[ShardingSpec, ...], mesh: tuple[int, ...]
) -> tuple[Strategy, ...]:
    rule = rule_for(s)
    factors = [dim[0] for dim in rule.output]
    found = []
    for spec in specs:
        roles = [IDLE] * len(mesh)
        for factor, axes in zip(factors, spec.dims, strict=True):
            for a in axes:
                roles[a] = factor
        strategy = apply_roles(rule, tuple(roles), mesh)
        if strategy is not None and strategy.output == spec:
            found.append(strategy)
    return tuple(found)
