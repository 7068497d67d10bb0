"""Layers: pairs of `init_x(...)`, which makes parameters, and `x(params, ...)`, which uses them.

Random parameters are keyed by (seed, name), so they do not depend on what else a model has, nor on
the sharding.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hpc_alpa import nn, random

Params = dict[str, Any]
# GPT-2 (Radford et al. 2019) initialises weights by a normal distribution of this deviation.
DEVIATION = 0.02


def init_weight(
    seed: Any, name: str, shape: tuple[int, ...], dtype: str, deviation: float = DEVIATION
) -> Any:
    return random.normal(shape, seed=seed, name=name, dtype=dtype) * deviation


def init_dense(
    seed: Any, name: str, inputs: int, outputs: int, dtype: str, deviation: float = DEVIATION
) -> Params:
    """A weight (inputs, outputs) and a bias (outputs,) of zeros."""
    weight = init_weight(seed, f"{name}/weight", (inputs, outputs), dtype, deviation)
    return {"weight": weight, "bias": np.zeros(outputs, dtype)}


def dense(params: Params, x: Any) -> Any:
    """x (..., inputs) -> (..., outputs)."""
    return nn.matmul(x, params["weight"]) + params["bias"]


def init_norm(width: int, dtype: str) -> Params:
    return {"scale": np.ones(width, dtype), "bias": np.zeros(width, dtype)}


def norm(params: Params, x: Any) -> Any:
    """Layer norm over the last dim."""
    return nn.layer_norm(x, params["scale"], params["bias"])


def init_attention(
    seed: Any, name: str, hidden: int, dtype: str, deviation: float = DEVIATION
) -> Params:
    """Queries, keys and values are three matrices, so that each can be split by heads.

    One matrix of all three could not: behind a factor of 3 that is not split, heads have no
    contiguous tile.
    """
    made = {k: init_dense(seed, f"{name}/{k}", hidden, hidden, dtype) for k in ("q", "k", "v")}
    made["out"] = init_dense(seed, f"{name}/out", hidden, hidden, dtype, deviation)
    return made


def attention(params: Params, x: Any, num_heads: int, causal: bool) -> Any:
    """Self-attention, (batch, sequence, hidden) -> the same."""
    batch, sequence, hidden = np.shape(x)

    def heads(y: Any) -> Any:
        return y.reshape(batch, sequence, num_heads, hidden // num_heads).transpose(0, 2, 1, 3)

    q, k, v = (heads(dense(params[name], x)) for name in ("q", "k", "v"))
    mixed = nn.attention(q, k, v, causal=causal)
    return dense(params["out"], mixed.transpose(0, 2, 1, 3).reshape(batch, sequence, hidden))


def init_feed_forward(
    seed: Any, name: str, hidden: int, inner: int, dtype: str, deviation: float = DEVIATION
) -> Params:
    return {
        "up": init_dense(seed, f"{name}/up", hidden, inner, dtype),
        "down": init_dense(seed, f"{name}/down", inner, hidden, dtype, deviation),
    }


def feed_forward(params: Params, x: Any) -> Any:
    """gelu between two dense layers, (..., hidden) -> the same."""
    return dense(params["down"], nn.gelu(dense(params["up"], x)))
