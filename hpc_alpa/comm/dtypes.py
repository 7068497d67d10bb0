"""What can be sent: one row per dtype, one per reduction, with each transport's name for it.

Sources: MPI 4.1, table 3.3 (datatypes; it has no 16-bit float) and section 6.9.2 (operations);
NCCL 2.x `nccl.h`, enums `ncclDataType_t` and `ncclRedOp_t` (it has no 16-bit integer), the same
numbers as CuPy's `cupy.cuda.nccl.NCCL_*`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Dtype:
    """How elements of one dtype travel.

    `mpi` names the MPI datatype, `nccl` is NCCL's number; None: it travels as bytes and cannot be
    reduced. `wide` is the dtype in which the host combines terms, where that is another.
    """

    nbytes: int
    mpi: str
    nccl: int | None
    wide: str | None = None


@dataclass(frozen=True)
class Reduction:
    """One way to combine: the NumPy function, MPI's operation, NCCL's number."""

    ufunc: str
    mpi: str
    nccl: int


NCCL_BYTE = 1  # ncclUint8

DTYPES: dict[str, Dtype] = {  # alphabetical
    "bfloat16": Dtype(2, "UINT16_T", 9, wide="float32"),
    "bool": Dtype(1, "UINT8_T", 1),
    "float16": Dtype(2, "UINT16_T", 6, wide="float32"),
    "float32": Dtype(4, "FLOAT", 7),
    "float64": Dtype(8, "DOUBLE", 8),
    "int16": Dtype(2, "INT16_T", None),
    "int32": Dtype(4, "INT32_T", 2),
    "int64": Dtype(8, "INT64_T", 4),
    "int8": Dtype(1, "INT8_T", 0),
    "uint16": Dtype(2, "UINT16_T", None),
    "uint32": Dtype(4, "UINT32_T", 3),
    "uint64": Dtype(8, "UINT64_T", 5),
    "uint8": Dtype(1, "UINT8_T", 1),
}

REDUCTIONS: dict[str, Reduction] = {  # alphabetical
    "max": Reduction("maximum", "MAX", 2),
    "min": Reduction("minimum", "MIN", 3),
    "sum": Reduction("add", "SUM", 0),
}
