"""Plans that nobody would choose: random specs, strategies and paths of conversions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from hpc_alpa.arrays import HostArrays
from hpc_alpa.ir import Graph, Var
from hpc_alpa.lower import Program
from hpc_alpa.plan.choices import specs_of
from hpc_alpa.plan.paths import key
from hpc_alpa.plan.plan import StagePlan
from hpc_alpa.runtime.distributed import window
from hpc_alpa.runtime.engine import Engine
from hpc_alpa.runtime.runner import ThreadRunner
from hpc_alpa.sharding import ShardingSpec, Strategy, num_tiles, strategies
from hpc_alpa.step import BACKWARD, FORWARD, StageGraph, StepGraph
from hpc_alpa.step.rows import Rows
from tests.helpers.fuzz import Fuzz
from tests.helpers.simulated_mesh import Held

MeshShape = tuple[int, ...]


class Scramble:
    """Draws the plan of one stage.

    Attributes:
        alike: share of equations whose strategy fits the specs that are there.
    """

    def __init__(self, rng: random.Random, step: StepGraph, mesh: MeshShape) -> None:
        self.rng, self.step, self.mesh = rng, step, mesh
        self.alike = rng.random()
        self.partial = rng.random()

    def plan(
        self,
        stage: StageGraph,
        devices: Sequence[int],
        fixed: dict[Var, ShardingSpec] | None = None,
    ) -> StagePlan:
        """A plan of the stage on these devices; `fixed` gives the specs of some inputs."""
        graph, given = stage.graph, fixed or {}
        self.rows = Rows.of(graph, self.step.batch, self.step.num_microbatches)
        held = {v: given.get(v) or self.input(v) for v in graph.inputs}
        chosen = []
        needed: list[tuple[Var, ShardingSpec]] = []
        for e in graph.eqns:
            every = [s for s in strategies(e, self.mesh) if self.rows.allows(e, s)]
            every = [s for s in every if self.reachable(e.inputs, s.inputs, held)]
            s = self.strategy(every, [held[v] for v in e.inputs])
            chosen.append(s)
            needed += zip(e.inputs, s.inputs, strict=True)
            held[e.output] = s.output
        outputs = []
        for k, v in enumerate(graph.outputs):
            outputs.append(self.output(v, held[v], k < len(stage.results)))
            needed.append((v, outputs[k]))
        alike: dict[str, tuple[set[Var], ShardingSpec, ShardingSpec]] = {}
        for v, target in needed:
            if held[v] != target:
                at = key(v.type, held[v], target)
                alike.setdefault(at, (set(), held[v], target))[0].add(v)
        conversions = {at: self.path(*found) for at, found in alike.items()}
        return StagePlan(
            self.mesh,
            tuple(devices),
            tuple("xyz"[: len(self.mesh)]),
            tuple(map(str, chosen)),
            tuple(str(held[v]) for v in graph.inputs),
            tuple(map(str, outputs)),
            tuple(sorted(conversions.items())),
            self.copies(graph, chosen, held),
        )

    def copies(
        self, graph: Graph, chosen: Sequence[Strategy], held: dict[Var, ShardingSpec]
    ) -> tuple[tuple[int, str], ...]:
        """Some of the copies that forward makes and backward reads too: they are held for it."""
        read: dict[tuple[Var, ShardingSpec], set[str]] = {}
        for e, s in zip(graph.eqns, chosen, strict=True):
            for v, need in zip(e.inputs, s.inputs, strict=True):
                if need != held[v]:
                    read.setdefault((v, need), set()).add(e.phase)
        number = {v: k for k, v in enumerate(graph.values())}
        both = [at for at, phases in read.items() if {FORWARD, BACKWARD} <= phases]
        return tuple(sorted((number[v], str(s)) for v, s in both if self.rng.random() < 0.5))

    def input(self, v: Var) -> ShardingSpec:
        possible = specs_of(v.type, self.mesh)
        if v in self.step.batch:
            rows = v.type.shape[0] // self.step.num_microbatches
            possible = tuple(s for s in possible if rows % num_tiles(s.dims[0], self.mesh) == 0)
        return self.rng.choice(possible)

    def output(self, v: Var, held: ShardingSpec, is_result: bool) -> ShardingSpec:
        # Of rows that lie in slots only a result may come in parts, along its first dim.
        apart = self.rows.dims[v] - {0} if is_result else self.rows.dims[v]
        possible = [
            s
            for s in specs_of(v.type, self.mesh)[: None if v.type.shape else 1]
            if self.rows.converts(v, held, s)
            and (self.rows.num_slots == 1 or not any(s.dims[d] for d in apart))
        ]
        return self.rng.choice(possible)

    def reachable(
        self,
        operands: Sequence[Var],
        needs: Sequence[ShardingSpec],
        held: dict[Var, ShardingSpec],
    ) -> bool:
        pairs = zip(operands, needs, strict=True)
        return all(self.rows.converts(v, held[v], need) for v, need in pairs)

    def strategy(self, every: Sequence[Strategy], held: Sequence[ShardingSpec]) -> Strategy:
        fitting = [s for s in every if list(s.inputs) == list(held)]
        if fitting and self.rng.random() < self.alike:
            return self.rng.choice(fitting)
        partial = [s for s in every if s.output.partial]
        if partial and self.rng.random() < self.partial:
            return self.rng.choice(partial)
        return self.rng.choice(every)

    def path(self, values: set[Var], source: ShardingSpec, target: ShardingSpec) -> tuple[str, ...]:
        """A random shortest list of moves, now and then behind a random first one."""
        v = next(iter(values))
        held = Held(v.type.shape, source, {})
        while True:
            found = Fuzz(self.rng).path(held, target, self.mesh)
            met = [source, *(m.target for m in found)]
            # A sum of masks is not a mask; no cheapest path comes to a spec twice.
            summed = v.type.dtype == "bool" and any(s.partial for s in met)
            fits = all(self.rows.converts(u, a, b) for a, b in pairwise(met) for u in values)
            if fits and not summed and len(set(met)) == len(met):
                return tuple(map(str, met[1:]))


def run(
    programs: Sequence[Program], graph: Graph, values: Sequence[Any], **options: Any
) -> tuple[Engine, list[dict[int, Any]], dict[int, Any]]:
    """Execute programs on threads: the engine, each output's tiles by rank, each rank's record."""
    types = [[v.type for v in part] for part in (graph.inputs, graph.outputs)]
    engine = Engine(programs, ThreadRunner(len(programs)), HostArrays(), *types)
    inputs = {k: engine.place(k, x) for k, x in enumerate(values)}
    outputs, records = engine.run(inputs, **options)
    return engine, outputs, records


def require_outputs(
    engine: Engine, outputs: list[dict[int, Any]], wanted: Sequence[np.ndarray], tolerance: float
) -> None:
    """Every tile of every output on every rank is the part of the whole that it says."""
    for k, want in enumerate(wanted):
        tiles = engine.output_layouts[k].tiles
        assert tiles and tiles.keys() == outputs[k].keys(), f"output {k} lies on {tiles.keys()}"
        for rank, placed in tiles.items():
            got = np.asarray(outputs[k][rank])
            part = want[window(placed)]
            assert got.shape == part.shape, f"output {k} on rank {rank}: {got.shape}, {part.shape}"
            assert got.dtype == part.dtype, f"output {k} on rank {rank}: {got.dtype}, {part.dtype}"
            close = np.allclose(got, part, rtol=tolerance, atol=tolerance)
            assert close, (
                f"output {k} on rank {rank}, {placed.spec}: off by {np.abs(got * 1.0 - part).max()}"
            )
