"""Optimizers against scalar loops and the kernels' reference, plain and traced."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from hpc_alpa.kernels.reference.adam import adam as reference_adam
from hpc_alpa.models import SGD, AdamW, adamw, sgd
from hpc_alpa.models.optimizers import Optimizer, num_parameters
from hpc_alpa.pytree import flatten, tree_map
from hpc_alpa.trace import trace

CONFIG = AdamW(learning_rate=0.1, beta1=0.8, beta2=0.95, eps=1e-6, weight_decay=0.3)


def tree(rng: np.random.Generator, dtype: str = "float64") -> Any:
    return {"w": rng.normal(size=(3, 4)).astype(dtype), "b": [rng.normal(size=4).astype(dtype)]}


def run(optimizer: Optimizer, num_steps: int, dtype: str = "float64", **kwargs: Any) -> Any:
    rng = np.random.default_rng(0)
    params = tree(rng, dtype)
    state = optimizer.init(params)
    for step in range(num_steps):
        params, state = optimizer.update(tree(rng, dtype), state, params, step, **kwargs)
    return params, state


def test_adam_is_the_kernels_reference() -> None:
    rng = np.random.default_rng(0)
    params = tree(rng)
    m, v = (tree_map(np.zeros_like, params) for _ in range(2))
    for t in range(1, 6):
        gradients = tree(rng)
        for p, g, a, b in zip(*(flatten(x)[0] for x in (params, gradients, m, v))):
            correction1, correction2 = 1 / (1 - 0.8**t), 1 / (1 - 0.95**t)
            decay = 0.3 if p.ndim > 1 else 0.0
            reference_adam(p, g, a, b, 0.1, 0.8, 0.95, correction1, correction2, 1e-6, decay)
    found, state = run(adamw(CONFIG), 5)
    for x, y in zip(flatten([found, state["m"], state["v"]])[0], flatten([params, m, v])[0]):
        np.testing.assert_allclose(x, y, rtol=1e-12)


def test_one_number_under_adam_by_hand() -> None:
    optimizer = adamw(AdamW(learning_rate=0.1))
    p, m, v = 1.0, 0.0, 0.0
    params: Any = np.array(p)
    state = optimizer.init(params)
    for step, g in enumerate([0.5, -2.0, 0.1]):
        params, state = optimizer.update(np.array(g), state, params, step)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        first, second = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
        p -= 0.1 * first / (math.sqrt(second) + 1e-8)
        assert float(params) == pytest.approx(p, rel=1e-12)


def test_the_first_step_of_adam_has_the_size_of_the_learning_rate() -> None:
    params, _ = run(adamw(AdamW(learning_rate=0.01)), 1)
    rng = np.random.default_rng(0)
    start, gradients = tree(rng), tree(rng)
    np.testing.assert_allclose(start["w"] - params["w"], 0.01 * np.sign(gradients["w"]), rtol=1e-5)


def test_only_matrices_decay() -> None:
    zero = AdamW(learning_rate=0.1, weight_decay=0.5)
    optimizer = adamw(zero)
    params = {"w": np.ones((2, 2)), "b": np.ones(2), "s": np.ones(())}
    gradients = tree_map(np.zeros_like, params)
    moved, _ = optimizer.update(gradients, optimizer.init(params), params, 0)
    assert (moved["w"] == 0.95).all() and (moved["b"] == 1).all() and moved["s"] == 1


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_gradient_descent(momentum: float) -> None:
    found, state = run(sgd(SGD(learning_rate=0.1, momentum=momentum)), 4)
    rng = np.random.default_rng(0)
    params = tree(rng)
    velocity = tree_map(np.zeros_like, params)
    for _ in range(4):
        velocity = tree_map(lambda u, g: momentum * u + g, velocity, tree(rng))
        params = tree_map(lambda p, u: p - 0.1 * u, params, velocity)
    np.testing.assert_allclose(found["w"], params["w"], rtol=1e-12)
    assert set(state) == ({"velocity"} if momentum else set())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", [adamw(CONFIG), sgd(SGD(0.1, 0.9))], ids=["adamw", "sgd"])
def test_a_traced_update_equals_the_plain_one(optimizer: Optimizer, dtype: str) -> None:
    """A traced step counter and learning rate too: they change without a new trace."""
    rng = np.random.default_rng(1)
    params, gradients = tree(rng, dtype), tree(rng, dtype)
    state = optimizer.init(params)
    traced = trace(optimizer.update, (gradients, state, params, 0, 0.1), ("g", "s", "p", "t", "lr"))
    for step, rate in ((0, 0.1), (7, 0.03)):
        plain = optimizer.update(gradients, state, params, step, rate)
        made = traced.evaluate(gradients, state, params, step, rate)
        for x, y in zip(flatten(made)[0], flatten(plain)[0]):
            assert x.dtype == y.dtype == dtype
            np.testing.assert_allclose(x, y, rtol=1e-6 if dtype == "float32" else 1e-13)


def test_parameters_are_counted() -> None:
    assert num_parameters(tree(np.random.default_rng(0))) == 16
