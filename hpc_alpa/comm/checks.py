"""Checks of the arguments of a collective, the same for every backend; below them nobody checks."""

from __future__ import annotations

import numpy as np

from hpc_alpa.comm.dtypes import DTYPES, REDUCTIONS, Dtype
from hpc_alpa.comm.protocol import Array
from hpc_alpa.errors import CommError


def check_array(what: str, name: str, x: Array, *, written: bool) -> Dtype:
    """The row of `x`'s dtype; CommError if `x` cannot be sent as one block of memory."""
    if not (hasattr(x, "flags") and hasattr(x, "dtype") and hasattr(x, "shape")):
        raise CommError(f"{what}: {name} is a {type(x).__name__}, expected an array.")
    row = DTYPES.get(x.dtype.name)
    if row is None or not x.dtype.isnative:
        raise CommError(
            f"{what}: {name} has dtype {x.dtype}, which cannot be sent;"
            f" expected one of {', '.join(DTYPES)} in native byte order. Convert it with astype."
        )
    if not x.flags.c_contiguous:
        raise CommError(
            f"{what}: {name} of shape {x.shape} has strides {x.strides}, expected contiguous memory"
            " in C order. Copy it with numpy.ascontiguousarray, or pack it."
        )
    if written and not getattr(x.flags, "writeable", True):
        raise CommError(f"{what}: {name} of shape {x.shape} is read-only, but is written here.")
    return row


def check_pair(what: str, x: Array, out: Array, x_shape: str, wanted: tuple[int, ...]) -> Dtype:
    """Check input and output of a collective: `out` has shape `wanted`, `x` the same dtype.

    `x_shape` says how the wanted shape comes about, for the message.
    """
    row = check_array(what, "x", x, written=False)
    check_array(what, "out", out, written=True)
    if tuple(out.shape) != wanted:
        raise CommError(
            f"{what}: out has shape {tuple(out.shape)}, expected {wanted} = {x_shape}"
            f" for x of shape {tuple(x.shape)}."
        )
    if out.dtype != x.dtype:
        raise CommError(f"{what}: x is {x.dtype} and out is {out.dtype}, expected the same dtype.")
    if isinstance(x, np.ndarray) and np.may_share_memory(x, out) and x.size:
        raise CommError(f"{what}: x and out share memory; give out memory of its own.")
    return row


def check_blocks(what: str, name: str, x: Array, size: int) -> None:
    """CommError unless the first dim of `x` has one entry per rank."""
    if len(x.shape) == 0 or x.shape[0] != size:
        raise CommError(
            f"{what}: {name} has shape {tuple(x.shape)}, expected ({size}, ...):"
            f" one block for each of the group's {size} ranks."
        )


def check_reduction(what: str, op: str, x: Array) -> None:
    """CommError unless `op` is a reduction that `x`'s dtype has."""
    if op not in REDUCTIONS:
        raise CommError(f"{what}: op {op!r} is unknown; expected one of {', '.join(REDUCTIONS)}.")
    if op == "sum" and x.dtype == np.bool_:
        raise CommError(
            f"{what}: bool has no sum; use op='max' for any, op='min' for all, or cast to count."
        )


def check_index(what: str, name: str, index: int, size: int) -> None:
    """CommError unless `index` is a rank of a group of `size`."""
    if not 0 <= index < size:
        raise CommError(
            f"{what}: {name} {index} is not in the group, whose {size} ranks are numbered"
            f" 0 to {size - 1}."
        )


def check_group(what: str, ranks: tuple[int, ...], world_size: int, me: int) -> tuple[int, ...]:
    """`ranks` as a tuple of ints; CommError unless they are distinct global ranks with `me`."""
    ranks = tuple(int(r) for r in ranks)
    if len(set(ranks)) != len(ranks) or any(not 0 <= r < world_size for r in ranks):
        raise CommError(
            f"{what}: {ranks} are not distinct global ranks between 0 and {world_size - 1}."
        )
    if me not in ranks:
        raise CommError(
            f"{what}: rank {me} asks for the group {ranks}, which does not hold it."
            " Only its members make a group."
        )
    return ranks
