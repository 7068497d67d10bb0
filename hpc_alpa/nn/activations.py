"""Activation functions; elementwise, any shape, floating."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpc_alpa.trace import apply


def gelu(x: Any) -> Any:
    """x Phi(x) by its tanh approximation (Hendrycks and Gimpel 2016, Sec. 2)."""
    return apply("gelu", x)


def relu(x: Any) -> Any:
    """max(x, 0), with gradient 0 at 0."""
    return np.maximum(0, x)


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x)), without overflow at either end."""
    half = np.asarray(0.5, x.dtype)[()]
    # By tanh: the gradient of 1 / (1 + exp(-x)) is 0 * inf where exp overflows.
    return (np.tanh(x * half) + x.dtype.type(1)) * half


def silu(x: Any) -> Any:
    """x sigmoid(x), also called swish."""
    return x * sigmoid(x)
