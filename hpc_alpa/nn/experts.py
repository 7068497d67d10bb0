"""Choosing among experts: the largest of a row, and tokens to the places of experts and back."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpc_alpa.ir import TensorType
from hpc_alpa.trace import apply


def top_k(x: Any, k: int) -> tuple[Any, Any]:
    """The k largest along the last dim, the largest first, and their positions (int64).

    Of equal elements the first counts as larger. The gradient goes to the elements taken.
    """
    indices = apply("top_k", x, k=int(k))
    return apply("pick", x, indices), indices


def dispatch(x: Any, experts: Any, places: Any, num_experts: int, capacity: int) -> Any:
    """Each token to the places of its experts; what no token takes is zeros.

    Args:
        x: (groups, tokens, width), floating.
        experts, places: integers (groups, tokens, choices). A choice whose expert is not in
            [0, num_experts) or whose place is not in [0, capacity) is dropped. Places are given to
            one token each; tokens at one place add up.

    Returns:
        (groups, num_experts, capacity, width).
    """
    groups, _, width = np.shape(x)
    name = np.dtype(x.dtype).name
    type = TensorType((groups, int(num_experts), int(capacity), width), name)
    return apply("dispatch", x, experts, places, type=type)


def combine(y: Any, experts: Any, places: Any, weights: Any) -> Any:
    """For each token the weighted sum of what is at its places; dropped choices add nothing.

    Args:
        y: (groups, experts, capacity, width), floating.
        experts, places, weights: (groups, tokens, choices), as `dispatch` takes them; the weights
            of y's dtype.

    Returns:
        (groups, tokens, width).
    """
    return apply("combine", y, experts, places, weights)
