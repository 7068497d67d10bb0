"""Top-2 gating against a loop over tokens, and what gradients it lets pass."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from hpc_alpa import nn
from hpc_alpa.models.gating import Routes, top2
from hpc_alpa.trace import grad, trace


def random_gates(groups: int, tokens: int, experts: int, seed: int = 0) -> np.ndarray:
    return nn.softmax(np.random.default_rng(seed).normal(size=(groups, tokens, experts)))


def plain(gates: np.ndarray) -> Routes:
    """Lepikhin et al. 2020, Alg. 1, as it stands there: two loops over the tokens of a group."""
    groups, tokens, num_experts = gates.shape
    experts = np.argsort(-gates, axis=-1)[..., :2]
    places = np.zeros((groups, tokens, 2), int)
    weights = np.zeros((groups, tokens, 2))
    balance = []
    for g in range(groups):
        count: Counter[int] = Counter()
        for k in range(2):
            for s in range(tokens):
                e = experts[g, s, k]
                places[g, s, k] = count[e]
                count[e] += 1
                weights[g, s, k] = gates[g, s, e] / gates[g, s, experts[g, s]].sum()
        share = [(experts[g, :, 0] == e).mean() for e in range(num_experts)]
        balance.append(sum(share * gates[g].mean(0)) * num_experts)
    return Routes(experts, places, weights, np.mean(balance))


@pytest.mark.parametrize(("groups", "tokens", "experts"), [(3, 16, 4), (1, 7, 2), (4, 8, 16)])
def test_top2_is_the_papers_algorithm(groups: int, tokens: int, experts: int) -> None:
    gates = random_gates(groups, tokens, experts)
    traced = trace(lambda g: vars(top2(g)), (gates,), ("gates",), allow_float64=True)
    want = vars(plain(gates))
    for found in (vars(top2(gates)), traced.evaluate(gates)):
        for name, value in want.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-12, err_msg=name)
        assert found["places"].dtype == np.int32


def test_places_of_an_expert_are_taken_once() -> None:
    routes = top2(random_gates(2, 32, 4))
    for g in range(2):
        taken = Counter(zip(routes.experts[g].ravel(), routes.places[g].ravel(), strict=True))
        assert set(taken.values()) == {1}
        for e in range(4):
            places = sorted(p for x, p in taken if x == e)
            assert places == list(range(len(places)))


def test_balance_is_1_where_all_experts_get_as_much() -> None:
    even = np.full((1, 4, 4), 0.1) + 0.6 * np.eye(4)
    assert top2(even).balance == pytest.approx(1)
    crowded = np.tile([0.7, 0.1, 0.1, 0.1], (1, 4, 1))
    assert top2(crowded).balance == pytest.approx(4 * 0.7)


def test_the_gradient_of_the_balance_is_that_of_the_mean_gates() -> None:
    """The number of tokens has none (Lepikhin et al. 2020, Sec. 2.2)."""
    gates = random_gates(2, 6, 3)
    found = grad(lambda g: top2(g).balance)(gates)
    share = np.stack([(gates.argmax(-1) == e).mean(1) for e in range(3)], axis=-1)
    np.testing.assert_allclose(found, np.repeat(share[:, None] * 3 / 12, 6, axis=1), rtol=1e-12)
