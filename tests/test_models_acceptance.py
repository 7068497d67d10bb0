"""The graphs of the acceptance cases are the ones that the closed forms count."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hpc_alpa.ir import verify
from hpc_alpa.pytree import flatten
from hpc_alpa.trace import trace
from tests.models import CASES


def all_reduce(nbytes: float, n: int = 4, alpha: float = 1, beta: float = 1) -> float:
    """Alpa's formula with its tie-breaker."""
    return alpha + beta * 2 * (n - 1) / n * nbytes + 0.01


@pytest.mark.parametrize("name", CASES)
def test_a_case_traces_to_the_new_state_alone(name: str) -> None:
    step, state, batch = CASES[name]()
    traced = trace(step, (state, batch), ("state", "batch"))
    verify(traced.graph)
    assert [leaf.path for leaf in traced.outputs] == list(flatten(state)[1].paths())
    assert traced.captured == ()
    assert {e.phase for e in traced.graph.eqns} == {"forward", "backward", "apply"}
    made = traced.evaluate(state, batch)
    for x, y in zip(flatten(made)[0], flatten(step(state, batch))[0]):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)


def test_the_gradients_of_s1_cost_what_alpa_says() -> None:
    _, state, _ = CASES["S1"]()
    params = flatten(state["params"])[0]
    assert len(params) == 12
    assert len(flatten([state["optimizer"], state["step"]])[0]) == 25
    replicated = 3 * (12 + 25)  # Alpa's penalty
    assert sum(all_reduce(p.nbytes) for p in params) + replicated == pytest.approx(38139.12)


@pytest.mark.parametrize(
    ("name", "count", "objective"), [("S5", 5, 245765.05), ("S12", 7, 344071.07)]
)
def test_the_activations_of_tensor_parallel_cost_what_alpa_says(
    name: str, count: int, objective: float
) -> None:
    _, _, batch = CASES[name]()
    assert count * all_reduce(batch["x"].nbytes) == pytest.approx(objective)


def test_the_gradients_of_s11_cost_what_alpa_says() -> None:
    _, state, _ = CASES["S11"]()
    params = flatten(state["params"])[0]
    assert len(params) == 2 * 12
    replicated = 3 * (24 + 49)  # Alpa's penalty
    assert sum(all_reduce(p.nbytes) for p in params) + replicated == pytest.approx(152691.24)


@pytest.mark.parametrize(("name", "count"), [("S12", 6), ("S12 in three", 8)])
def test_s12_has_the_products_of_two_encoder_layers(name: str, count: int) -> None:
    step, state, batch = CASES[name]()
    graph = trace(step, (state, batch), ("state", "batch")).graph
    products = [e for e in graph.eqns if e.op.name == "dot_general"]
    forward = [e for e in products if e.phase == "forward"]
    assert len(forward) == 2 * count  # qkv or q, k, v; scores, mixed, out, up, down
    # Both gradients of each, but for the batch's hidden states, which those of layer 0 read.
    assert len(products) - len(forward) == 2 * len(forward) - (count - 5)
    weights = [p for p in flatten(state["params"])[0] if p.ndim == 2]
    assert sum(p.size for p in weights) == 2 * 12 * 128 * 128
    assert math.prod(batch["x"].shape) == 8 * 8 * 128
