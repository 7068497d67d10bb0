"""Layer normalisation over the last dim, and its gradients: one block per row.

The gradient by scale sums over rows in two steps, blocks of rows and then their partial sums, in an
order that does not depend on timing.
"""

import functools
import math
from typing import Any

import numba
from numba import cuda, float32, float64

from hpc_alpa.kernels import Array
from hpc_alpa.kernels.cuda.block import THREADS, block_sum, grid, width
from hpc_alpa.kernels.reference import array_module
from hpc_alpa.kernels.scalar import layer_norm as scalar

COLUMNS = 32  # a block of the sum over rows: so many columns by so many rows at a time
ROWS = 8
MAX_ROW_BLOCKS = 64

_normalise = cuda.jit(device=True)(scalar.normalise)
_grad = cuda.jit(device=True)(scalar.grad)


@functools.cache
def _statistics(dtype: str) -> Any:
    real = getattr(numba, dtype)

    @cuda.jit(device=True)
    def statistics(x: Any, row: Any, eps: Any, shared: Any) -> Any:
        """(mean, 1 / sqrt(variance + eps)) of a row, in every thread of the block."""
        h = x.shape[1]
        thread = cuda.threadIdx.x
        step = cuda.blockDim.x
        total = real(0)
        for j in range(thread, h, step):
            total += x[row, j]
        mean = block_sum(shared, total) / real(h)
        squares = real(0)
        for j in range(thread, h, step):
            squares += (x[row, j] - mean) * (x[row, j] - mean)
        variance = block_sum(shared, squares) / real(h)
        return mean, real(1) / math.sqrt(variance + eps)

    return statistics


@functools.cache
def _layer_norm(dtype: str) -> Any:
    real, statistics = getattr(numba, dtype), _statistics(dtype)

    @cuda.jit
    def layer_norm_rows(x: Any, scale: Any, bias: Any, eps: Any, out: Any) -> None:
        shared = cuda.shared.array(THREADS, real)
        row = cuda.blockIdx.x
        mean, rstd = statistics(x, row, eps, shared)
        for j in range(cuda.threadIdx.x, x.shape[1], cuda.blockDim.x):
            out[row, j] = _normalise(x[row, j], mean, rstd) * scale[j] + bias[j]

    return layer_norm_rows


@functools.cache
def _layer_norm_grad(dtype: str) -> Any:
    real, statistics = getattr(numba, dtype), _statistics(dtype)

    @cuda.jit
    def layer_norm_grad_rows(x: Any, scale: Any, ct: Any, eps: Any, out: Any) -> None:
        shared = cuda.shared.array(THREADS, real)
        row = cuda.blockIdx.x
        h = x.shape[1]
        thread = cuda.threadIdx.x
        step = cuda.blockDim.x
        mean, rstd = statistics(x, row, eps, shared)
        sum_flow = real(0)
        sum_flow_normal = real(0)
        for j in range(thread, h, step):
            flow = ct[row, j] * scale[j]
            sum_flow += flow
            sum_flow_normal += flow * _normalise(x[row, j], mean, rstd)
        mean_flow = block_sum(shared, sum_flow) / real(h)
        mean_flow_normal = block_sum(shared, sum_flow_normal) / real(h)
        for j in range(thread, h, step):
            normal = _normalise(x[row, j], mean, rstd)
            out[row, j] = _grad(normal, ct[row, j] * scale[j], mean_flow, mean_flow_normal, rstd)

    return layer_norm_grad_rows


@functools.cache
def _row_statistics(dtype: str) -> Any:
    real, statistics = getattr(numba, dtype), _statistics(dtype)

    @cuda.jit
    def row_statistics(x: Any, eps: Any, out: Any) -> None:
        """out (n, 2) = mean and reciprocal root per row."""
        shared = cuda.shared.array(THREADS, real)
        row = cuda.blockIdx.x
        mean, rstd = statistics(x, row, eps, shared)
        if cuda.threadIdx.x == 0:
            out[row, 0] = mean
            out[row, 1] = rstd

    return row_statistics


@functools.cache
def _partial_grad_scale(dtype: str) -> Any:
    real = getattr(numba, dtype)

    @cuda.jit
    def partial_grad_scale(x: Any, ct: Any, statistics: Any, out: Any) -> None:
        """out (row blocks, h): a block of ROWS x COLUMNS threads sums its rows of its columns."""
        shared = cuda.shared.array((ROWS, COLUMNS), real)
        column = cuda.threadIdx.x
        lane = cuda.threadIdx.y
        j = cuda.blockIdx.x * COLUMNS + column
        total = real(0)
        if j < x.shape[1]:
            for row in range(cuda.blockIdx.y * ROWS + lane, x.shape[0], cuda.gridDim.y * ROWS):
                mean = statistics[row, 0]
                total += ct[row, j] * _normalise(x[row, j], mean, statistics[row, 1])
        shared[lane, column] = total
        cuda.syncthreads()
        if lane == 0 and j < x.shape[1]:
            for other in range(1, ROWS):
                total += shared[other, column]
            out[cuda.blockIdx.y, j] = total

    return partial_grad_scale


@functools.cache
def _sum_rows(dtype: str) -> Any:
    real = getattr(numba, dtype)

    @cuda.jit
    def sum_rows(x: Any, out: Any) -> None:
        for j in range(cuda.grid(1), x.shape[1], cuda.gridsize(1)):
            total = real(0)
            for row in range(x.shape[0]):
                total += x[row, j]
            out[j] = total

    return sum_rows


def layer_norm(
    x: Array, scale: Array, bias: Array, eps: float, out: Array, stream: Any = 0
) -> None:
    """out = (x - mean) / sqrt(variance + eps) * scale + bias; x (n, h), scale and bias (h,)."""
    if out.size:
        kernel = _layer_norm(x.dtype.name)[x.shape[0], width(x.shape[1]), stream]
        kernel(x, scale, bias, x.dtype.type(eps), out)


def layer_norm_grad(
    x: Array, scale: Array, ct: Array, eps: float, out: Array, stream: Any = 0
) -> None:
    """out = gradient by x (n, h) from the cotangent ct; the statistics are computed again."""
    if out.size:
        kernel = _layer_norm_grad(x.dtype.name)[x.shape[0], width(x.shape[1]), stream]
        kernel(x, scale, ct, x.dtype.type(eps), out)


def layer_norm_grad_scale(x: Array, ct: Array, eps: float, out: Array, stream: Any = 0) -> None:
    """out (h,) = gradient by scale: the sum over rows of ct times the normalised x."""
    n, h = x.shape
    if n == 0:
        out[...] = 0
    if x.size == 0:
        return
    xp, dtype = array_module(x), x.dtype.name
    # from the pool of the arrays' own library: an allocation by Numba would wait for the device
    statistics = xp.empty((n, 2), x.dtype)
    _row_statistics(dtype)[n, width(h), stream](x, x.dtype.type(eps), statistics)
    row_blocks = min(MAX_ROW_BLOCKS, (n + ROWS - 1) // ROWS)
    partial = xp.empty((row_blocks, h), x.dtype)
    blocks = ((h + COLUMNS - 1) // COLUMNS, row_blocks)
    _partial_grad_scale(dtype)[blocks, (COLUMNS, ROWS), stream](x, ct, statistics, partial)
    _sum_rows(dtype)[grid(h), THREADS, stream](partial, out)


def entry_points() -> list[tuple[Any, tuple[Any, ...]]]:
    """(kernel, argument types) of everything that is launched here."""
    return [
        entry
        for real in (float32, float64)
        for rows, row in ((real[:, ::1], real[::1]),)
        for entry in (
            (_layer_norm(real.name), (rows, row, row, real, rows)),
            (_layer_norm_grad(real.name), (rows, row, rows, real, rows)),
            (_row_statistics(real.name), (rows, real, rows)),
            (_partial_grad_scale(real.name), (rows, rows, rows, rows)),
            (_sum_rows(real.name), (rows, row)),
        )
    ]
