"""How a tile of an N-d array lies in memory, for the copies of `pack`."""

from collections.abc import Sequence
from typing import Any

from hpc_alpa.kernels import Array

Int4 = tuple[int, int, int, int]


def frame(
    shape: tuple[int, ...], starts: Sequence[int], tile: tuple[int, ...], itemsize: int
) -> tuple[Int4, Int4, Int4, int]:
    """(starts, extents, tile) in 4 dims, the last counted in words, and the bytes of a word.

    Dims that the tile takes whole are merged into their left neighbour. A word is the widest of 8,
    4, 2 and 1 bytes that divides the last dim's start, extent and length.
    """
    assert 1 <= len(shape) == len(tile) == len(starts) <= 4, (shape, starts, tile)
    assert all(
        0 <= start and start + length <= extent
        for extent, start, length in zip(shape, starts, tile, strict=True)
    ), f"tile {tile} at {tuple(starts)} is not inside {shape}"
    merged: list[tuple[int, ...]] = []  # (start, extent, length) per dim, last dim first
    for dim in reversed(list(zip(starts, shape, tile, strict=True))):
        if merged and merged[-1][1] == merged[-1][2]:
            whole = merged.pop()[1]
            merged.append(tuple(count * whole for count in dim))
        else:
            merged.append(dim)
    last = [count * itemsize for count in merged[0]]
    word = next(size for size in (8, 4, 2, 1) if all(count % size == 0 for count in last))
    dims = [(0, 1, 1)] * (4 - len(merged)) + merged[:0:-1] + [tuple(n // word for n in last)]
    a, b, c, d = dims
    return (a[0], b[0], c[0], d[0]), (a[1], b[1], c[1], d[1]), (a[2], b[2], c[2], d[2]), word


def words(x: Array, size: int) -> Array:
    """A contiguous array as one dim of unsigned integers of `size` bytes, without a copy."""
    assert x.flags.c_contiguous, f"pack takes C-contiguous arrays, got strides {x.strides}"
    # through bytes: a view of another item size wants an even number of items
    return x.reshape(-1).view("u1").view(f"u{size}")


def row_start(row: Any, starts: Any, extents: Any, tile: Any) -> Any:
    """Where, in an array of 4 extents, the tile's `row` begins; rows run over dims 0..2 in C order.

    A body for one thread: plain integers and tuples of four.
    """
    k = row % tile[2]
    rest = row // tile[2]
    j = rest % tile[1]
    i = rest // tile[1]
    outer = (starts[0] + i) * extents[1] + starts[1] + j
    return (outer * extents[2] + starts[2] + k) * extents[3] + starts[3]
