"""Operands for measurements: windows into one block of random numbers per dtype.

Operands of successive repetitions lie in different windows, as in a training step, where an
operator meets what others have computed since: `sets_of` gives enough of them to fill the cache.
Filling fresh arrays for each point would take most of a short sweep.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np

from hpc_alpa.ir.types import TensorType, numpy_dtype

STREAM_BYTES = 32 * 2**20
"""Bytes that the operand sets of one point fill: beyond a core's own cache, about a shared one."""
MAX_SETS = 64
ALIGN = 64
SEED = np.random.SeedSequence(20260101)


@cache
def _block(dtype: str, nbytes: int) -> np.ndarray:
    kind = numpy_dtype(dtype)
    size = nbytes // kind.itemsize
    some = np.random.default_rng(SEED).standard_normal(min(size, 2**16)).clip(-3, 3)
    if kind.kind in "iub":
        some = np.abs(some * 80)  # indices of a table of 256 rows
    return np.resize(some.astype(kind), size)


def sets_of(types: Sequence[TensorType], extra: int = 0) -> list[tuple[np.ndarray, ...]]:
    """Sets of operands, as many as fill STREAM_BYTES with `extra` bytes of results each."""
    each = sum(-(-t.nbytes // ALIGN) * ALIGN for t in types)
    number = max(1, min(MAX_SETS, -(-STREAM_BYTES // max(1, each + extra))))
    at: dict[str, int] = {}
    needs: dict[str, int] = {}
    for t in types:
        needs[t.dtype] = needs.get(t.dtype, 0) + -(-t.nbytes // ALIGN) * ALIGN * number
    blocks = {  # doubled sizes, so that few blocks are ever made
        dtype: _block(dtype, max(STREAM_BYTES, 1 << (need - 1).bit_length()))
        for dtype, need in needs.items()
    }
    sets = []
    for _ in range(number):
        arrays = []
        for t in types:
            size = int(np.prod(t.shape, dtype=np.int64))
            start = at.get(t.dtype, 0)
            arrays.append(blocks[t.dtype][start : start + size].reshape(t.shape))
            step = -(-t.nbytes // ALIGN) * ALIGN // numpy_dtype(t.dtype).itemsize
            at[t.dtype] = start + step
        sets.append(tuple(arrays))
    return sets
