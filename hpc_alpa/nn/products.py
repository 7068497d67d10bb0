"""Products in the dtype of their operands, where NumPy has none for bfloat16 or makes float32."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpc_alpa.trace import TracedArray, apply


def einsum(equation: str, x: Any, y: Any) -> Any:
    """`np.einsum` of two operands of one dtype, which the result has: "bhqd,bhkd->bhqk".

    16-bit operands are multiplied in float32 and rounded once.
    """
    plain = not isinstance(x, TracedArray) and not isinstance(y, TracedArray)
    if plain and np.dtype(x.dtype).itemsize == 2:
        return apply("dot_general", x, y, equation=equation)
    return np.einsum(equation, x, y)


def matmul(x: Any, w: Any) -> Any:
    """x (..., inputs) by w (inputs, outputs), of one dtype, which the result has."""
    if np.dtype(x.dtype).itemsize > 2:
        return x @ w
    rows = "abcdefgh"[: np.ndim(x) - 1]
    return einsum(f"{rows}y,yz->{rows}z", x, w)
