"""Rows and entries chosen by index, where the indexed dim may be a shard that begins at `offset`.

The indices `ids` (n,) count in the whole dim; one outside the shard gives zeros.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_alpa.kernels.cpu.compile import compiled


@compiled()
def _gather(table: Any, ids: Any, offset: int, out: Any) -> None:
    v, h = table.shape
    zero = table.dtype.type(0)
    for i in range(ids.size):
        local = np.int64(ids[i]) - offset
        if 0 <= local < v:
            for j in range(h):
                out[i, j] = table[local, j]
        else:
            for j in range(h):
                out[i, j] = zero


@compiled()
def _scatter_add(ct: Any, ids: Any, offset: int, out: Any) -> None:
    v, h = out.shape
    out[:] = ct.dtype.type(0)
    for i in range(ids.size):
        local = np.int64(ids[i]) - offset
        if 0 <= local < v:
            for j in range(h):
                out[local, j] += ct[i, j]


@compiled()
def _pick(x: Any, ids: Any, offset: int, out: Any) -> None:
    n, v = x.shape
    for i in range(n):
        local = np.int64(ids[i]) - offset
        out[i] = x[i, local] if 0 <= local < v else x.dtype.type(0)


@compiled()
def _unpick(ct: Any, ids: Any, offset: int, out: Any) -> None:
    n, v = out.shape
    out[:] = ct.dtype.type(0)
    for i in range(n):
        local = np.int64(ids[i]) - offset
        if 0 <= local < v:
            out[i, local] = ct[i]


def gather(table: NDArray[Any], ids: NDArray[np.integer], offset: int, out: NDArray[Any]) -> None:
    """out (n, h) = table[ids - offset], rows of the shard `table` (v, h), zero outside."""
    _gather(table, ids, int(offset), out)


def scatter_add(ct: NDArray[Any], ids: NDArray[np.integer], offset: int, out: NDArray[Any]) -> None:
    """out (v, h) = for each row of the shard the sum of the rows of ct (n, h) with its id."""
    _scatter_add(ct, ids, int(offset), out)


def pick(x: NDArray[Any], ids: NDArray[np.integer], offset: int, out: NDArray[Any]) -> None:
    """out (n,) = x[i, ids[i] - offset], entries of the shard x (n, v), zero outside."""
    _pick(x, ids, int(offset), out)


def unpick(ct: NDArray[Any], ids: NDArray[np.integer], offset: int, out: NDArray[Any]) -> None:
    """out (n, v) = ct[i] at [i, ids[i] - offset] where that is inside the shard, else zero."""
    _unpick(ct, ids, int(offset), out)
