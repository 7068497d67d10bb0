"""Optimizers against scalar loops and the kernels' reference, plain and traced."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from hpc_alpa.errors import DataError
from hpc_alpa.kernels.reference.adam import adam as reference_adam
from hpc_alpa.models import SGD, Adafactor, AdamW, adafactor, adamw, sgd
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


def test_nesterovs_method_in_its_own_words() -> None:
    """The gradient is taken ahead of the point that moves (Sutskever et al. 2013, eq. 3, 4)."""
    rng = np.random.default_rng(0)
    hessian, target = np.diag(rng.uniform(0.5, 2, 5)), rng.normal(size=5)
    optimizer = sgd(SGD(learning_rate=0.1, momentum=0.8, nesterov=True))
    start = rng.normal(size=5)
    params: Any = start
    state = optimizer.init(params)
    x, velocity = start, np.zeros(5)
    for step in range(6):
        ahead = x + 0.8 * velocity
        np.testing.assert_allclose(params, ahead, rtol=1e-12)
        velocity = 0.8 * velocity - 0.1 * (hessian @ (ahead - target))
        x = x + velocity
        params, state = optimizer.update(hessian @ (params - target), state, params, step)
    assert np.abs(x - (x + 0.8 * velocity)).max() > 1e-3, "the two points differ"


def test_nesterov_without_momentum_is_refused() -> None:
    with pytest.raises(DataError, match="nesterov with momentum 0"):
        SGD(nesterov=True)


@pytest.mark.parametrize("relative", [True, False])
def test_adafactor_is_the_papers_algorithm(relative: bool) -> None:
    config = Adafactor(learning_rate=0.6, relative=relative, decay=0.7, clip=0.4, eps2=0.05)
    optimizer = adafactor(config)
    rng = np.random.default_rng(0)
    params: Any = {
        "matrix": rng.normal(size=(3, 4)),
        "stack": rng.normal(size=(2, 4, 3)) * 1e-3,
        "vector": rng.normal(size=5),
    }
    state = optimizer.init(params)
    # The paper has one matrix at a time, but one step size and one clip for each parameter.
    x = [params["matrix"].copy(), params["stack"].copy(), params["vector"].copy()]
    rows = [np.zeros((1, 3)), np.zeros((2, 4)), None]
    columns = [np.zeros((1, 4)), np.zeros((2, 3)), None]
    squares = np.zeros(5)
    for t in range(1, 6):
        gradients = [rng.normal(size=p.shape) * 10.0 ** rng.integers(-3, 3) for p in x]
        new = t**-0.7  # 1 - beta2, Sec. 7.2
        for k, g in enumerate(gradients):
            if k == 2:
                squares = (1 - new) * squares + new * (g * g + 1e-30)
                direction = g / np.sqrt(squares)
            else:
                whole = g.reshape(-1, *g.shape[-2:])
                made = np.empty_like(whole)
                for j, one in enumerate(whole):
                    n, m = one.shape
                    r, c = rows[k][j], columns[k][j]  # type: ignore[index]
                    r[:] = (1 - new) * r + new * (one * one + 1e-30) @ np.ones(m)
                    c[:] = (1 - new) * c + new * np.ones(n) @ (one * one + 1e-30)
                    made[j] = one / np.sqrt(np.outer(r, c) / (np.ones(n) @ r))
                direction = made.reshape(g.shape)
            direction = direction / max(1, math.sqrt((direction**2).mean()) / 0.4)
            size = 0.6
            if relative:
                size = max(0.05, math.sqrt((x[k] ** 2).mean())) * min(0.6, 1 / math.sqrt(t))
            x[k] = x[k] - size * direction
        named = dict(zip(("matrix", "stack", "vector"), gradients, strict=True))
        params, state = optimizer.update(named, state, params, t - 1)
        for found, want in zip(params.values(), x, strict=True):
            np.testing.assert_allclose(found, want, rtol=1e-11, atol=1e-14)
    shapes = {name: {k: v.shape for k, v in kept.items()} for name, kept in state.items()}
    assert shapes == {
        "matrix": {"columns": (4,), "rows": (3,)},
        "stack": {"columns": (2, 3), "rows": (2, 4)},
        "vector": {"squares": (5,)},
    }


def test_adafactor_stands_still_without_a_gradient() -> None:
    optimizer, params = adafactor(), tree(np.random.default_rng(0), "float32")
    zero = tree_map(np.zeros_like, params)
    moved, _ = optimizer.update(zero, optimizer.init(params), params, 0)
    for x, y in zip(flatten(moved)[0], flatten(params)[0]):
        np.testing.assert_array_equal(x, y)


OPTIMIZERS = {  # alphabetical
    "adafactor": adafactor(),
    "adafactor, absolute": adafactor(Adafactor(relative=False, clip=0.3)),
    "adamw": adamw(CONFIG),
    "nesterov": sgd(SGD(0.1, 0.9, nesterov=True)),
    "sgd": sgd(SGD(0.1, 0.9)),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
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
