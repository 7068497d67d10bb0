"""Windows on a split dim: tiles with rows of their neighbours compute what the whole does."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest

from hpc_alpa.ir import Builder, Eqn, TensorType
from hpc_alpa.ir.evaluate import whole_call
from hpc_alpa.ops.halo import HALOS
from hpc_alpa.ops.windows import halo
from hpc_alpa.sharding import (
    Exchange,
    Interior,
    Strategy,
    apply_roles,
    interior,
    phases,
    rule_of,
    runs_in_phases,
    strategies,
)
from hpc_alpa.sharding.spec import MeshShape
from tests.helpers.simulated_mesh import SimulatedMesh


def convolution(
    shape: tuple[int, ...],
    window: int,
    stride: int,
    padding: tuple[int, int],
    name: str = "conv",
) -> Eqn:
    """A square convolution of x of this shape to 4 channels, or a gradient of it."""
    b = Builder()
    x = TensorType(shape, "float64")
    w = x.with_shape((window, window, shape[-1], 4))
    spatial = [(n + sum(padding) - window) // stride + 1 for n in shape[1:-1]]
    y = x.with_shape((shape[0], *spatial, 4))
    types, type = {
        "conv": ((x, w), y),
        "conv_grad_input": ((y, w), x),
        "conv_grad_weight": ((x, y), w),
    }[name]
    params = {"strides": (stride, stride), "padding": (padding, padding)}
    b.emit(name, *map(b.input, types), type=type, **params)  # type: ignore[arg-type]
    return b.eqns[-1]


def strategy(e: Eqn, roles: str, mesh: MeshShape) -> Strategy | None:
    return apply_roles(rule_of(e), tuple(roles.split(",")), mesh)


def overlapping(name: str, seed: int) -> Eqn:
    """An operator of windows on two spatial dims that both can be split, one or both reaching."""
    rng = random.Random(seed)
    rows = []
    for count in rng.sample([4, 6, 8, 12], 2):
        k, stride = rng.choice([(2, 1), (3, 1), (3, 2), (4, 2), (5, 2), (5, 1), (2, 2)])
        before = rng.randint(0, k - stride)
        rows.append((count * stride, k, count, stride, (before, k - stride - before)))
    spatial, window, windows, strides, paddings = (tuple(x) for x in zip(*rows, strict=True))
    groups, batch = rng.choice([1, 1, 2]), rng.choice([2, 4])
    x = TensorType((batch, *spatial, 2 * groups), "float64")
    b = Builder()
    params: dict[str, Any] = {"strides": strides, "padding": paddings}
    y, w = x.with_shape((batch, *windows, 2 * groups)), x.with_shape((*window, 2, 2 * groups))
    if not name.startswith("conv"):
        params["window"] = window
    if name == "pool":
        params["kind"] = rng.choice(["max", "sum"])
    types, type = {
        "conv": ((x, w), y),
        "conv_grad_input": ((y, w), x),
        "conv_grad_weight": ((x, y), w),
        "pool": ((x,), y),
        "pool_pick": ((x, x), y),
        "pool_unpick": ((x, y), x),
        "unpool": ((y,), x),
    }[name]
    b.emit(name, *map(b.input, types), type=type, **params)
    return b.eqns[-1]


@pytest.mark.parametrize("name", sorted(HALOS))
def test_every_split_of_windows_computes_the_reference(name: str) -> None:
    met: Counter[str] = Counter()
    meshes: list[tuple[MeshShape, int]] = [((2,), 8), ((4,), 8), ((2, 2), 5), ((2, 3), 5)]
    for mesh, seeds in [*meshes, ((2, 2, 2), 1)]:
        for seed in range(seeds):
            e = overlapping(name, seed)
            rng = np.random.default_rng(seed)
            arrays = [rng.normal(size=t.shape) for t in e.input_types]
            want = e.op.reference(whole_call(e), *arrays)
            devices = SimulatedMesh(mesh, rng)
            every = [s for s in strategies(e, mesh) if runs_in_phases(e, s)]
            for s in random.Random(seed).sample(every, min(len(every), 60)):
                operands = [devices.scatter(x, spec) for x, spec in zip(arrays, s.inputs)]
                got = devices.gather(devices.run(e, s, operands))
                np.testing.assert_allclose(got, want, 1e-9, 1e-9, err_msg=f"{e} {s}")
                met["all"] += 1
                met["two dims"] += len({r for r in s.roles if r[0] == "p"}) > 1
                met["partial operand"] += any(x.partial for x in s.inputs)
                met["minor batch"] += s.roles[0] == "n"
    assert met["all"] > 100 and met["two dims"] > 5 and met["minor batch"] > 5, met
    assert met["partial operand"] > 5, met


@pytest.mark.parametrize(
    ("shape", "window", "stride", "padding", "split"),
    [
        ((2, 8, 8, 4), 3, 1, (1, 1), {2, 4, 8}),
        ((2, 8, 8, 4), 3, 2, (1, 1), {2, 4}),
        ((2, 8, 8, 4), 3, 2, (0, 1), {2, 4}),
        ((2, 16, 16, 4), 7, 2, (3, 3), {2, 4}),  # three rows of a neighbour: at least two windows
        ((2, 8, 8, 4), 1, 1, (0, 0), {2, 4, 8}),
        ((2, 8, 8, 4), 1, 2, (0, 0), {2, 4}),
        ((2, 8, 8, 4), 3, 1, (0, 0), set()),  # six windows over eight rows
        ((2, 9, 9, 4), 3, 2, (1, 1), set()),
    ],
)
def test_which_splits_a_spatial_dim_allows(
    shape: tuple[int, ...], window: int, stride: int, padding: tuple[int, int], split: set[int]
) -> None:
    e = convolution(shape, window, stride, padding)
    rule = rule_of(e)
    if not split:
        assert not any(f.startswith("p") and not rule.marked(f, "^") for f in rule.sizes)
        return
    assert {n for n in (2, 3, 4, 8, 16) if strategy(e, "p0", (n,))} == split
    assert rule.marked("p0", "!") == (window > 1)


def test_only_edges_travel() -> None:
    """A row of each neighbour, gathered: 2 rows of each of 4 tiles, of 8 x 4 numbers."""
    e = convolution((2, 16, 8, 4), 3, 1, (1, 1))
    s = strategy(e, "n,p0", (2, 4))
    assert s is not None
    steps = phases(e, s, (2, 4))
    (exchange,) = (p for p in steps if isinstance(p, Exchange))
    assert exchange.move.kind == "all_gather" and exchange.move.axes == (1,)
    assert exchange.value.type.shape == (2, 4, 2, 8, 4)
    assert exchange.move.nbytes(exchange.value.type.nbytes, (2, 4)) == 4 * 2 * 8 * 4 * 8
    names = [p.eqn.op.name for p in steps if isinstance(p, Interior)]
    assert names == ["halo_edges", "halo_fold", "conv", "halo_unfold"]
    assert interior(e, s, (2, 4)).outputs[0].type == e.output.type


def test_the_weight_gradient_sums_over_tiles() -> None:
    e = convolution((2, 16, 8, 4), 3, 1, (1, 1), "conv_grad_weight")
    s = strategy(e, "p0", (4,))
    assert s is not None and str(s.output) == "RRRR+P0"
    steps = phases(e, s, (4,))
    names = [p.eqn.op.name for p in steps if isinstance(p, Interior)]
    assert names == ["halo_edges", "halo_fold", "halo_fold", "conv_grad_weight"]


def test_two_split_dims_exchange_corners() -> None:
    e = convolution((1, 4, 4, 1), 3, 1, (1, 1))
    s = strategy(e, "p0,p1", (2, 2))
    assert s is not None
    devices = SimulatedMesh((2, 2), np.random.default_rng(0))
    x, w = np.zeros((1, 4, 4, 1)), np.ones((3, 3, 1, 4))
    x[0, 1, 1] = 1  # the corner of the first device's tile
    operands = [devices.scatter(v, spec) for v, spec in zip((x, w), s.inputs)]
    got = devices.gather(devices.run(e, s, operands))
    assert got[0, 2, 2, 0] == 1 and got.sum() == 4 * 9


@pytest.mark.parametrize("window", range(1, 8))
@pytest.mark.parametrize("stride", range(1, 4))
def test_what_a_tile_needs_of_its_neighbours(window: int, stride: int) -> None:
    """Against the rows and windows listed one by one."""
    for before in range(window - stride + 1 if window > stride else 0):
        tile = range(100, 110)  # windows
        rows = range(100 * stride, 110 * stride)

        def of(p: int, before: int = before) -> range:
            return range(p * stride - before, p * stride - before + window)

        read = [r for p in tile for r in of(p)]
        assert halo("below", window, stride, before) == (rows[0] - min(read), max(read) - rows[-1])
        in_windows = [p for p in range(80, 130) if set(of(p)) & set(rows)]
        above = (tile[0] - min(in_windows), max(in_windows) - tile[-1])
        assert halo("above", window, stride, before) == above
        read = [r for p in in_windows for r in of(p)]
        assert halo("both", window, stride, before) == (rows[0] - min(read), max(read) - rows[-1])
