"""Which measured class prices an operator, and which measured dtype prices a dtype.

An operator is priced by its class: the `cost` column of its row in the operator table. These are
all the rules by which something unmeasured takes the price of something measured; whatever they do
not cover is a CostError.
"""

import hpc_alpa.ops  # noqa: F401  (fills the table)
from hpc_alpa.errors import CostError
from hpc_alpa.ir.op import TABLE

# class: what the profiler runs for it. alphabetical
CLASSES: dict[str, str] = {
    "adam_update": "the fused update of one parameter with its two moments",
    "copy": "operators that move data: a transposed copy, a concatenation",
    "cross_entropy": "the fused kernel",
    "cross_entropy_grad": "the fused kernel",
    "dot_general": "matrix products over (batch, m, n, k), each operand plain and transposed",
    "elementwise": "arithmetic of one or two operands: the mean of add and of mul by a scalar",
    "ema": "the fused moving average",
    "gather": "rows of a table",
    "gelu": "the fused kernel",
    "gelu_grad": "the fused kernel",
    "layer_norm": "the fused kernel",
    "layer_norm_grad": "the fused kernel",
    "layer_norm_grad_scale": "the fused kernel",
    "random": "random bits keyed by global index",
    "reduce": "sums over the leading and over the last dim",
    "scatter_add": "rows added into a table",
    "softmax": "the fused kernel",
    "softmax_grad": "the fused kernel",
    "transcendental": "exp",
    "view": "operators that make a view on a host: one call, whatever the bytes",
}

# Classes that move bytes and compute little: seconds follow the bytes, whatever their type.
MOVING = frozenset({"copy", "elementwise", "gather", "reduce", "scatter_add", "view"})
CALL_BYTES = 1024
"""Work on no more bytes is one call of any type: a float64 learning rate beside float32 weights."""

# measured dtypes that price integers and bools, of 4 bytes and less and of 8, in every class
NARROW = ("float32", "float64")
WIDE = ("float64", "float32")


def priced_as(name: str, dtype: str, nbytes: float) -> tuple[str, ...]:
    """Measured dtypes that price work of class `name` in `dtype`: the first that was measured.

    The dtype itself; then, for integers, bools, MOVING classes and work of at most CALL_BYTES, a
    floating dtype of its width or the other, by bytes. Matrix products and fused kernels on
    floating arrays are priced by samples of their own dtype only.
    """
    is_floating = dtype.startswith(("float", "bfloat"))
    if is_floating and name not in MOVING and nbytes > CALL_BYTES:
        return (dtype,)
    return (dtype, *(WIDE if dtype in ("float64", "int64", "uint64") else NARROW))


def operator_class(op: str) -> str:
    """The class that prices an operator; a class's own name gives itself.

    Raises:
        CostError: neither an operator nor a class.
    """
    if op in CLASSES:
        return op
    if op not in TABLE:
        raise CostError(
            f"operator {op!r} is in no class of the cost database; classes are "
            f"{', '.join(CLASSES)}. Give its row in hpc_alpa/ops a `cost` column."
        )
    return TABLE[op].cost
