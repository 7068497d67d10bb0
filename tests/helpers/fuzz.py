"""One case of the fuzz: a graph under random specs, strategies and conversions."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from hpc_alpa.ir import TABLE, Eqn, Graph, Var
from hpc_alpa.ir.evaluate import whole_call
from hpc_alpa.ops.windows import pad, taps
from hpc_alpa.sharding import Move, ShardingSpec, Strategy, moves, strategies
from hpc_alpa.sharding.spec import MeshShape
from tests.helpers.simulated_mesh import Held, SimulatedMesh

Values = Mapping[Var, np.ndarray]

# Operators whose output jumps where operands tie but for rounding.
JUMPS = ("argmax", "compare", "max_mask", "pool_pick", "pool_unpick", "top_k")


class Tie(Exception):
    """A comparison came out otherwise, by operands that differ by rounding only: no failure."""


@dataclass
class Fuzz:
    """Runs graphs on simulated devices; `equations` counts what was compared, by operator."""

    rng: random.Random
    equations: dict[str, int] = field(default_factory=dict)
    partial_outputs: int = 0

    def simulate(self, graph: Graph, values: Values, mesh: MeshShape) -> None:
        """Compare every value of the graph.

        Raises:
            AssertionError: a value differs, or replicas do; with the equation and its specs.
            Tie: a comparison flipped; what follows it cannot be compared.
        """
        devices = SimulatedMesh(mesh, np.random.default_rng(self.rng.randrange(1 << 30)))
        tolerance = tolerance_of(graph)
        partial_bias = self.rng.random()
        held: dict[Var, Held] = {}
        for v in graph.inputs:
            held[v] = devices.scatter(values[v], self.spec(v, mesh))
        for e in graph.eqns:
            s = self.strategy(e, held, mesh, partial_bias)
            operands = [
                devices.convert(held[v], self.path(held[v], spec, mesh))
                for v, spec in zip(e.inputs, s.inputs, strict=True)
            ]
            where = f"{e} on {mesh}: {', '.join(map(str, s.inputs))} -> {s.output}, roles {s}"
            try:
                held[e.output] = devices.run(e, s, operands)
                got = devices.gather(held[e.output], tolerance)
            except AssertionError as error:
                raise AssertionError(f"{where}: {error}") from error
            want = values[e.output]
            if not np.allclose(got, want, rtol=tolerance, atol=tolerance):
                if e.op.name in JUMPS and is_tie(e, values, got != want, 100 * tolerance):
                    raise Tie(where)
                raise AssertionError(f"{where}: off by {np.abs(got * 1.0 - want).max()}")
            self.equations[e.op.name] = self.equations.get(e.op.name, 0) + 1
            self.partial_outputs += bool(s.output.partial)

    def spec(self, v: Var, mesh: MeshShape) -> ShardingSpec:
        """A random spec of a graph input."""
        spec = ShardingSpec.replicated(v.type.ndim)
        for _ in range(self.rng.randrange(4)):
            possible = [
                m
                for m in moves(spec, v.type.shape, mesh)
                if m.kind == "slice"
                or (m.kind.startswith("to_partial") and not (v.type.dtype == "bool"))
            ]
            if possible:
                spec = self.rng.choice(possible).target
        return spec

    def strategy(
        self, e: Eqn, held: Mapping[Var, Held], mesh: MeshShape, partial_bias: float
    ) -> Strategy:
        """A random one; often one that fits what is there, or that leaves a partial value."""
        every = strategies(e, mesh)
        fitting = [s for s in every if all(held[v].spec == x for v, x in zip(e.inputs, s.inputs))]
        if fitting and self.rng.random() < 0.3:
            return self.rng.choice(fitting)
        partial = [s for s in every if s.output.partial]
        if partial and self.rng.random() < partial_bias:
            return self.rng.choice(partial)
        return self.rng.choice(every)

    def path(self, held: Held, target: ShardingSpec, mesh: MeshShape) -> list[Move]:
        """A random shortest list of moves, now and then behind a random first one."""
        first: list[Move] = []
        source = held.spec
        possible = moves(source, held.shape, mesh)
        if possible and self.rng.random() < 0.1:
            first = [self.rng.choice(possible)]
            source = first[0].target
        last = _last_moves(source, held.shape, mesh)
        found: list[Move] = []
        spec = target
        while spec != source:
            found.append(self.rng.choice(last[spec]))
            spec = found[-1].source
        return first + found[::-1]


@lru_cache(maxsize=4096)
def _last_moves(
    source: ShardingSpec, shape: tuple[int, ...], mesh: MeshShape
) -> dict[ShardingSpec, list[Move]]:
    """For every spec the last moves of the shortest lists that lead there."""
    steps = {source: 0}
    found: dict[ShardingSpec, list[Move]] = {}
    queue = [source]
    for spec in queue:
        for m in moves(spec, shape, mesh):
            if m.target not in steps:
                steps[m.target] = steps[spec] + 1
                queue.append(m.target)
            if steps[m.target] == steps[spec] + 1:
                found.setdefault(m.target, []).append(m)
    return found


def tolerance_of(graph: Graph) -> float:
    """Of a float64 graph; a float32 value inside rounds differently where it is a partial sum."""
    return 1e-5 if any(e.output.type.dtype == "float32" for e in graph.eqns) else 1e-8


def is_tame(values: Values) -> bool:
    """Whether a comparison to `tolerance_of` says anything."""
    return all(
        np.isfinite(x).all() and math.isfinite(x.sum()) and np.abs(x * 1.0).max(initial=0) < 1e6
        for x in values.values()
    )


def is_tie(e: Eqn, values: Values, differs: np.ndarray, tolerance: float) -> bool:
    """Whether the operands of a jump are equal but for rounding wherever the outputs differ."""
    x = values[e.inputs[0]]
    if e.op.name == "compare":
        gap = np.abs(x * 1.0 - values[e.inputs[1]])
        scale = 1 + np.abs(x)
    elif e.op.name == "max_mask":
        gap = x.max(e.params_dict["dims"], keepdims=True) - x
        scale = 1 + np.abs(x)
    elif e.op.name in ("pool_pick", "pool_unpick"):
        return _is_pool_tie(e, x, differs, tolerance)
    elif e.op.name == "top_k":
        best = -np.sort(-x, axis=-1)[..., : e.params_dict["k"] + 1]
        gap = -np.diff(best, axis=-1).max(axis=-1, keepdims=True, initial=-np.inf)
        scale = 1 + np.abs(best).max(axis=-1, keepdims=True)
    else:
        two = np.sort(x, axis=e.params_dict["dim"])
        best, second = (np.take(two, k, axis=e.params_dict["dim"]) for k in (-1, -2))
        gap, scale = best - second, 1 + np.abs(best)
    relative = np.broadcast_to(gap / scale, differs.shape)
    return bool((relative[differs] < tolerance).all())


def _is_pool_tie(e: Eqn, x: np.ndarray, differs: np.ndarray, tolerance: float) -> bool:
    params = e.params_dict
    windows = (e.output if e.op.name == "pool_pick" else e.inputs[1]).type.shape
    padded = pad(x, params, -np.inf)
    elements = np.sort([padded[w] for w in taps(params["window"], windows[1:-1], params)], axis=0)
    if len(elements) == 1:
        return False
    near = elements[-1] - elements[-2] < tolerance * (1 + np.abs(elements[-1]))
    if e.op.name == "pool_unpick":
        near = TABLE["unpool"].reference(whole_call(e), near * 1.0) > 0
    return bool(near[differs].all())
