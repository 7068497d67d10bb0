"""Rows and entries chosen by index, where the indexed dim may be a shard that begins at `offset`.

The indices `ids` (n,) count in the whole dim; one outside the shard gives zeros.
"""

from hpc_alpa.kernels import Array
from hpc_alpa.kernels.reference import array_module


def _inside(ids: Array, offset: int, extent: int) -> tuple[Array, Array]:
    local = ids - offset
    inside = (local >= 0) & (local < extent)
    return array_module(ids).where(inside, local, 0), inside


def gather(table: Array, ids: Array, offset: int, out: Array) -> None:
    """out (n, h) = table[ids - offset], rows of the shard `table` (v, h), zero outside."""
    out[...] = 0
    local, inside = _inside(ids, offset, table.shape[0])
    out[inside] = table[local[inside]]


def scatter_add(ct: Array, ids: Array, offset: int, out: Array) -> None:
    """out (v, h) = for each row of the shard the sum of the rows of ct (n, h) with its id."""
    out[...] = 0
    local, inside = _inside(ids, offset, out.shape[0])
    array_module(ct).add.at(out, local[inside], ct[inside])


def pick(x: Array, ids: Array, offset: int, out: Array) -> None:
    """out (n,) = x[i, ids[i] - offset], entries of the shard x (n, v), zero outside."""
    out[...] = 0
    local, inside = _inside(ids, offset, x.shape[1])
    rows = array_module(x).arange(x.shape[0])
    out[inside] = x[rows[inside], local[inside]]


def unpick(ct: Array, ids: Array, offset: int, out: Array) -> None:
    """out (n, v) = ct[i] at [i, ids[i] - offset] where that is inside the shard, else zero."""
    out[...] = 0
    local, inside = _inside(ids, offset, out.shape[1])
    rows = array_module(ct).arange(out.shape[0])
    out[rows[inside], local[inside]] = ct[inside]
