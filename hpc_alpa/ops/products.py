"""The matrix product by which an operator is computed: what the seconds of its class depend on."""

from __future__ import annotations

from hpc_alpa.ir.op import TABLE, Params, Types
from hpc_alpa.ir.types import TensorType
from hpc_alpa.ops import convolution
from hpc_alpa.ops.contraction import contraction_dims


def product_dims(
    name: str, inputs: Types, output: TensorType, params: Params
) -> tuple[int, int, int, int] | tuple[()]:
    """(batch, m, n, k) of an operator of the class `dot_general`, () of others.

    Args:
        inputs, output: types of one device's tiles.
    """
    if TABLE[name].cost != "dot_general":
        return ()
    if name == "dot_general":
        return contraction_dims(inputs, params)
    return convolution.product_dims(name, inputs, output)
