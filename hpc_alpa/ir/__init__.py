"""Graphs of typed single-assignment equations."""

from hpc_alpa.ir.build import Builder
from hpc_alpa.ir.evaluate import environment, evaluate
from hpc_alpa.ir.graph import Eqn, Graph, Var, freeze
from hpc_alpa.ir.op import TABLE, Call, Op, define, op
from hpc_alpa.ir.text import parse
from hpc_alpa.ir.types import TensorType, numpy_dtype
from hpc_alpa.ir.verify import verify

__all__ = [
    "TABLE", "Builder", "Call", "Eqn", "Graph", "Op", "TensorType", "Var",
    "define", "environment", "evaluate", "freeze", "numpy_dtype", "op", "parse", "verify",
]  # fmt: skip
