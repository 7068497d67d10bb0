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

# dtype: measured dtypes that price it, by bytes, first measured one. Such equations move bytes;
# what they compute costs less. Floating dtypes are priced by their own samples only.
PRICED_AS: dict[str, tuple[str, ...]] = {
    "bool": ("float32", "float64"),
    "int8": ("float32", "float64"),
    "int16": ("float32", "float64"),
    "int32": ("float32", "float64"),
    "int64": ("float64", "float32"),
    "uint8": ("float32", "float64"),
    "uint16": ("float32", "float64"),
    "uint32": ("float32", "float64"),
    "uint64": ("float64", "float32"),
}


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
