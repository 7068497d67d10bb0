"""Specs as text, and the tiles that they cut."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hpc_alpa.errors import ShardingError
from hpc_alpa.sharding import (
    ShardingSpec,
    all_coords,
    index_along,
    local_shape,
    num_tiles,
    tile_starts,
)
from hpc_alpa.sharding.spec import MAX, SUM, MeshShape
from tests.helpers.all_specs import all_specs


@pytest.mark.parametrize("ndim", range(4))
@pytest.mark.parametrize("mesh", [(2,), (2, 2), (2, 2, 2)])
def test_every_spec_prints_and_parses(ndim: int, mesh: MeshShape) -> None:
    specs = all_specs((12,) * ndim, mesh)
    assert len({str(s) for s in specs}) == len(specs)
    for s in specs:
        assert ShardingSpec.parse(str(s)) == s


@pytest.mark.parametrize(
    ("ndim", "mesh", "count"), [(2, (2, 2), 25), (4, (2, 2), 51), (4, (2, 2, 2), 399)]
)
def test_the_number_of_specs_is_the_prototypes(ndim: int, mesh: MeshShape, count: int) -> None:
    assert len(all_specs((8,) * ndim, mesh)) == count


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        (".", ShardingSpec(())),
        (".+P0", ShardingSpec((), (0,), SUM)),
        ("S0R", ShardingSpec(((0,), ()))),
        ("RS10", ShardingSpec(((), (1, 0)))),
        ("S1R+P0", ShardingSpec(((1,), ()), (0,), SUM)),
        ("RR+M01", ShardingSpec(((), ()), (0, 1), MAX)),
    ],
)
def test_the_notation(text: str, spec: ShardingSpec) -> None:
    assert str(spec) == text and ShardingSpec.parse(text) == spec


@pytest.mark.parametrize(
    "text", ["", "S", "S0X", "s0", "S0R+Q1", "S0R+P", "S0 R", "R+P0+M1", "+P0"]
)
def test_malformed_text_is_refused(text: str) -> None:
    with pytest.raises(ShardingError, match="is not a spec of the form"):
        ShardingSpec.parse(text)


@pytest.mark.parametrize("text", ["S0S0", "S00", "S0R+P0", "R+P00"])
def test_an_axis_is_used_once(text: str) -> None:
    with pytest.raises(ShardingError, match="uses a mesh axis twice"):
        ShardingSpec.parse(text)


def test_partial_axes_and_kind_come_together() -> None:
    for partial, kind in (((0,), ""), ((), SUM), ((1, 0), SUM)):
        with pytest.raises(ShardingError, match="partial axes"):
            ShardingSpec(((), ()), partial, kind)


@pytest.mark.parametrize("mesh", [(2,), (4,), (2, 2), (2, 3)])
def test_the_tiles_of_a_spec_cover_the_value_once(mesh: MeshShape) -> None:
    shape = (12, 24)
    for spec in all_specs(shape, mesh):
        covered = np.zeros(shape, int)
        for c in all_coords(mesh):
            starts, tile = tile_starts(shape, spec, mesh, c), local_shape(shape, spec, mesh)
            covered[tuple(slice(s, s + n) for s, n in zip(starts, tile, strict=True))] += 1
        copies = num_tiles(tuple(range(len(mesh))), mesh) // num_tiles(spec.split_axes, mesh)
        assert (covered == copies).all(), spec


def test_the_first_axis_of_a_dim_is_the_major_one() -> None:
    mesh = (2, 3)
    rows = {
        text: [tile_starts((12,), ShardingSpec.parse(text), mesh, c)[0] for c in all_coords(mesh)]
        for text in ("S01", "S10", "S0", "S1", "R")
    }
    assert rows == {
        "S01": [0, 2, 4, 6, 8, 10],
        "S10": [0, 4, 8, 2, 6, 10],
        "S0": [0, 0, 0, 6, 6, 6],
        "S1": [0, 4, 8, 0, 4, 8],
        "R": [0] * 6,
    }


@pytest.mark.parametrize("mesh", [(2,), (2, 3), (3, 2, 2), (1, 4)])
def test_coordinates_are_row_major(mesh: MeshShape) -> None:
    coords = list(all_coords(mesh))
    assert coords == list(itertools.product(*map(range, mesh)))
    axes = tuple(range(len(mesh)))
    assert [index_along(c, axes, mesh) for c in coords] == list(range(len(coords)))


def test_a_dim_that_does_not_divide_is_named_with_the_way_out() -> None:
    with pytest.raises(ShardingError) as caught:
        local_shape((1024, 4098), ShardingSpec.parse("RS1"), (2, 4))
    message = str(caught.value)
    for part in ("dim 1", "4098 is not a multiple of 4", "RS1", "(2, 4)", "4100"):
        assert part in message
    with pytest.raises(ShardingError, match="has 2 dims, the value has 1"):
        local_shape((4,), ShardingSpec.parse("RS1"), (2, 4))


def test_what_a_spec_says_about_its_axes() -> None:
    spec = ShardingSpec.parse("S1R+P0")
    assert spec.split_axes == (1,)
    assert spec.free_axes((2, 2, 2)) == (2,)
    assert spec.resolved() == ShardingSpec.parse("S1R")
    assert not spec.is_replicated and ShardingSpec.replicated(2).is_replicated
    assert spec.with_dim(1, (2,)) == ShardingSpec.parse("S1S2+P0")
    assert spec.with_partial((), "") == spec.resolved()
