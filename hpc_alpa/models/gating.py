"""Top-2 gating: which two experts take a token, at which of their places, with which weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc_alpa import nn


@dataclass(frozen=True)
class Routes:
    """Where the tokens of each group go; arrays of (groups, tokens, 2), the better expert first.

    Attributes:
        experts: integers in [0, experts).
        places: integers; the place among an expert's tokens. One that is not below the capacity
            is not there: the token is dropped by that expert.
        weights: of the expert's output in the token's; they may be read of dropped tokens too.
        balance: 0-d loss, 1 where all experts get as much.
    """

    experts: Any
    places: Any
    weights: Any
    balance: Any


def top2(gates: Any) -> Routes:
    """GShard's gating (Lepikhin et al. 2020, Alg. 1), without its random choice of second experts.

    Places are given in the order of the tokens, to all first choices before any second one. A group
    is gated alone, so splitting the batch between groups changes nothing.

    Args:
        gates: (groups, tokens, experts), positive, of sum 1 along experts.
    """
    groups, tokens, num_experts = np.shape(gates)
    values, experts = nn.top_k(gates, 2)
    chosen = nn.one_hot(experts, num_experts, "int32").transpose(0, 2, 1, 3)
    # All first choices, then all second ones.
    queue = chosen.reshape(groups, 2 * tokens, num_experts)
    before = np.cumsum(queue, axis=1, dtype="int32") - queue
    places = np.sum(before * queue, axis=-1, dtype="int32").reshape(groups, 2, tokens)
    # Alg. 1, line 13: sum over experts of (share of first choices) (mean gate), times experts.
    shares = np.mean(chosen[:, 0].astype(gates.dtype), axis=1)
    balance = np.mean(np.sum(shares * np.mean(gates, axis=1), axis=-1)) * num_experts
    weights = values / np.sum(values, axis=-1, keepdims=True)
    return Routes(experts, places.transpose(0, 2, 1), weights, balance)
