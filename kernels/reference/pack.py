"""Copies between a tile of an N-d array and a contiguous buffer of the tile's shape."""

from collections.abc import Sequence

from hpc_alpa.kernels import Array


def _tile(starts: Sequence[int], shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(start, start + extent) for start, extent in zip(starts, shape, strict=True))


def pack(x: Array, starts: Sequence[int], out: Array) -> None:
    """out = the tile of x at `starts` of out's shape; 1 to 4 dims, any element type."""
    out[...] = x[_tile(starts, out.shape)]


def unpack(buf: Array, starts: Sequence[int], out: Array) -> None:
    """The tile of out at `starts` = buf, the rest of out stays; 1 to 4 dims, any element type."""
    out[_tile(starts, buf.shape)] = buf
