"""Softmax over the last dim, and its gradient; what a causal mask hides is not computed."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_alpa.kernels.cpu.compile import compiled, fill, store
from hpc_alpa.kernels.cpu.elementary import exp, larger
from hpc_alpa.kernels.scalar import softmax as scalar

# The rest of a row after its last full vectors would run one exp at a time: rows are padded to
# this many elements with -inf, whose exp is 0.
LANES = 32

_num_visible = compiled(inline=True)(scalar.num_visible)
_grad = compiled(inline=True)(scalar.grad)


@compiled()
def _softmax(
    x: Any, scale: float, causal: bool, row_offset: int, column_offset: int, out: Any
) -> None:
    n, q, k = x.shape
    real = x.dtype.type
    factor, lowest, zero = real(scale), real(-np.inf), real(0)
    buffer = np.empty(k + LANES, x.dtype)
    for i in range(n):
        for a in range(q):
            row = x[i, a]
            target = out[i, a]
            count = _num_visible(a, row_offset, column_offset, k) if causal else k
            for j in range(count):
                buffer[j] = row[j] * factor
            padded = (count + LANES - 1) // LANES * LANES
            fill(buffer[count:padded], lowest)
            top = lowest
            for j in range(padded):
                top = larger(top, buffer[j])
            if top == lowest:
                count = padded = 0
            total = zero
            for j in range(padded):
                e = exp(buffer[j] - top)
                buffer[j] = e
                total += e
            share = real(1) / total
            for j in range(count):
                target[j] = buffer[j] * share
            fill(target[count:], zero)


@compiled()
def _softmax_grad(y: Any, ct: Any, scale: float, out: Any) -> None:
    n, k = y.shape
    real = y.dtype.type
    factor = real(scale)
    buffer = np.empty(k, y.dtype)
    for i in range(n):
        dot = real(0)
        for j in range(k):
            dot += y[i, j] * ct[i, j]
        for j in range(k):
            buffer[j] = _grad(y[i, j], ct[i, j], dot, factor)
        store(buffer, out[i])


def softmax(
    x: NDArray[Any],
    scale: float,
    causal: bool,
    row_offset: int,
    column_offset: int,
    out: NDArray[Any],
) -> None:
    """out = softmax(x * scale) over the last dim of x (n, q, k).

    Causal: entry (i, j) is masked where column_offset + j > row_offset + i; the offsets place a
    tile in the whole. A row that is wholly masked, or -inf throughout, gives zeros.
    """
    _softmax(x, float(scale), bool(causal), int(row_offset), int(column_offset), out)


def softmax_grad(y: NDArray[Any], ct: NDArray[Any], scale: float, out: NDArray[Any]) -> None:
    """out = gradient by x of softmax(x * scale), from its value y (n, q, k) and cotangent ct."""
    rows = (-1, y.shape[-1])
    if out.size:
        _softmax_grad(y.reshape(rows), ct.reshape(rows), float(scale), out.reshape(rows))
