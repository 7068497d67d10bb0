"""Softmax over the last dim, and its gradient: one block per row."""

import functools
import math
from typing import Any

import numba
from numba import boolean, cuda, float32, float64, int64

from hpc_alpa.kernels import Array
from hpc_alpa.kernels.cuda.block import THREADS, block_max, block_sum, width
from hpc_alpa.kernels.scalar import softmax as scalar

_num_visible = cuda.jit(device=True)(scalar.num_visible)
_grad = cuda.jit(device=True)(scalar.grad)


@functools.cache
def _softmax(dtype: str) -> Any:
    real = getattr(numba, dtype)

    @cuda.jit
    def softmax_rows(
        x: Any, scale: Any, causal: Any, row_offset: Any, column_offset: Any, out: Any
    ) -> None:
        shared = cuda.shared.array(THREADS, real)
        q = x.shape[1]
        k = x.shape[2]
        i = cuda.blockIdx.x // q
        a = cuda.blockIdx.x % q
        thread = cuda.threadIdx.x
        step = cuda.blockDim.x
        count = k
        if causal:
            count = _num_visible(a, row_offset, column_offset, k)
        top = real(-math.inf)
        for j in range(thread, count, step):
            top = max(top, x[i, a, j] * scale)
        top = block_max(shared, top)
        if top == real(-math.inf):
            count = 0
        total = real(0)
        for j in range(thread, count, step):
            e = math.exp(x[i, a, j] * scale - top)
            out[i, a, j] = e
            total += e
        total = block_sum(shared, total)
        # each thread meets only elements that it wrote itself
        for j in range(thread, count, step):
            out[i, a, j] /= total
        for j in range(count + thread, k, step):
            out[i, a, j] = real(0)

    return softmax_rows


@functools.cache
def _softmax_grad(dtype: str) -> Any:
    real = getattr(numba, dtype)

    @cuda.jit
    def softmax_grad_rows(y: Any, ct: Any, scale: Any, out: Any) -> None:
        shared = cuda.shared.array(THREADS, real)
        row = cuda.blockIdx.x
        thread = cuda.threadIdx.x
        step = cuda.blockDim.x
        dot = real(0)
        for j in range(thread, y.shape[1], step):
            dot += y[row, j] * ct[row, j]
        dot = block_sum(shared, dot)
        for j in range(thread, y.shape[1], step):
            out[row, j] = _grad(y[row, j], ct[row, j], dot, scale)

    return softmax_grad_rows


def softmax(
    x: Array,
    scale: float,
    causal: bool,
    row_offset: int,
    column_offset: int,
    out: Array,
    stream: Any = 0,
) -> None:
    """out = softmax(x * scale) over the last dim of x (n, q, k).

    Causal: entry (i, j) is masked where column_offset + j > row_offset + i; the offsets place a
    tile in the whole. A row that is wholly masked, or -inf throughout, gives zeros.
    """
    n, q, k = x.shape
    if out.size:
        kernel = _softmax(x.dtype.name)[n * q, width(k), stream]
        kernel(x, x.dtype.type(scale), bool(causal), row_offset, column_offset, out)


def softmax_grad(y: Array, ct: Array, scale: float, out: Array, stream: Any = 0) -> None:
    """out = gradient by x of softmax(x * scale), from its value y (n, q, k) and cotangent ct."""
    if out.size:
        k = y.shape[-1]
        rows = (y.size // k, k)
        kernel = _softmax_grad(y.dtype.name)[rows[0], width(k), stream]
        kernel(y.reshape(rows), ct.reshape(rows), y.dtype.type(scale), out.reshape(rows))


def entry_points() -> list[tuple[Any, tuple[Any, ...]]]:
    """(kernel, argument types) of everything that is launched here."""
    return [
        entry
        for real in (float32, float64)
        for cube, rows in ((real[:, :, ::1], real[:, ::1]),)
        for entry in (
            (_softmax(real.name), (cube, real, boolean, int64, int64, cube)),
            (_softmax_grad(real.name), (rows, rows, real, rows)),
        )
    ]
