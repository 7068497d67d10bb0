"""The solver's choices as a plan keeps them."""

from __future__ import annotations

from collections.abc import Sequence

from hpc_alpa.plan.paths import key, write
from hpc_alpa.plan.plan import StagePlan
from hpc_alpa.plan.pricing import Pricing
from hpc_alpa.sharding import ShardingSpec, Strategy
from hpc_alpa.step import StageGraph
from hpc_alpa.step.rows import Rows


def stage_plan(
    pricing: Pricing,
    stage: StageGraph,
    axes: tuple[str, ...],
    inputs: Sequence[ShardingSpec],
    chosen: Sequence[Strategy],
    outputs: Sequence[ShardingSpec],
    rows: Rows | None = None,
) -> StagePlan:
    """Write choices down, with the path of every conversion that they need."""
    graph = stage.graph
    held = dict(zip(graph.inputs, inputs, strict=True))
    held.update({e.output: s.output for e, s in zip(graph.eqns, chosen, strict=True)})
    needed = [
        (v, t)
        for e, s in zip(graph.eqns, chosen, strict=True)
        for v, t in zip(e.inputs, s.inputs, strict=True)
    ]
    needed += list(zip(graph.outputs, outputs, strict=True))
    conversions: dict[str, tuple[str, ...]] = {}
    for v, target in needed:
        if held[v] != target:
            path = pricing.paths.path(v.type, held[v], target)
            assert rows is None or all(rows.converts(v, m.source, m.target) for m in path), v
            conversions[key(v.type, held[v], target)] = write(path)
    return StagePlan(
        pricing.mesh.shape,
        pricing.mesh.devices,
        axes,
        tuple(str(s) for s in chosen),
        tuple(map(str, inputs)),
        tuple(map(str, outputs)),
        tuple(sorted(conversions.items())),
    )
