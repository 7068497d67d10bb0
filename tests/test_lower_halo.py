"""Windows on split dims, lowered and run: forward and backward under plans that split them."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from hpc_alpa.ir import Builder, Graph, TensorType, environment
from hpc_alpa.lower.check import check
from hpc_alpa.lower.lower import lower_stages
from hpc_alpa.lower.program import Run
from hpc_alpa.plan.plan import Plan
from hpc_alpa.sharding import ShardingSpec, Strategy
from hpc_alpa.step import StageGraph, StepGraph
from hpc_alpa.transform import gradient, simplify
from tests.helpers.random_plans import MeshShape, Scramble, require_outputs, run


class SpatialScramble(Scramble):
    """Splits spatial dims wherever an operator of windows allows it."""

    def strategy(self, every: Sequence[Strategy], held: Sequence[ShardingSpec]) -> Strategy:
        spatial = [s for s in every if any(r in ("p0", "p1") for r in s.roles)]
        return super().strategy(spatial or every, held)


def network() -> Graph:
    """Two convolutions, two pools, and the gradients of a loss."""
    b = Builder()
    x = b.input(TensorType((2, 16, 8, 4), "float64"))
    weights = [b.input(TensorType((3, 3, 4, 4), "float64")) for _ in range(2)]
    same = {"strides": (1, 1), "padding": ((1, 1), (1, 1))}
    half = {"strides": (2, 2), "padding": ((0, 1), (1, 0))}
    y = b.conv(x, weights[0], **same)
    y = b.pool(b.tanh(y), kind="max", window=(3, 3), **half)
    y = b.conv(y, weights[1], **same)
    y = b.pool(y, kind="sum", window=(3, 3), **same)
    loss = b.reduce_sum(b.tanh(y), dims=(0, 1, 2, 3))
    found = gradient(b, tuple(b.eqns), loss, [x, *weights])
    graph = simplify(b.build((loss, *found)))
    once = tuple(replace(e, phase="apply", origin=None) for e in graph.eqns)
    return replace(graph, eqns=once)


@pytest.mark.parametrize("mesh", [(2,), (4,), (2, 2)], ids=str)
def test_split_windows_run_as_the_whole_does(mesh: MeshShape) -> None:
    graph, rng = network(), np.random.default_rng(0)
    arrays = [rng.normal(size=v.type.shape) for v in graph.inputs]
    values = environment(graph, arrays)
    step = StepGraph(graph, 1, frozenset(), {})
    stage = StageGraph(0, graph, tuple(enumerate(graph.outputs)), (), ())
    met: Counter[str] = Counter()
    for seed in range(6):
        made = SpatialScramble(random.Random(seed), step, mesh).plan(stage, range(math.prod(mesh)))
        plan = Plan("random", "1f1b", 1, (), (made,), "", "", ("", ""))
        programs = lower_stages(step, [stage], plan)
        check(programs)
        engine, outputs, _ = run(programs, graph, arrays)
        require_outputs(engine, outputs, [values[v] for v in graph.outputs], 1e-9)
        bodies = {i.body for i in programs[0].instructions if isinstance(i, Run)}
        met.update(k.op.name for body in bodies for k in programs[0].bodies[body].kernels)
    assert min(met["halo_edges"], met["halo_fold"], met["halo_unfold"]) > 30, met
