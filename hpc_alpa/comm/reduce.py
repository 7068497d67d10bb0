"""Reductions on the host, term by term in the order of the ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpc_alpa.comm.dtypes import DTYPES, REDUCTIONS
from hpc_alpa.comm.protocol import Array


def combine(terms: Sequence[Array], op: str) -> Array:
    """The terms combined in order, as a new array; 16-bit floats in float32, rounded once."""
    first = terms[0]
    wide = DTYPES[first.dtype.name].wide
    total = first.astype(wide or first.dtype)  # always a copy
    ufunc = getattr(np, REDUCTIONS[op].ufunc)
    for term in terms[1:]:
        ufunc(total, term.astype(wide) if wide else term, out=total)
    return total.astype(first.dtype, copy=False)


def shard_bounds(length: int, num_shards: int) -> list[tuple[int, int]]:
    """Start and stop of `num_shards` nearly equal pieces of `range(length)`."""
    step = -(-length // num_shards)
    return [(min(i * step, length), min((i + 1) * step, length)) for i in range(num_shards)]
