"""Choosing among experts: the largest of a row, and what is made of them."""

from __future__ import annotations

from typing import Any

from hpc_alpa.trace import apply


def top_k(x: Any, k: int) -> tuple[Any, Any]:
    """The k largest along the last dim, the largest first, and their positions (int64).

    Of equal elements the first counts as larger. The gradient goes to the elements taken.
    """
    indices = apply("top_k", x, k=int(k))
    return apply("pick", x, indices), indices
