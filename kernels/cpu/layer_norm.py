"""Layer normalisation over the last dim, and its gradients; two passes over a row in cache."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_alpa.kernels.cpu.compile import compiled, store
from hpc_alpa.kernels.scalar import layer_norm as scalar

_normalise = compiled(inline=True)(scalar.normalise)
_grad = compiled(inline=True)(scalar.grad)


@compiled(inline=True)
def _statistics(row: Any, eps: Any) -> Any:
    real = row.dtype.type
    h = real(row.size)
    total = real(0)
    for j in range(row.size):
        total += row[j]
    mean = total / h
    squares = real(0)
    for j in range(row.size):
        squares += (row[j] - mean) * (row[j] - mean)
    return mean, real(1) / np.sqrt(squares / h + eps)


@compiled()
def _layer_norm(x: Any, scale: Any, bias: Any, eps: float, out: Any) -> None:
    n, h = x.shape
    buffer = np.empty(h, x.dtype)
    for i in range(n):
        mean, rstd = _statistics(x[i], x.dtype.type(eps))
        for j in range(h):
            buffer[j] = _normalise(x[i, j], mean, rstd) * scale[j] + bias[j]
        store(buffer, out[i])


@compiled()
def _layer_norm_grad(x: Any, scale: Any, ct: Any, eps: float, out: Any) -> None:
    n, h = x.shape
    real = x.dtype.type
    buffer = np.empty(h, x.dtype)
    for i in range(n):
        mean, rstd = _statistics(x[i], real(eps))
        sum_flow = real(0)
        sum_flow_normal = real(0)
        for j in range(h):
            flow = ct[i, j] * scale[j]
            sum_flow += flow
            sum_flow_normal += flow * _normalise(x[i, j], mean, rstd)
        mean_flow = sum_flow / real(h)
        mean_flow_normal = sum_flow_normal / real(h)
        for j in range(h):
            normal = _normalise(x[i, j], mean, rstd)
            buffer[j] = _grad(normal, ct[i, j] * scale[j], mean_flow, mean_flow_normal, rstd)
        store(buffer, out[i])


@compiled()
def _layer_norm_grad_scale(x: Any, ct: Any, eps: float, out: Any) -> None:
    n, h = x.shape
    # float64: a float32 sum over the rows of a large batch loses digits, and the columns stay in
    # cache
    total = np.zeros(h)
    for i in range(n):
        mean, rstd = _statistics(x[i], x.dtype.type(eps))
        for j in range(h):
            total[j] += ct[i, j] * _normalise(x[i, j], mean, rstd)
    for j in range(h):
        out[j] = total[j]


def layer_norm(
    x: NDArray[Any], scale: NDArray[Any], bias: NDArray[Any], eps: float, out: NDArray[Any]
) -> None:
    """out = (x - mean) / sqrt(variance + eps) * scale + bias; x (n, h), scale and bias (h,)."""
    _layer_norm(x, scale, bias, float(eps), out)


def layer_norm_grad(
    x: NDArray[Any], scale: NDArray[Any], ct: NDArray[Any], eps: float, out: NDArray[Any]
) -> None:
    """out = gradient by x (n, h) from the cotangent ct; the statistics are computed again."""
    _layer_norm_grad(x, scale, ct, float(eps), out)


def layer_norm_grad_scale(x: NDArray[Any], ct: NDArray[Any], eps: float, out: NDArray[Any]) -> None:
    """out (h,) = gradient by scale: the sum over rows of ct times the normalised x."""
    _layer_norm_grad_scale(x, ct, float(eps), out)
