"""Conversions: every pair of specs executed on real arrays, and the paths' optimality."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from hpc_alpa.errors import ShardingError
from hpc_alpa.sharding import (
    Conversions,
    Move,
    ShardingSpec,
    all_coords,
    local_shape,
    moves,
    num_tiles,
    tile_starts,
)
from hpc_alpa.sharding.conversions import FREE, Price
from hpc_alpa.sharding.spec import MeshShape
from tests.helpers.all_specs import all_specs
from tests.helpers.simulated_mesh import Held, SimulatedMesh

MESHES: list[MeshShape] = [(2,), (4,), (2, 2), (2, 3)]
SHAPES = [(), (12,), (12, 12), (12, 12, 12)]


def alpha_beta(mesh: MeshShape, beta: tuple[float, ...] | None = None) -> Price:
    """Ring formulas on each axis; a joint collective runs at its slowest axis."""

    def price(m: Move, nbytes: float) -> float:
        if m.kind in FREE:
            return 0.0
        n = num_tiles(m.axes, mesh)
        share = {"all_gather": 1, "reduce_scatter": 1, "all_reduce": 2, "all_to_all": 1 / n}
        slowest = max((beta or (1e-3,) * len(mesh))[a] for a in m.axes)
        return 1.0 + slowest * nbytes * share[m.kind] * (n - 1) / n

    return price


def conversions(shape: tuple[int, ...], mesh: MeshShape) -> Conversions:
    return Conversions(shape, 8, mesh, alpha_beta(mesh))


def check_against_slices(x: np.ndarray, held: Held, mesh: MeshShape) -> None:
    """Every device holds the slice of the value that its coordinates say, or a part of it."""
    devices = SimulatedMesh(mesh, np.random.default_rng(0))
    for c in all_coords(mesh):
        starts = tile_starts(x.shape, held.spec, mesh, c)
        shape = local_shape(x.shape, held.spec, mesh)
        want = x[tuple(slice(s, s + n) for s, n in zip(starts, shape, strict=True))]
        parts = [held.tiles[o] for o in devices.along(c, held.spec.partial)]
        got = devices.combine(parts, held.spec.kind)
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_pair_of_specs_converts(shape: tuple[int, ...], mesh: MeshShape) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape)
    devices = SimulatedMesh(mesh, rng)
    specs = all_specs(shape, mesh)
    paths = conversions(shape, mesh)
    for source in specs:
        held = devices.scatter(x, source)
        check_against_slices(x, held, mesh)
        best = paths.distances(source)
        assert set(best) == set(specs), f"{source} reaches other specs than all"
        # In the order in which they are found: a path is its last move behind another path.
        reached = {source: held}
        for target, (_, last) in best.items():
            if last is not None:
                reached[target] = devices.move(reached[last.source], last)
            assert reached[target].spec == target
            check_against_slices(x, reached[target], mesh)
            if target.partial:
                devices.gather(reached[target])


@pytest.mark.parametrize("mesh", [*MESHES, (2, 2, 2)], ids=str)
def test_no_move_shortens_a_cheapest_path(mesh: MeshShape) -> None:
    """A spec costs at most what its neighbour does and one move: so the paths are cheapest."""
    shape = (12, 24)
    paths = conversions(shape, mesh)
    nbytes = 8 * math.prod(shape)
    for source in all_specs(shape, mesh)[::3]:
        best = paths.distances(source)
        assert best[source] == (0.0, None)
        for spec, (cost, last) in best.items():
            for m in moves(spec, shape, mesh):
                step = paths.price(m, m.nbytes(nbytes, mesh))
                assert best[m.target][0] <= cost + step + 1e-9
            if last is not None:
                step = paths.price(last, last.nbytes(nbytes, mesh))
                assert cost == pytest.approx(best[last.source][0] + step)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_the_bytes_of_a_move_are_those_of_its_tiles(mesh: MeshShape) -> None:
    """Gathered result, scattered input, reduced buffer; n local tiles for all_to_all."""
    shape = (12, 24)
    for spec in all_specs(shape, mesh):
        for m in moves(spec, shape, mesh):
            before, after = (
                8 * math.prod(local_shape(shape, s, mesh)) for s in (m.source, m.target)
            )
            want = {
                "all_gather": after,
                "all_to_all": before * num_tiles(m.axes, mesh),
            }.get(m.kind, before)
            assert m.nbytes(8 * math.prod(shape), mesh) == want, m


@pytest.mark.parametrize(
    ("source", "target", "kinds"),
    [
        ("RR", "RR", []),
        ("RR+P0", "RR", ["all_reduce"]),
        ("RR+P0", "S0R", ["reduce_scatter"]),
        ("RR+M1", "RS1", ["reduce_scatter"]),
        ("RR+P01", "RR", ["all_reduce"]),
        ("S0R", "RR", ["all_gather"]),
        ("S0R", "RS0", ["all_to_all"]),
        ("RR", "S01R", ["slice", "slice"]),
        ("RR", "RR+P01", ["to_partial_sum", "to_partial_sum"]),
        ("RR", "S0R+M1", ["slice", "to_partial_max"]),
        ("S01R", "S0R", ["all_gather"]),
        ("S0R", "S1R", ["slice", "all_gather"]),
    ],
)
def test_the_usual_conversions_take_the_usual_collectives(
    source: str, target: str, kinds: list[str]
) -> None:
    path = conversions((8, 8), (2, 2)).path(ShardingSpec.parse(source), ShardingSpec.parse(target))
    found = sorted(m.kind for m in path)
    if (source, target) == ("S0R", "S1R"):
        assert "all_gather" in found or "all_to_all" in found
        return
    assert found == sorted(kinds)


def test_a_slow_axis_gets_a_hierarchical_all_reduce() -> None:
    """Scatter on the fast axis, reduce a half on the slow one, gather on the fast one."""
    mesh = (2, 2)
    paths = Conversions((1024, 1024), 4, mesh, alpha_beta(mesh, (1e-3, 1e-5)))
    path = paths.path(ShardingSpec.parse("RR+P01"), ShardingSpec.parse("RR"))
    assert [(m.kind, m.axes) for m in path] == [
        ("reduce_scatter", (1,)),
        ("all_reduce", (0,)),
        ("all_gather", (1,)),
    ]


def test_random_lists_of_moves_keep_the_value() -> None:
    rng = random.Random(0)
    for seed in range(150):
        mesh = rng.choice([*MESHES, (3,), (2, 2, 2)])
        shape = rng.choice(SHAPES[1:])
        devices = SimulatedMesh(mesh, np.random.default_rng(seed))
        x = devices.rng.normal(size=shape)
        held = devices.scatter(x, ShardingSpec.replicated(len(shape)))
        for _ in range(8):
            possible = moves(held.spec, shape, mesh)
            held = devices.move(held, rng.choice(possible))
        np.testing.assert_allclose(devices.gather(held), x, rtol=1e-9, atol=1e-9)


def test_a_conversion_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ShardingError, match="no conversion from RR to S0R"):
        conversions((5, 5), (2,)).path(ShardingSpec.parse("RR"), ShardingSpec.parse("S0R"))
