"""Reverse mode as a transform: random graphs, notes, zeros, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from hpc_alpa.errors import TracingError
from hpc_alpa.ir import Builder, TensorType, Var, evaluate, verify
from hpc_alpa.transform import gradient, simplify
from tests.helpers.differences import directional
from tests.helpers.random_graphs import random_graph


def test_gradients_of_random_graphs_agree_with_finite_differences() -> None:
    compared = 0
    for seed in range(0, 120, 2):
        drawn = random_graph(seed, 8)
        names = {e.op.name for e in drawn.graph.eqns}
        if names & {"cast", "compare", "stop_gradient", "max", "min", "reduce_max", "reduce_min"}:
            continue  # differences across a jump, or of rounded values, say nothing
        b = Builder(first_id=1000)
        b.inputs, b.eqns = list(drawn.graph.inputs), list(drawn.graph.eqns)
        y = b.tanh(drawn.graph.outputs[-1])
        loss = b.reduce_sum(y, dims=tuple(range(y.type.ndim)))
        wanted = [b.inputs[k] for k in drawn.floating]
        graph = simplify(verify(b.build((loss, *gradient(b, tuple(b.eqns), loss, wanted)))))
        _, *parts = evaluate(graph, drawn.arrays)
        rng = np.random.default_rng(seed)
        for k, part in zip(drawn.floating, parts, strict=True):
            v = rng.normal(size=part.shape)
            slope = float(directional(graph, drawn.arrays, k, v, 1e-4))
            scale = 1 + np.abs(part * v).sum()
            assert abs(slope - (part * v).sum()) < 1e-6 * scale, (seed, k)
            compared += 1
    assert compared > 40


def scalar_graph() -> tuple[Builder, Var, Var]:
    b = Builder()
    x = b.input(TensorType((3,), "float64"))
    return b, x, b.reduce_sum(b.mul(x, x), dims=(0,))


def test_a_gradient_is_noted_backward_with_its_origin() -> None:
    b, x, loss = scalar_graph()
    before = len(b.eqns)
    b.eqns[0] = replace(b.eqns[0], phase="forward", layer=2, source="a.py:1")
    (g,) = gradient(b, tuple(b.eqns), loss, [x])
    made = [e for e in b.eqns[before:] if e.phase == "backward"]
    assert {e.origin for e in made} == {loss.id, b.eqns[0].output.id}
    product = next(e for e in made if e.origin == b.eqns[0].output.id)
    assert (product.layer, product.source) == (2, "a.py:1")
    np.testing.assert_allclose(evaluate(b.build((g,)), [np.arange(3.0)])[0], [0, 2, 4])


def test_what_the_loss_does_not_depend_on_has_a_zero_gradient() -> None:
    b, x, loss = scalar_graph()
    other = b.input(TensorType((2, 2), "float32"))
    g = gradient(b, tuple(b.eqns), loss, [other, x])
    zero, _ = evaluate(b.build(g), [np.ones(3), np.ones((2, 2))])
    assert (zero == 0).all() and zero.dtype == np.float32


def test_the_gradient_stops_where_it_is_told_to() -> None:
    b, x, loss = scalar_graph()
    stopped = b.reduce_sum(b.mul(b.stop_gradient(x), x), dims=(0,))
    (g,) = gradient(b, tuple(b.eqns), stopped, [x])
    np.testing.assert_allclose(evaluate(b.build((g,)), [np.arange(3.0)])[0], [0, 1, 2])


@pytest.mark.parametrize("type", [TensorType((2,), "float32"), TensorType((), "int64")])
def test_only_a_floating_scalar_has_a_gradient(type: TensorType) -> None:
    b = Builder()
    x = b.input(type)
    with pytest.raises(TracingError, match=r"0-d floating loss, not of .*reduce it with"):
        gradient(b, (), x, [x])


def test_the_gradient_of_a_power_is_finite_at_zero() -> None:
    b = Builder()
    x, y = b.input(TensorType((), "float64")), b.input(TensorType((), "float64"))
    z = b.pow(x, y)
    g = gradient(b, tuple(b.eqns), z, [x, y])
    assert [float(a) for a in evaluate(b.build(g), [0.0, 2.0])] == [0.0, 0.0]
    assert [float(a) for a in evaluate(b.build(g), [2.0, 3.0])] == pytest.approx(
        [12, 8 * math.log(2)]
    )


def test_equal_maxima_share_the_gradient_of_a_reduction() -> None:
    b = Builder()
    x = b.input(TensorType((4,), "float64"))
    top = b.reduce_max(x, dims=(0,))
    (g,) = gradient(b, tuple(b.eqns), top, [x])
    (got,) = evaluate(b.build((g,)), [np.array([1.0, 3, 3, 2])])
    np.testing.assert_allclose(got, [0, 0.5, 0.5, 0])


def test_the_gradient_of_relu_reads_what_relu_made() -> None:
    """What relu takes need not be kept. Ties and signed zeros pass nothing on, NaN does."""
    x = np.array([-1.0, -0.0, 0.0, 2.0, np.nan, np.inf])
    b = Builder()
    v = b.input(TensorType(x.shape, "float64"))
    y = b.max(0.0, v)
    loss = b.reduce_sum(y, dims=(0,))
    (g,) = gradient(b, tuple(b.eqns), loss, [v])
    graph = simplify(b.build((g,)))
    [compared] = [e for e in graph.eqns if e.op.name == "compare"]
    assert v not in compared.inputs and y in compared.inputs
    np.testing.assert_array_equal(evaluate(graph, [x])[0], [0, 0, 0, 1, 1, 1])
