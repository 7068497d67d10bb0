"""`value_and_grad` and `grad`: against finite differences, on every kind of argument, in a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import special

import hpc_alpa.trace as ht
from hpc_alpa.errors import TracingError
from hpc_alpa.pytree import flatten
from tests.helpers.traced import require_same

RNG = np.random.default_rng(3)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape)


def require_gradient(loss: Callable[..., Any], *args: Any) -> None:
    """Directional derivatives along random directions, by central differences of fourth order."""
    leaves, tree = flatten(args[0])
    value, gradient = ht.value_and_grad(loss)(*args)
    assert flatten(gradient)[1] == tree
    np.testing.assert_allclose(value, loss(*args), rtol=1e-12)
    directions = [normal(*np.shape(x)) for x in leaves]
    h = 1e-3

    def at(step: float) -> float:
        moved = [x + step * d for x, d in zip(leaves, directions)]
        return float(loss(tree.unflatten(moved), *args[1:]))

    expected = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    found = sum(float((g * d).sum()) for g, d in zip(flatten(gradient)[0], directions))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


X, Y, W = normal(4, 3), normal(4, 3), normal(3, 5)
I = np.array([[2, 0], [1, 1]])  # noqa: E741
# Smooth functions of one or two arrays; each entry touches other rows of the tables. Alphabetical.
LOSSES: dict[str, Callable[[Any], Any]] = {
    "broadcasts": lambda x: (x[:, :1] * Y + x[1] - x[..., None].sum(axis=(1, 2))[:, None]).sum(),
    "clip": lambda x: np.clip(x, -0.5, 0.5).sum() + np.maximum(x, Y).sum(),
    "concatenate": lambda x: (
        (np.concatenate([x, 2 * x[:2]]) ** 2).sum() + (np.stack([x, Y]) ** 3).sum()
    ),
    "cumsum": lambda x: (np.cumsum(x, axis=1) * Y).sum() + (np.diff(x) ** 2).sum(),
    "division": lambda x: (Y / (2 + x**2) + 1 / (3 + x**2)).mean(),
    "einsum": lambda x: np.einsum("ij,kj,jl->", x, x, W) + np.einsum("ij->j", x)[0],
    "erf": lambda x: special.erf(x).sum() + special.expit(x).sum(),
    "exponentials": lambda x: (np.exp(x) + np.tanh(x) + np.expm1(x) + np.log1p(x**2)).sum(),
    "indices": lambda x: (x[I] ** 2).sum() + x[1:, ::2].sum() + (x[:, [0, 2]] * x[::-1, 1:]).sum(),
    "logarithms": lambda x: np.log(1 + x**2).sum() + np.log2(2 + x**2).sum(),
    "matmul": lambda x: np.tanh(x @ W).sum() + (x.T @ Y)[0, 1] + x[0] @ x[1],
    "maxima": lambda x: (x.max(axis=1) * Y[:, 0]).sum() + x.min() + np.ptp(x),
    "norms": lambda x: np.linalg.norm(x) + np.linalg.norm(x, axis=1).sum(),
    "pad and triangle": lambda x: (np.pad(x, 1)[1:, :-1] ** 2).sum() + (np.tril(x) * Y).sum(),
    "pick": lambda x: (
        x[np.arange(4), [0, 2, 1, 1]].sum() + np.take_along_axis(x, I[:, :1], 0).sum()
    ),
    "powers": lambda x: (abs(x) ** 1.5 + x**2 + x**3 + (1 + x**2) ** -0.5 + 2**x).sum(),
    "reshapes": lambda x: (x.reshape(2, -1).T @ x.ravel()[:2]).sum() + (x.repeat(2, 1) ** 2).sum(),
    "sign": lambda x: (np.sign(x) * x).sum() + abs(x).sum() + np.where(x > 0, x**2, -x).sum(),
    "square roots": lambda x: np.sqrt(1 + x**2).sum() + np.reciprocal(2 + x**2).sum(),
    "variance": lambda x: x.var() + x.std(axis=0).sum() + x.mean(axis=1).sum() ** 2,
}


@pytest.mark.parametrize("name", LOSSES)
def test_finite_differences(name: str) -> None:
    require_gradient(LOSSES[name], X)


def test_trees_numbers_and_static_leaves() -> None:
    params = {"w": W, "scale": 0.7, "pair": (normal(5), [normal(2, 5)])}

    def loss(p: Any, x: Any) -> Any:
        h = np.tanh(x @ p["w"] * p["scale"] + p["pair"][0])
        return (h @ p["pair"][1][0].T).mean()

    require_gradient(loss, params, X)
    value, gradient = ht.value_and_grad(loss)(params, X)
    assert type(gradient["scale"]) is float and isinstance(value, np.float64)

    mixed = {"w": W, "kind": "tanh", "count": 3, "table": np.arange(3), "none": None}
    g = ht.grad(lambda p: (p["w"] * p["count"]).sum() + p["table"].sum())(mixed)
    assert g["kind"] == "tanh" and g["none"] is None and g["count"] == 0
    assert type(g["count"]) is int and g["table"].dtype == np.int64 and not g["table"].any()
    np.testing.assert_array_equal(g["w"], np.full((3, 5), 3.0))


def test_argnums_and_aux() -> None:
    def loss(a: Any, b: Any, *, power: int) -> Any:
        return (a * b**power).sum()

    value, (gb, ga) = ht.value_and_grad(loss, argnums=(1, 0))(X, Y, power=2)
    np.testing.assert_allclose(value, (X * Y**2).sum())
    np.testing.assert_allclose(ga, Y**2)
    np.testing.assert_allclose(gb, 2 * X * Y)
    np.testing.assert_allclose(ht.grad(loss, argnums=1)(X, Y, power=2), gb)

    def with_aux(a: Any) -> Any:
        return (a**2).sum(), {"mean": a.mean(), "kind": "x", "plain": Y}

    (value, aux), g = ht.value_and_grad(with_aux, has_aux=True)(X)
    assert aux["kind"] == "x" and isinstance(aux["mean"], np.float64)
    np.testing.assert_allclose(g, 2 * X)
    g, aux = ht.grad(with_aux, has_aux=True)(X)
    np.testing.assert_allclose(aux["plain"], Y)


def test_only_the_argument_is_differentiated() -> None:
    """The same value used outside the argument, or twice in it, keeps its own role."""

    def step(w: Any, x: Any) -> Any:
        doubled = 2 * w
        outside = ht.grad(lambda v: (v * w * doubled).sum())(w)
        return outside

    require_same_with = ht.trace(step, (W, X), ("w", "x"))
    np.testing.assert_allclose(require_same_with.evaluate(W, X), 2 * W * W)

    def tied(w: Any) -> Any:
        return ht.grad(lambda p: (p["a"] * 3 + p["b"] * 5).sum())({"a": w, "b": w})

    made = ht.trace(tied, (W,), ("w",)).evaluate(W)
    np.testing.assert_array_equal(made["a"], np.full_like(W, 3))
    np.testing.assert_array_equal(made["b"], np.full_like(W, 5))


def test_gradients_of_computed_values_and_unused_ones() -> None:
    def step(w: Any, x: Any) -> Any:
        half = (w * 0.5).astype(np.float32)
        p = {"half": half, "unused": x}
        return ht.value_and_grad(lambda p, y: (p["half"] ** 2).sum() + y.sum())(p, x)

    t = require_same(step, W, X.astype(np.float32))
    value, gradient = t.evaluate(W, X.astype(np.float32))
    assert gradient["half"].dtype == np.float32 and not gradient["unused"].any()
    # Read by the loss alone: not among the results, and so not in the graph.
    t = ht.trace(lambda w: ht.grad(lambda w: w.sum())(w), (W,), ("w",))
    assert t.loss is None and len(t.gradients) == 1


def test_constant_losses() -> None:
    value, gradient = ht.value_and_grad(lambda p: 3.0)(X)
    assert value == 3.0 and not gradient.any() and gradient.shape == X.shape


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: ht.grad(lambda x: x * 2)(x), r"the loss is a float64\[4,3\].*\.mean\(\)"),
        (lambda x: ht.grad(lambda x: (x > 0).sum())(x), r"the loss is a int64\[\]"),
        (lambda x: ht.grad(lambda x: (x.sum(), x))(x), "has_aux=True"),
        (lambda x: ht.grad(lambda x: x.sum(), has_aux=True)(x), r"return \(loss, aux\)"),
        (lambda x: ht.grad(lambda n: n * 2.0)(3), "no leaf of argument .* is floating"),
        (lambda x: ht.grad(lambda x: x.sum(), argnums=1)(x), "argument 1 of 1"),
        (
            lambda x: ht.grad(lambda x: x.sum())(x) + ht.grad(lambda x: x.sum())(x),
            "a second value_and_grad.*differentiate the sum",
        ),
        (
            lambda x: ht.grad(lambda x: ht.grad(lambda y: (y**3).sum())(x).sum())(x),
            "a second value_and_grad",
        ),
    ],
)
def test_errors(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(TracingError, match=message) as caught:
        ht.trace(function, (X,), ("x",))
    if "argument 1" not in message:
        assert "test_trace_gradient.py:" in str(caught.value)


def test_gradients_at_kinks_and_ties_are_finite() -> None:
    x = np.array([0.0, 0.0, -1.0])
    for f in (lambda x: abs(x).sum(), lambda x: np.maximum(0, x).sum(), lambda x: x.max()):
        assert np.isfinite(ht.grad(f)(x)).all()
    np.testing.assert_array_equal(ht.grad(lambda x: x.max())(x), [0.5, 0.5, 0.0])
    np.testing.assert_array_equal(ht.grad(lambda x: np.maximum(0, x).sum())(x), [0, 0, 0])
    assert ht.grad(lambda x: special.expit(1e3 * x).sum())(np.array([-1.0]))[0] == 0.0


def test_float64_is_allowed_outside_a_step() -> None:
    x = X.astype(np.float32)
    value, gradient = ht.value_and_grad(lambda v: (v * np.sqrt(64)).sum())(x)
    assert value.dtype == np.float64 and gradient.dtype == np.float32
