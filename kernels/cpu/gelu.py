"""Gaussian error linear unit, tanh approximation, as x times a logistic function.

(1 + tanh(u)) / 2 = 1 / (1 + exp(-2u)): one exp and one division, and no cancellation where tanh is
near -1.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_alpa.kernels.cpu.compile import BLOCK, compiled, flat, store
from hpc_alpa.kernels.cpu.elementary import exp

TWO_ROOT = 2 * math.sqrt(2 / math.pi)
CUBIC = 0.044715


@compiled()
def _gelu(x: Any, out: Any) -> None:
    real = x.dtype.type
    one, root, cubic = real(1), real(TWO_ROOT), real(CUBIC)
    buffer = np.empty(BLOCK, x.dtype)
    for start in range(0, x.size, BLOCK):
        values = x[start : start + BLOCK]
        for i in range(values.size):
            v = values[i]
            buffer[i] = v / (one + exp(-root * v * (one + cubic * v * v)))
        store(buffer, out[start : start + BLOCK])


@compiled()
def _gelu_grad(x: Any, ct: Any, out: Any) -> None:
    real = x.dtype.type
    one, root, cubic, slope = real(1), real(TWO_ROOT), real(CUBIC), real(3 * CUBIC)
    buffer = np.empty(BLOCK, x.dtype)
    for start in range(0, x.size, BLOCK):
        values = x[start : start + BLOCK]
        flow = ct[start : start + BLOCK]
        for i in range(values.size):
            v = values[i]
            gate = one / (one + exp(-root * v * (one + cubic * v * v)))
            derivative = gate + v * gate * (one - gate) * root * (one + slope * v * v)
            buffer[i] = flow[i] * derivative
        store(buffer, out[start : start + BLOCK])


def gelu(x: NDArray[Any], out: NDArray[Any]) -> None:
    """out = x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))), any shape."""
    _gelu(flat(x), flat(out))


def gelu_grad(x: NDArray[Any], ct: NDArray[Any], out: NDArray[Any]) -> None:
    """out = ct times the derivative of `gelu` at x."""
    _gelu_grad(flat(x), flat(ct), flat(out))
