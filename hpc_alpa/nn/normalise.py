"""Functions that normalise: along one dim, or, as batch_norm does, along all others."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hpc_alpa.errors import TracingError
from hpc_alpa.trace import apply


def softmax(x: Any, axis: int = -1, scale: float = 1.0, causal: bool = False) -> Any:
    """exp(scale x) / sum exp(scale x) along `axis`.

    Args:
        scale: a static number, 1/sqrt(dim) in attention.
        causal: x has dims (..., query, key), and a query sees the keys up to its own position; the
            others get 0. Only along the last axis.
    """
    if axis in (-1, np.ndim(x) - 1):
        return apply("softmax", x, scale=float(scale), causal=bool(causal))
    if causal:
        raise TracingError(f"softmax: causal goes along the last axis, not axis {axis}")
    last = apply("softmax", np.moveaxis(x, axis, -1), scale=float(scale), causal=False)
    return np.moveaxis(last, -1, axis)


def sum_squares(x: Any) -> Any:
    """The sum of all elements' squares, 0-d; float32 for 16-bit values."""
    return apply("sum_squares", x)


def log_softmax(x: Any, axis: int = -1) -> Any:
    """x - log sum exp(x) along `axis`."""
    # The shift cancels, and so does its gradient.
    shifted = x - apply("stop_gradient", np.max(x, axis=axis, keepdims=True))
    return shifted - np.log(np.sum(np.exp(shifted), axis=axis, keepdims=True))


def layer_norm(x: Any, scale: Any, bias: Any, eps: float = 1e-5) -> Any:
    """(x - mean) / sqrt(variance + eps) * scale + bias along the last dim.

    Args:
        scale, bias: vectors of the last dim's extent and of x's dtype.
    """
    return apply("layer_norm", x, scale, bias, eps=float(eps))


def batch_norm(x: Any, scale: Any, bias: Any, eps: float = 1e-5, rows: int | None = None) -> Any:
    """(x - mean) / sqrt(variance + eps) * scale + bias, with the statistics of this batch.

    The batch is the step's whole batch: more microbatches than one would change its meaning. With
    `rows`, each run of so many rows is normalised by its own statistics, as if it were a batch of
    its own; then microbatches of whole runs change nothing.

    Args:
        x: (batch, *spatial, channels).
        scale, bias: vectors of one number a channel, of x's dtype.
        rows: divides the batch.
    """
    statistics = _batch_statistics(x, rows)
    return apply("batch_norm", x, statistics, scale, bias, eps=float(eps), **_grouped(rows))


def batch_statistics(x: Any, rows: int | None = None) -> tuple[Any, Any]:
    """Mean and variance of each channel, as `batch_norm` takes them; for a moving average.

    With `rows`, the means of those of all runs. float32 for 16-bit values. No gradient flows
    through them.
    """
    dtype = np.float64 if x.dtype == np.float64 else np.float32
    statistics = _batch_statistics(x, rows).astype(dtype)
    if rows is not None:
        statistics = np.mean(statistics, axis=0)
    return statistics[0], statistics[1]


def _batch_statistics(x: Any, rows: int | None) -> Any:
    batch, *inner = np.shape(x)[:-1]
    count = math.prod((rows or batch, *inner))
    return apply("batch_statistics", apply("batch_moments", x, **_grouped(rows)), count=count)


def _grouped(rows: int | None) -> dict[str, Any]:
    return {} if rows is None else {"rows": int(rows)}


def batch_norm_inference(
    x: Any, scale: Any, bias: Any, mean: Any, variance: Any, eps: float = 1e-5
) -> Any:
    """`batch_norm` with given statistics of each channel, those of a training."""
    r = scale / np.sqrt(variance + variance.dtype.type(eps))
    return (x - mean) * r + bias
