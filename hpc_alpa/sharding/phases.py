"""How a fused equation runs when a factor marked `!` is split.

Softmax over classes that are split over mesh axis 0, on two devices:

    device 0  local max ─┐              ┌─ exp(x - max), local sum ─┐              ┌─ divide
                         all_reduce (max)                           all_reduce (sum)
    device 1  local max ─┘              └─ exp(x - max), local sum ─┘              └─ divide

The equation's own graph (`transform.expanded`) runs with the same factors split; each statistic
that comes out partial is all_reduced at once, so nothing but statistics travels. Windows on a split
dim exchange the edges of tiles instead (`sharding.halo`).
"""

from __future__ import annotations

from functools import lru_cache

from hpc_alpa.ir.graph import Eqn, Graph, Var
from hpc_alpa.ops.halo import HALOS
from hpc_alpa.sharding.conversions import Move
from hpc_alpa.sharding.halo import halo_phases
from hpc_alpa.sharding.places import Groups, Place, places, places_of
from hpc_alpa.sharding.spec import SUM, MeshShape, ShardingSpec
from hpc_alpa.sharding.steps import Exchange, Interior, Phase
from hpc_alpa.sharding.strategies import IDLE, Strategy, apply_roles, rule_of
from hpc_alpa.transform.expand import expanded

__all__ = ["Exchange", "Interior", "Phase", "interior", "phases", "runs_in_phases"]


def runs_in_phases(e: Eqn, strategy: Strategy) -> bool:
    """Whether the strategy splits a factor marked `!`, so that one kernel cannot run it."""
    rule = rule_of(e)
    return any(rule.marked(f, "!") and strategy.axes_of(f) for f in rule.sizes)


def phases(e: Eqn, strategy: Strategy, mesh: MeshShape) -> tuple[Phase, ...]:
    """The steps that run a fused equation under a strategy; run them in order.

    The values are those of `interior`: its input k arrives in spec `strategy.inputs[k]`, and its
    output, made by the last `Interior`, leaves in `strategy.output`.
    """
    return _interior(e, strategy, mesh)[1]


def interior(e: Eqn, strategy: Strategy, mesh: MeshShape) -> Graph:
    """The graph that runs instead of an equation in phases, on whole values."""
    return _interior(e, strategy, mesh)[0]


@lru_cache(maxsize=65536)
def _interior(e: Eqn, strategy: Strategy, mesh: MeshShape) -> tuple[Graph, tuple[Phase, ...]]:
    if e.op.name in HALOS:
        return halo_phases(e, strategy, mesh)
    return expanded(e), _statistics_phases(e, strategy, mesh)


def _statistics_phases(e: Eqn, strategy: Strategy, mesh: MeshShape) -> tuple[Phase, ...]:
    graph = expanded(e)
    factor_of = _factors(e, graph)
    held = dict(zip(graph.inputs, strategy.inputs, strict=True))
    steps: list[Phase] = []

    def exchange(v: Var, kind: str, axes: tuple[int, ...], target: ShardingSpec) -> None:
        steps.append(Exchange(v, Move(kind, axes, 0, 0, held[v], target)))
        held[v] = target

    roles = {ie: _roles(ie, strategy, factor_of) for ie in graph.eqns}
    last = graph.eqns[-1]
    kept = _kept_partial(graph, strategy, roles, mesh)
    for ie in graph.eqns:
        chosen = apply_roles(rule_of(ie), roles[ie], mesh)
        assert chosen is not None, (e, strategy, ie, roles[ie])
        for v, need in zip(ie.inputs, chosen.inputs, strict=True):
            if held[v] != need and ie is last:
                missing = tuple(a for a in need.partial if a not in held[v].partial)
                exchange(v, "to_partial_sum", missing, need)
            assert held[v] == need, (e, strategy, ie, held[v], need)
        steps.append(Interior(ie, chosen))
        out, wanted = chosen.output, kept.get(ie.output, ())
        held[ie.output] = out
        if surplus := tuple(a for a in out.partial if a not in wanted):
            exchange(ie.output, "all_reduce", surplus, out.with_partial(wanted, out.kind))
    assert held[graph.outputs[0]] == strategy.output, (e, strategy, held[graph.outputs[0]])
    return tuple(steps)


def _factors(e: Eqn, graph: Graph) -> dict[Place, str]:
    """Which factor of the equation's rule each dim of the expansion's values runs along."""
    along: Groups[Place] = Groups()
    for ie in graph.eqns:
        rule = rule_of(ie)
        assert all(len(dim) <= 1 for dims in (*rule.inputs, rule.output) for dim in dims), (
            f"{e.op.name} expands to a reshape of several factors"
        )
        for same in places(ie).values():
            for place in same:
                along.join(place, same[0])
    named: dict[Place, str] = {}
    for factor, same in places_of(rule_of(e), (*graph.inputs, *graph.outputs)).items():
        for place in same:
            assert named.setdefault(along.find(place), factor) == factor, (e, factor, place)
    return {
        (v, d): named[along.find((v, d))]
        for v in graph.values()
        for d in range(v.type.ndim)
        if along.find((v, d)) in named
    }


def _roles(ie: Eqn, strategy: Strategy, factor_of: dict[Place, str]) -> tuple[str, ...]:
    """The strategy's roles in the words of an interior equation's rule."""
    rule = rule_of(ie)
    own: dict[str, str] = {}
    for v, dims in zip((*ie.inputs, ie.output), (*rule.inputs, rule.output), strict=True):
        for d, factors in enumerate(dims):
            if factors and (v, d) in factor_of:
                assert own.setdefault(factor_of[v, d], factors[0]) == factors[0], (ie, v, d)
    return tuple(own.get(role, IDLE) for role in strategy.roles)


def _kept_partial(
    graph: Graph, strategy: Strategy, roles: dict[Eqn, tuple[str, ...]], mesh: MeshShape
) -> dict[Var, tuple[int, ...]]:
    """Values that stay partial sums as the output does, and the axes; completes the last roles.

    The label's logit of a cross entropy: only its linear last step stands between it and the loss.
    """
    last = graph.eqns[-1]
    natural = apply_roles(rule_of(last), roles[last], mesh)
    assert natural is not None
    kept = {last.output: strategy.output.partial}
    own = list(roles[last])
    for a in strategy.output.partial:
        if a in natural.output.partial:
            continue
        for operands in rule_of(last).sums:
            for k in operands:
                v = last.inputs[k]
                producer = graph.producer.get(v)
                made = producer and apply_roles(rule_of(producer), roles[producer], mesh)
                if made and a in made.output.partial and len(graph.readers[v]) == 1:
                    kept[v] = (*kept.get(v, ()), a)
                    own[a] = SUM + "".join(map(str, operands))
    roles[last] = tuple(own)
    return kept
