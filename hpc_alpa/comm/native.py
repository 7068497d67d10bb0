"""The MPI library's own collectives, for ranks that have a core each: they spin and are fastest."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpc_alpa.comm.dtypes import DTYPES, REDUCTIONS
from hpc_alpa.comm.mpi_library import MPI
from hpc_alpa.comm.protocol import Array

# Large messages fall out of the cache, so a reduction goes in pieces; with more ranks the latency
# of each piece weighs more. [measured: 64 MB in one call and in pieces of 1, 4, 8 and 16 MB]
CHUNK_BYTES_TWO_RANKS = 4 << 20
CHUNK_BYTES = 16 << 20


def all_reduce(comm: MPI.Intracomm, flat: Array, op: str) -> None:
    """Combine a one-dimensional array in place; not for 16-bit floats, which MPI cannot add."""
    step = (CHUNK_BYTES_TWO_RANKS if comm.size == 2 else CHUNK_BYTES) // flat.itemsize
    for i in range(0, flat.size, step):
        comm.Allreduce(MPI.IN_PLACE, buffer(flat[i : i + step]), _operation(op, flat.dtype))


def all_gather(comm: MPI.Intracomm, x: Array, out: Array) -> None:
    comm.Allgather(buffer(x), buffer(out))


def reduce_scatter(comm: MPI.Intracomm, x: Array, out: Array, op: str) -> None:
    """Not for 16-bit floats."""
    comm.Reduce_scatter_block(buffer(x), buffer(out), _operation(op, x.dtype))


def all_to_all(comm: MPI.Intracomm, x: Array, out: Array) -> None:
    comm.Alltoall(buffer(x), buffer(out))


def broadcast(comm: MPI.Intracomm, x: Array, root: int) -> None:
    comm.Bcast(buffer(x), root)


def barrier(comm: MPI.Intracomm) -> None:
    comm.Barrier()


def buffer(x: Array) -> Any:
    """What mpi4py takes: the array, or its bits as integers where MPI has no such type."""
    row = DTYPES[x.dtype.name]
    as_bits = row.wide is not None or x.dtype == np.bool_
    return [x.view(f"u{row.nbytes}") if as_bits else x, getattr(MPI, row.mpi)]


_EXTREMA: dict[tuple[str, str], MPI.Op] = {}


def _operation(op: str, dtype: np.dtype[Any]) -> MPI.Op:
    """MPI's operation; for extrema of floats NumPy's, because MPI's lose a NaN now and then."""
    if op == "sum" or dtype.kind != "f":
        native: MPI.Op = getattr(MPI, REDUCTIONS[op].mpi)
        return native
    key = (op, dtype.name)
    if key not in _EXTREMA:
        ufunc = getattr(np, REDUCTIONS[op].ufunc)

        def extremum(given: Any, kept: Any, datatype: MPI.Datatype) -> None:
            total = np.frombuffer(kept, dtype)
            ufunc(np.frombuffer(given, dtype), total, out=total)

        _EXTREMA[key] = MPI.Op.Create(extremum, commute=True)
    return _EXTREMA[key]
