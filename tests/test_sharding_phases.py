"""Fused equations whose reduced factor is split: what travels, and that nothing else does."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hpc_alpa.ir import TABLE, Builder, Eqn, TensorType, environment
from hpc_alpa.sharding import (
    Exchange,
    Interior,
    local_shape,
    phases,
    rule_of,
    runs_in_phases,
    strategies,
)
from hpc_alpa.transform.expand import expanded
from tests.helpers.random_equations import random_equation
from tests.helpers.simulated_mesh import SimulatedMesh

FUSED = sorted(name for name, row in TABLE.items() if row.expand)
MESHES = [(2,), (2, 2), (2, 3)]


def fused(name: str) -> Eqn:
    """The row on (8 rows, 12 columns)."""
    b = Builder()
    x = TensorType((8, 12), "float64")
    rows, columns = x.with_shape((8,)), x.with_shape((12,))
    labels = rows.with_dtype("int64")
    types = {
        "cross_entropy": (x, labels),
        "cross_entropy_grad": (x, labels, rows),
        "layer_norm": (x, columns, columns),
        "layer_norm_grad": (x, columns, x),
        "layer_norm_grad_scale": (x, x),
        "softmax": (x,),
        "softmax_grad": (x, x),
    }[name]
    params = {"eps": 1e-5} if "norm" in name else {}
    if "softmax" in name:
        params = {"scale": 0.5, "causal": True}
    b.emit(name, *map(b.input, types), **params)  # type: ignore[arg-type]
    return b.eqns[-1]


def split_factor(e: Eqn) -> str:
    rule = rule_of(e)
    return next(f for f in rule.sizes if rule.marked(f, "!"))


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_only_statistics_travel(name: str, mesh: tuple[int, ...]) -> None:
    """All_reduce of values without the split factor, and the free step to a partial sum."""
    e = fused(name)
    split = 0
    for s in strategies(e, mesh):
        if not runs_in_phases(e, s):
            continue
        split += 1
        for step in phases(e, s, mesh):
            if isinstance(step, Exchange):
                assert step.move.kind in ("all_reduce", "to_partial_sum")
                assert step.value.type.shape == (8,), f"{step.value.type} is no statistic"
                assert step.move.source != step.move.target
    assert split > 0


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("softmax", [">", "+"]),  # max, sum
        ("softmax_grad", ["+"]),
        ("layer_norm", ["+", "+"]),  # mean, variance
        ("layer_norm_grad", ["+", "+", "+", "+"]),
        ("layer_norm_grad_scale", ["+", "+"]),
        ("cross_entropy", [">", "+"]),  # the label's logit stays partial
        ("cross_entropy_grad", [">", "+"]),
    ],
)
def test_the_all_reduces_of_each_row(name: str, kinds: list[str]) -> None:
    e = fused(name)
    k = split_factor(e)
    (s,) = (s for s in strategies(e, (2, 2)) if s.roles == ("-", k))
    moves = [p.move for p in phases(e, s, (2, 2)) if isinstance(p, Exchange)]
    assert [m.source.kind for m in moves if m.kind == "all_reduce"] == kinds
    assert all(m.axes == (1,) for m in moves)
    joint = next(s for s in strategies(e, (2, 2)) if s.roles == (k, k))
    moves = [p.move for p in phases(e, joint, (2, 2)) if isinstance(p, Exchange)]
    assert [m.axes for m in moves if m.kind == "all_reduce"] == [(0, 1)] * len(kinds)


def test_split_classes_leave_the_loss_a_partial_sum() -> None:
    e = fused("cross_entropy")
    (s,) = (s for s in strategies(e, (2, 2)) if s.roles == ("b", "v"))
    assert [*map(str, s.inputs), str(s.output)] == ["S0S1", "S0", "S0+P1"]
    steps = phases(e, s, (2, 2))
    last = steps[-1]
    assert isinstance(last, Interior) and last.strategy.roles == ("a", "+01")
    (free,) = (p for p in steps if isinstance(p, Exchange) and p.move.kind == "to_partial_sum")
    assert str(free.move.target) == "S0+P1"


@pytest.mark.parametrize("name", FUSED)
def test_the_interior_is_split_where_the_equation_is(name: str) -> None:
    """An interior value that has the split dim is split along it: no device works on the whole."""
    e = fused(name)
    k = split_factor(e)
    (s,) = (s for s in strategies(e, (2,)) if s.roles == (k,))
    for step in phases(e, s, (2,)):
        if isinstance(step, Interior) and 12 in step.eqn.output.type.shape:
            tile = local_shape(step.eqn.output.type.shape, step.strategy.output, (2,))
            assert 12 not in tile and 6 in tile, step.eqn


@pytest.mark.parametrize("name", FUSED)
def test_rows_split_or_not_need_no_phases(name: str) -> None:
    e = fused(name)
    k = split_factor(e)
    for s in strategies(e, (2, 2)):
        assert runs_in_phases(e, s) == (k in s.roles)


@pytest.mark.parametrize("name", FUSED)
def test_phases_compute_the_reference(name: str) -> None:
    compared = 0
    for seed, mesh in itertools.product(range(10), MESHES):
        drawn = random_equation(name, seed)
        values = environment(drawn.graph, drawn.arrays)
        (e,) = drawn.graph.eqns
        devices = SimulatedMesh(mesh, np.random.default_rng(seed))
        for s in strategies(e, mesh):
            if runs_in_phases(e, s):
                operands = [devices.scatter(values[v], x) for v, x in zip(e.inputs, s.inputs)]
                got = devices.gather(devices.run(e, s, operands))
                np.testing.assert_allclose(got, values[e.output], 1e-9, 1e-9, err_msg=str(e))
                compared += 1
    assert compared > 20


def test_a_wholly_masked_tile_gives_no_nan() -> None:
    """Causal scores split by keys: the first query sees nothing of the last device's keys."""
    b = Builder()
    x = b.input(TensorType((4, 8), "float64"))
    b.softmax(x, scale=1.0, causal=True)
    (e,) = b.eqns
    scores = np.random.default_rng(0).normal(size=(4, 8)) * 30
    (s,) = (s for s in strategies(e, (4,)) if s.roles == ("k",))
    devices = SimulatedMesh((4,), np.random.default_rng(0))
    got = devices.gather(devices.run(e, s, [devices.scatter(scores, s.inputs[0])]))
    want = environment(b.build((e.output,)), [scores])[e.output]
    np.testing.assert_allclose(got, want, 1e-12, 1e-300)


def test_an_expansion_is_made_once() -> None:
    e = fused("softmax")
    assert expanded(e) is expanded(e)
    s = strategies(e, (2,))[-1]
    assert phases(e, s, (2,)) is phases(e, s, (2,))
