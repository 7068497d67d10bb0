"""Copies between a tile of an N-d array and a contiguous buffer of the tile's shape.

Any element type: a copy moves words of 1, 2, 4 or 8 bytes. Threads of a block stand side by side
along a row of the tile and, where rows are short, on several rows.
"""

from collections.abc import Sequence
from typing import Any

from numba import cuda, int64, types, uint8, uint16, uint32, uint64

from hpc_alpa.kernels import Array
from hpc_alpa.kernels.cuda.block import MAX_BLOCKS, THREADS
from hpc_alpa.kernels.tile import Int4, frame, row_start, words

_row_start = cuda.jit(device=True)(row_start)


@cuda.jit
def _pack(x: Any, starts: Any, extents: Any, tile: Any, out: Any) -> None:
    length = tile[3]
    rows = tile[0] * tile[1] * tile[2]
    for row in range(
        cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y,
        rows,
        cuda.gridDim.x * cuda.blockDim.y,
    ):
        first = _row_start(row, starts, extents, tile)
        for j in range(cuda.threadIdx.x, length, cuda.blockDim.x):
            out[row * length + j] = x[first + j]


@cuda.jit
def _unpack(buf: Any, starts: Any, extents: Any, tile: Any, out: Any) -> None:
    length = tile[3]
    rows = tile[0] * tile[1] * tile[2]
    for row in range(
        cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y,
        rows,
        cuda.gridDim.x * cuda.blockDim.y,
    ):
        first = _row_start(row, starts, extents, tile)
        for j in range(cuda.threadIdx.x, length, cuda.blockDim.x):
            out[first + j] = buf[row * length + j]


def _launch(tile: Int4) -> tuple[int, tuple[int, int]]:
    """(blocks, threads along a row and across rows)."""
    across = 1
    while across < min(tile[3], THREADS):
        across *= 2
    rows_at_once = THREADS // across
    rows = tile[0] * tile[1] * tile[2]
    return min((rows + rows_at_once - 1) // rows_at_once, MAX_BLOCKS), (across, rows_at_once)


def pack(x: Array, starts: Sequence[int], out: Array, stream: Any = 0) -> None:
    """out = the tile of x at `starts` of out's shape; 1 to 4 dims, any element type."""
    starts4, extents, tile, word = frame(x.shape, starts, out.shape, x.dtype.itemsize)
    if out.size:
        blocks, threads = _launch(tile)
        kernel = _pack[blocks, threads, stream]
        kernel(words(x, word), starts4, extents, tile, words(out, word))


def unpack(buf: Array, starts: Sequence[int], out: Array, stream: Any = 0) -> None:
    """The tile of out at `starts` = buf, the rest of out stays; 1 to 4 dims, any element type."""
    starts4, extents, tile, word = frame(out.shape, starts, buf.shape, buf.dtype.itemsize)
    if buf.size:
        blocks, threads = _launch(tile)
        kernel = _unpack[blocks, threads, stream]
        kernel(words(buf, word), starts4, extents, tile, words(out, word))


def entry_points() -> list[tuple[Any, tuple[Any, ...]]]:
    """(kernel, argument types) of everything that is launched here."""
    four = types.UniTuple(int64, 4)
    return [
        (kernel, (word[::1], four, four, four, word[::1]))
        for word in (uint8, uint16, uint32, uint64)
        for kernel in (_pack, _unpack)
    ]
