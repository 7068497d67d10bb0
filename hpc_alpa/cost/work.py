"""What a cost model prices: the work of one equation on one device."""

from dataclasses import dataclass

from hpc_alpa.errors import CostError


@dataclass(frozen=True)
class Work:
    """The work of one equation on one device.

    `flops` counts floating-point operations, `nbytes` counts the bytes of every operand read once
    and of the result written once. `dims` is (batch, m, n, k) for `dot_general`, flops being
    2*batch*m*n*k, and () otherwise.
    """

    op: str
    flops: float
    nbytes: float
    dtype: str
    dims: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.flops < 0 or self.nbytes < 0:
            raise CostError(
                f"work of {self.op}: flops {self.flops} and nbytes {self.nbytes} must be at least "
                "0; correct the operator's flops and bytes columns."
            )
        if self.dims and (len(self.dims) != 4 or any(d < 0 for d in self.dims)):
            raise CostError(
                f"work of {self.op}: dims {self.dims} must be four numbers (batch, m, n, k) of at "
                "least 0, or none."
            )
