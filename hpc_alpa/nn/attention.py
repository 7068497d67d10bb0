"""Attention of queries to keys, by two products and a softmax."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hpc_alpa.errors import TracingError
from hpc_alpa.nn.normalise import softmax
from hpc_alpa.nn.products import einsum


def attention(q: Any, k: Any, v: Any, causal: bool = True) -> Any:
    """softmax(q k^T / sqrt(dim)) v (Vaswani et al. 2017, eq. 1), per head.

    Args:
        q: (batch, heads, queries, dim).
        k, v: (batch, heads, keys, dim) and (batch, heads, keys, width).
        causal: query i sees keys 0..i.

    Returns:
        (batch, heads, queries, width).
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        if np.ndim(x) != 4:
            raise TracingError(
                f"attention: {name} has shape {np.shape(x)}, not (batch, heads, sequence, dim)"
            )
    scores = einsum("bhqd,bhkd->bhqk", q, k)
    weights = softmax(scores, scale=1.0 / math.sqrt(np.shape(q)[-1]), causal=causal)
    return einsum("bhqk,bhkv->bhqv", weights, v)
