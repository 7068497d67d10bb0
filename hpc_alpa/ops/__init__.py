"""The operator table: one row per operator, one column per meaning (`ir.op.Op`).

Importing this package fills `ir.op.TABLE`.
"""

from hpc_alpa.ir.op import TABLE
from hpc_alpa.ops import (
    batch_norm,
    boundary,
    contraction,
    convolution,
    elementwise,
    experts,
    fused,
    halo,
    indexing,
    movement,
    pooling,
    reduction,
    source,
)
from hpc_alpa.ops.rule import Rule

__all__ = [
    "TABLE", "Rule", "batch_norm", "boundary", "contraction", "convolution", "elementwise",
    "experts", "fused", "halo", "indexing", "movement", "pooling", "reduction", "source",
]  # fmt: skip
