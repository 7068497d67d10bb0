"""Copies between a tile of an N-d array and a contiguous buffer of the tile's shape.

Any element type, also those Numba does not know: a copy moves words of 1, 2, 4 or 8 bytes.
"""

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from hpc_alpa.kernels.cpu.compile import compiled, store
from hpc_alpa.kernels.tile import frame, words


@compiled()
def _pack(x: Any, starts: Any, extents: Any, tile: Any, out: Any) -> None:
    length = tile[3]
    done = 0
    for i in range(starts[0], starts[0] + tile[0]):
        for j in range(starts[1], starts[1] + tile[1]):
            for k in range(starts[2], starts[2] + tile[2]):
                first = ((i * extents[1] + j) * extents[2] + k) * extents[3] + starts[3]
                store(x[first : first + length], out[done : done + length])
                done += length


@compiled()
def _unpack(buf: Any, starts: Any, extents: Any, tile: Any, out: Any) -> None:
    length = tile[3]
    done = 0
    for i in range(starts[0], starts[0] + tile[0]):
        for j in range(starts[1], starts[1] + tile[1]):
            for k in range(starts[2], starts[2] + tile[2]):
                first = ((i * extents[1] + j) * extents[2] + k) * extents[3] + starts[3]
                store(buf[done : done + length], out[first : first + length])
                done += length


def pack(x: NDArray[Any], starts: Sequence[int], out: NDArray[Any]) -> None:
    """out = the tile of x at `starts` of out's shape; 1 to 4 dims, any element type."""
    starts4, extents, tile, word = frame(x.shape, starts, out.shape, x.itemsize)
    _pack(words(x, word), starts4, extents, tile, words(out, word))


def unpack(buf: NDArray[Any], starts: Sequence[int], out: NDArray[Any]) -> None:
    """The tile of out at `starts` = buf, the rest of out stays; 1 to 4 dims, any element type."""
    starts4, extents, tile, word = frame(out.shape, starts, buf.shape, buf.itemsize)
    _unpack(words(buf, word), starts4, extents, tile, words(out, word))
