"""Plain NumPy functions as graphs: `trace`, `value_and_grad`, `layer`."""

from hpc_alpa.trace.array import TracedArray
from hpc_alpa.trace.call import apply, is_traced
from hpc_alpa.trace.gradient import grad, value_and_grad
from hpc_alpa.trace.position import position
from hpc_alpa.trace.recording import current, layer
from hpc_alpa.trace.traced import InputLeaf, OutputLeaf, Signature, Traced
from hpc_alpa.trace.tracing import trace

__all__ = [
    "InputLeaf", "OutputLeaf", "Signature", "Traced", "TracedArray", "apply", "current", "grad",
    "is_traced", "layer", "position", "trace", "value_and_grad",
]  # fmt: skip
