"""Every vjp in float64: against finite differences, and by the inner-product identity."""

from __future__ import annotations

import numpy as np
import pytest

from hpc_alpa.ir import TABLE, Builder, Graph, TensorType, evaluate, verify
from hpc_alpa.transform import gradient, simplify
from tests.helpers.differences import directional
from tests.helpers.random_equations import EQUATIONS, Drawn, random_equation

# Operands that a row is differentiated by: gradients of gradients are constant in the first
# operand, and batch_norm's by x is that of its statistics too.
SECOND = {
    "batch_norm": (2, 3), "gelu_grad": (1,), "pool_pick": (1,), "pool_unpick": (1,),
    "softmax_grad": (1,),
}  # fmt: skip
# J and its transpose without differences: the operator itself is linear in these operands.
LINEAR = {
    "add": (0, 1), "broadcast": (0,), "combine": (0,), "combine_grad_weights": (3,),
    "concatenate": (0, 1, 2), "conv": (0,), "conv_grad_input": (0,), "conv_grad_weight": (1,),
    "cumsum": (0,), "dispatch": (0,), "gather": (0,), "gelu_grad": (1,), "neg": (0,), "pad": (0,),
    "pick": (0,), "pool_pick": (1,), "pool_unpick": (1,), "reduce_sum": (0,), "reshape": (0,),
    "scatter_add": (0,), "select": (1, 2), "slice": (0,), "softmax_grad": (1,), "sub": (0, 1),
    "transpose": (0,), "unpick": (0,), "unpool": (0,),
}  # fmt: skip
# Steps small enough that no maximum changes hands.
SMALL_STEPS = ("max", "min", "pool", "reduce_max", "reduce_min")
DIFFERENTIABLE = [n for n in EQUATIONS if TABLE[n].vjp and not n.endswith("_grad_scale")]


def transposed(drawn: Drawn) -> tuple[Graph, list[int]]:
    """From the graph's inputs and a cotangent u: the output, then J^T u for each floating input."""
    b = Builder(first_id=1000)
    b.inputs, b.eqns = list(drawn.graph.inputs), list(drawn.graph.eqns)
    (out,) = drawn.graph.outputs
    u = b.input(out.type)
    product = b.mul(out, u)
    loss = b.reduce_sum(product, dims=tuple(range(product.type.ndim)))
    floating = drawn.floating
    wanted = [b.inputs[k] for k in floating]
    gradients = gradient(b, tuple(b.eqns), loss, wanted)
    return verify(simplify(b.build((out, *gradients)))), floating


def operands(name: str, count: int) -> list[int]:
    return list(SECOND.get(name, range(count)))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_a_vjp_agrees_with_finite_differences(name: str) -> None:
    compared = 0
    for seed in range(30):
        drawn = random_equation(name, seed)
        (out,) = drawn.graph.outputs
        if not out.type.is_floating or out.type.dtype == "float32" or not drawn.floating:
            continue
        graph, floating = transposed(drawn)
        rng = np.random.default_rng(seed)
        u = rng.normal(size=out.type.shape)
        _, *parts = evaluate(graph, [*drawn.arrays, u])
        for k, part in zip(floating, parts, strict=True):
            if k not in operands(name, len(drawn.arrays)):
                continue
            v = rng.normal(size=drawn.arrays[k].shape)
            assert part.shape == v.shape
            step = 1e-6 if name in SMALL_STEPS else 1e-3
            forward = (directional(drawn.graph, drawn.arrays, k, v, step) * u).sum()
            scale = 1 + np.abs(part * v).sum()
            assert abs(forward - (part * v).sum()) < 1e-7 * scale, (str(drawn.graph), k)
            compared += 1
    assert compared >= 10


@pytest.mark.parametrize("name", LINEAR)
def test_the_vjp_of_a_linear_row_is_its_transpose(name: str) -> None:
    """<J v, u> == <v, J^T u>, with J the operator itself where the other operands are zero."""
    for seed in range(25):
        drawn = random_equation(name, seed)
        graph, floating = transposed(drawn)
        rng = np.random.default_rng(seed)
        (out,) = drawn.graph.outputs
        u = rng.normal(size=out.type.shape)
        _, *parts = evaluate(graph, [*drawn.arrays, u])
        for k, part in zip(floating, parts, strict=True):
            if k not in LINEAR[name]:
                continue
            v = rng.normal(size=drawn.arrays[k].shape)
            others = [
                np.zeros_like(a) if j in LINEAR[name] else a for j, a in enumerate(drawn.arrays)
            ]
            others[k] = v
            (image,) = evaluate(drawn.graph, others)
            np.testing.assert_allclose((image * u).sum(), (part * v).sum(), 1e-12, 1e-12)


@pytest.mark.parametrize(
    "name", [n for n in DIFFERENTIABLE if n not in ("batch_norm", "cross_entropy", "layer_norm")]
)
def test_the_transpose_of_the_transpose_is_the_derivative(name: str) -> None:
    """J^T u is linear in u: its own gradient by u, at v, is J v, whatever u is."""
    compared = 0
    for seed in range(16):
        drawn = random_equation(name, seed)
        (out,) = drawn.graph.outputs
        if out.type.dtype != "float64" or not drawn.floating:
            continue
        graph, floating = transposed(drawn)
        for place, k in enumerate(floating):
            if k not in operands(name, len(drawn.arrays)):
                continue
            b = Builder(first_id=10_000)
            b.inputs, b.eqns = list(graph.inputs), list(graph.eqns)
            u, part = graph.inputs[-1], graph.outputs[1 + place]
            v = b.input(part.type)
            product = b.mul(part, v)
            loss = b.reduce_sum(product, dims=tuple(range(product.type.ndim)))
            (image,) = gradient(b, tuple(b.eqns), loss, [u])
            rng = np.random.default_rng(seed)
            direction = rng.normal(size=part.type.shape)
            step = 1e-6 if name in ("max", "min", "reduce_max", "reduce_min") else 1e-3
            want = directional(drawn.graph, drawn.arrays, k, direction, step)
            inputs = [*drawn.arrays, rng.normal(size=u.type.shape), direction]
            (got,) = evaluate(verify(simplify(b.build((image,)))), inputs)
            np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6, err_msg=str(drawn.graph))
            compared += 1
    assert compared >= 5


def test_the_gradient_of_batch_norm_includes_its_statistics() -> None:
    """By x, through the rows that make mean and variance of x, against differences."""
    for seed, shape in enumerate([(4, 3), (2, 5, 2), (2, 3, 2, 4)]):
        rng = np.random.default_rng(seed)
        x, u = rng.normal(2.0, 3.0, shape), rng.normal(size=shape)
        scale, bias = rng.normal(size=(2, shape[-1]))
        b = Builder()
        inputs = [b.input(TensorType(np.shape(v), "float64")) for v in (x, scale, bias, u)]
        moments = b.batch_moments(inputs[0])
        count = x.size // shape[-1]
        statistics = b.batch_statistics(moments, count=count)
        out = b.batch_norm(inputs[0], statistics, *inputs[1:3], eps=1e-3)
        loss = b.reduce_sum(b.mul(out, inputs[3]), dims=tuple(range(x.ndim)))
        forward = b.build((loss,))
        parts = gradient(b, tuple(b.eqns), loss, inputs[:3])
        found = evaluate(verify(simplify(b.build(parts))), [x, scale, bias, u])
        for k, part in enumerate(found):
            v = rng.normal(size=part.shape)
            want = directional(forward, [x, scale, bias, u], k, v)
            np.testing.assert_allclose((part * v).sum(), want, rtol=1e-8, atol=1e-8)
