"""Gaussian error linear unit, tanh approximation (Hendrycks and Gimpel 2016, Sec. 2)."""

import math

from hpc_alpa.kernels import Array
from hpc_alpa.kernels.reference import array_module

ROOT = math.sqrt(2 / math.pi)
CUBIC = 0.044715


def gelu(x: Array, out: Array) -> None:
    """out = x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))), any shape."""
    out[...] = 0.5 * x * (1.0 + array_module(x).tanh(ROOT * (x + CUBIC * x * x * x)))


def gelu_grad(x: Array, ct: Array, out: Array) -> None:
    """out = ct times the derivative of `gelu` at x."""
    th = array_module(x).tanh(ROOT * (x + CUBIC * x * x * x))
    slope = ROOT * (1.0 + 3 * CUBIC * x * x)
    out[...] = ct * (0.5 * (1.0 + th) + 0.5 * x * (1.0 - th * th) * slope)
