"""What every model's training must show: plain = traced = in parallel, and its gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from hpc_alpa.api import fetch, parallelize
from hpc_alpa.pytree import flatten, tree_map
from hpc_alpa.trace import trace, value_and_grad
from tests.helpers.equality import cluster

Step = Callable[[Any, Any], tuple[Any, Any]]


def require_trains(step: Step, state: Any, batches: Sequence[Any]) -> list[float]:
    """The losses of a training on plain arrays, after comparing it with the traced one."""
    plain = made = state
    traced = trace(step, (state, batches[0]), ("state", "batch"))
    losses = []
    for batch in batches:
        plain, metrics = step(plain, batch)
        made, same = traced.evaluate(made, batch)
        assert same["loss"].dtype == metrics["loss"].dtype
        np.testing.assert_allclose(same["loss"], metrics["loss"], rtol=1e-6)
        losses.append(float(metrics["loss"]))
    assert plain["step"] == made["step"] == len(batches)
    for x, y in zip(flatten(made)[0], flatten(plain)[0], strict=True):
        assert np.asarray(x).dtype == np.asarray(y).dtype
        tolerance = 1e-12 if np.asarray(x).dtype == np.float64 else 2e-6
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=tolerance)
    return losses


def require_gradient(
    loss: Callable[[Any], Any],
    params: Any,
    *,
    scale: float = 1.0,
    step: float = 1e-4,
    rel: float = 1e-6,
) -> None:
    """The gradient of a float64 loss, along one random direction for each parameter.

    Args:
        scale: of the parameters, away from the flat start.
        step: of the differences, whose error is of its fourth power, and of the rounding's share
            in them; small enough to stay on one side of a kink.
    """
    params = tree_map(lambda p: p * scale, params)
    _, gradients = value_and_grad(loss)(params)
    rng = np.random.default_rng(0)
    leaves, tree = flatten(params)
    for k, g in enumerate(flatten(gradients)[0]):
        v = rng.normal(size=g.shape)

        def at(h: float, k: int = k, v: np.ndarray = v) -> float:
            moved = [p + h * v if j == k else p for j, p in enumerate(leaves)]
            return float(loss(tree.unflatten(moved)))

        slope = (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)
        assert slope == pytest.approx((g * v).sum(), rel=rel, abs=1e-8), tree.paths()[k]


def require_parallel_equals_one_rank(
    step: Step, init: Callable[[Any], Any], batches: Sequence[Any], method: str, **options: Any
) -> Any:
    """Losses and state of a float64 training on 2 threads are those of plain NumPy.

    Returns:
        The parallel step, planned and run.
    """
    parallel = parallelize(
        step, method=method, backend="local", cluster=cluster(2), costs="analytic", **options
    )
    made, plain = parallel.create(init, 3), init(3)
    for batch in batches:
        made, metrics = parallel(made, batch)
        plain, want = step(plain, batch)
        np.testing.assert_allclose(float(metrics["loss"]), want["loss"], rtol=1e-10)
    leaves, tree = flatten(fetch(made))
    for path, x, y in zip(tree.paths(), leaves, flatten(plain)[0], strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-8, atol=1e-10, err_msg=path)
    return parallel
