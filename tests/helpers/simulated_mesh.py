"""Devices of a mesh simulated in one process: the oracle of rules, strategies and conversions.

A value lies on the mesh as one array per device. The legal freedom of a spec is used against the
rules: terms of a partial sum are random, candidates of a partial maximum lie below it by random
amounts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hpc_alpa.ir import Eqn, Var
from hpc_alpa.ir.types import numpy_dtype
from hpc_alpa.sharding import (
    Interior,
    Move,
    ShardingSpec,
    Strategy,
    all_coords,
    index_along,
    interior,
    local_call,
    local_shape,
    local_types,
    num_tiles,
    phases,
    runs_in_phases,
    tile_starts,
)
from hpc_alpa.sharding.spec import MAX, SUM, Coords, MeshShape

Tiles = Mapping[Coords, np.ndarray]


@dataclass(frozen=True)
class Held:
    """A value of `shape` as the devices hold it."""

    shape: tuple[int, ...]
    spec: ShardingSpec
    tiles: Tiles


@dataclass
class SimulatedMesh:
    """The devices; `moves_made` counts moves by kind."""

    mesh: MeshShape
    rng: np.random.Generator
    moves_made: dict[str, int] = field(default_factory=dict)

    # ------------------------------------------------------------------ values in and out
    def scatter(self, x: np.ndarray, spec: ShardingSpec) -> Held:
        """Give every device its tile, random terms of it, or random candidates."""
        terms: dict[Coords, list[np.ndarray]] = {}
        tiles = {}
        for c in all_coords(self.mesh):
            whole = self.tile(x, spec, c)
            # Devices that differ along free axes only hold the same terms.
            key = tuple(c[a] for a in spec.split_axes)
            if key not in terms:
                terms[key] = self.terms(whole, num_tiles(spec.partial, self.mesh), spec.kind)
            tiles[c] = terms[key][index_along(c, spec.partial, self.mesh)]
        return Held(x.shape, spec, tiles)

    def terms(self, whole: np.ndarray, n: int, kind: str) -> list[np.ndarray]:
        """n arrays whose sum, or maximum, is `whole`."""
        if kind == SUM:
            rest = [self.noise(whole) for _ in range(n - 1)]
            first = whole
            for r in rest:
                first = first - r
            return [first, *rest]
        if kind == MAX:
            winner = self.rng.integers(0, n, whole.shape)
            return [np.where(winner == k, whole, self.lowered(whole)) for k in range(n)]
        return [whole.copy()]

    def noise(self, like: np.ndarray) -> np.ndarray:
        if like.dtype.kind in "iu":
            return self.rng.integers(0, 5, like.shape).astype(like.dtype)
        return np.asarray(self.rng.normal(size=like.shape), like.dtype)

    def lowered(self, x: np.ndarray) -> np.ndarray:
        if x.dtype == bool:
            return x & (self.rng.random(x.shape) < 0.5)
        if x.dtype.kind == "u":
            return np.minimum(x, self.rng.integers(0, 5, x.shape).astype(x.dtype))
        step = 3 * self.rng.random(x.shape)
        return np.asarray(x - (np.ceil(step) if x.dtype.kind == "i" else step), x.dtype)

    def tile(self, x: np.ndarray, spec: ShardingSpec, c: Coords) -> np.ndarray:
        starts = tile_starts(x.shape, spec, self.mesh, c)
        shape = local_shape(x.shape, spec, self.mesh)
        return x[tuple(slice(s, s + n) for s, n in zip(starts, shape, strict=True))]

    def gather(self, held: Held, tolerance: float = 1e-9) -> np.ndarray:
        """The whole value; checks that replicas agree, each term of a partial included."""
        spec, free = held.spec, held.spec.free_axes(self.mesh)
        out = np.empty(held.shape, next(iter(held.tiles.values())).dtype)
        written = np.zeros(held.shape, bool)
        for c in all_coords(self.mesh):
            if any(c[a] for a in (*free, *spec.partial)):
                first = tuple(0 if a in free else x for a, x in enumerate(c))
                same = np.allclose(
                    held.tiles[c], held.tiles[first], tolerance, tolerance, equal_nan=True
                )
                assert same, f"replicas of {spec} differ on {c}"
                continue
            terms = [held.tiles[o] for o in self.along(c, spec.partial)]
            whole = self.combine(terms, spec.kind)
            starts = tile_starts(held.shape, spec, self.mesh, c)
            where = tuple(slice(s, s + n) for s, n in zip(starts, whole.shape, strict=True))
            assert whole.shape == local_shape(held.shape, spec, self.mesh), (spec, whole.shape)
            assert not written[where].any(), f"two tiles of {spec} overlap"
            out[where], written[where] = whole, True
        assert written.all(), f"the tiles of {spec} leave a hole"
        return out

    def along(self, c: Coords, axes: tuple[int, ...]) -> list[Coords]:
        """The devices that differ from `c` along some axes only, the first axis major."""
        others = list(all_coords(tuple(self.mesh[a] for a in axes)))
        return [
            tuple(o[axes.index(a)] if a in axes else x for a, x in enumerate(c)) for o in others
        ]

    @staticmethod
    def combine(terms: Sequence[np.ndarray], kind: str) -> np.ndarray:
        total = terms[0]
        for t in terms[1:]:
            total = np.asarray(total + t) if kind == SUM else np.maximum(total, t)
        return total

    # ------------------------------------------------------------------------ conversions
    def convert(self, held: Held, moves: Iterable[Move]) -> Held:
        for m in moves:
            held = self.move(held, m)
        return held

    def move(self, held: Held, m: Move) -> Held:
        assert held.spec == m.source, (held.spec, m)
        self.moves_made[m.kind] = self.moves_made.get(m.kind, 0) + 1
        cut = {}
        # No order of summation is promised, so no two conversions share one.
        order = self.rng.permutation(num_tiles(m.axes, self.mesh))
        for c in all_coords(self.mesh):
            group = [held.tiles[o] for o in self.along(c, m.axes)]
            place = index_along(c, m.axes, self.mesh)
            n = len(group)
            own = held.tiles[c]
            if m.kind == "all_gather":
                tile = np.concatenate(group, m.dim)
            elif m.kind == "all_to_all":
                parts = [np.split(g, n, m.to_dim)[place] for g in group]
                tile = np.concatenate(parts, m.dim)
            elif m.kind == "slice":
                tile = np.split(own, n, m.dim)[place]
            elif m.kind == "all_reduce":
                tile = self.combine([group[k] for k in order], held.spec.kind)
            elif m.kind == "reduce_scatter":
                tile = np.split(self.combine([group[k] for k in order], held.spec.kind), n, m.dim)[
                    place
                ]
            elif m.kind == "to_partial_sum":
                tile = own if place == 0 else np.zeros_like(own)
            elif m.kind == "to_partial_max":
                tile = own
            else:
                raise AssertionError(m)
            cut[c] = tile
        if m.kind == "to_partial_max":
            cut = self.adverse(cut, m)
        return Held(held.shape, m.target, cut)

    def adverse(self, tiles: Tiles, m: Move) -> dict[Coords, np.ndarray]:
        """Keep the candidate of one device; copies would hide a rule that is wrong for others."""
        lowered: dict[Coords, np.ndarray] = {}
        keeper = int(self.rng.integers(self.mesh[m.axes[0]]))
        used = (*m.target.split_axes, *m.target.partial)
        for c in all_coords(self.mesh):
            key = tuple(x for a, x in enumerate(c) if a in used)
            if c[m.axes[0]] == keeper:
                lowered[key] = tiles[c]
            elif key not in lowered:
                lowered[key] = self.lowered(tiles[c])
        return {
            c: lowered[tuple(x for a, x in enumerate(c) if a in used)]
            for c in all_coords(self.mesh)
        }

    # -------------------------------------------------------------------------- equations
    def run(self, e: Eqn, strategy: Strategy, operands: Sequence[Held]) -> Held:
        """One equation on every device; in phases where the strategy asks for them."""
        for held, spec in zip(operands, strategy.inputs, strict=True):
            assert held.spec == spec, (e, held.spec, spec)
        if runs_in_phases(e, strategy):
            return self.run_phases(e, strategy, operands)
        types, out = local_types(e, strategy, self.mesh)
        tiles = {}
        for c in all_coords(self.mesh):
            arrays = [h.tiles[c] for h in operands]
            assert [a.shape for a in arrays] == [t.shape for t in types], (e, strategy)
            tile = e.op.reference(local_call(e, strategy, self.mesh, c), *arrays)
            assert tile.shape == out.shape, (e, strategy, tile.shape, out)
            assert tile.dtype == numpy_dtype(out.dtype), (e, strategy, tile.dtype, out)
            tiles[c] = tile
        return Held(e.output.type.shape, strategy.output, tiles)

    def run_phases(self, e: Eqn, strategy: Strategy, operands: Sequence[Held]) -> Held:
        graph = interior(e, strategy, self.mesh)
        env: dict[Var, Held] = dict(zip(graph.inputs, operands, strict=True))
        for step in phases(e, strategy, self.mesh):
            if isinstance(step, Interior):
                inner = step.eqn
                env[inner.output] = self.run(inner, step.strategy, [env[v] for v in inner.inputs])
            else:
                assert step.move.kind in ("all_gather", "all_reduce", "to_partial_sum"), step
                env[step.value] = self.move(env[step.value], step.move)
        return env[graph.outputs[0]]
