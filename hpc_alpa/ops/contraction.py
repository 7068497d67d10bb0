"""`dot_general`: a product summed over shared dims, written as an equation, `abk,bkc->abc`."""

from __future__ import annotations

import math
import string
from functools import lru_cache
from typing import Any

import numpy as np

from hpc_alpa.errors import GraphError
from hpc_alpa.ir.op import NARROW, Call, Params, Types, define
from hpc_alpa.ir.types import TensorType
from hpc_alpa.ops.rule import Rule, bind, side


def split_equation(equation: str) -> tuple[str, str, str]:
    """The dims of both operands and of the output."""
    left, out = equation.split("->")
    a, b = left.split(",")
    return a, b, out


def _infer(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    equation = params["equation"]
    a, b, out = split_equation(equation)
    if set(a + b + out) - set(string.ascii_lowercase):
        raise GraphError(f"dot_general {equation!r}: dims are named by lower-case letters")
    extents: dict[str, int] = {}
    for letters, t in zip((a, b), inputs, strict=True):
        if len(letters) != t.ndim or len(set(letters)) != len(letters):
            raise GraphError(f"dot_general {equation!r} does not fit the dims of {t}")
        for x, s in zip(letters, t.shape, strict=True):
            if extents.setdefault(x, s) != s:
                raise GraphError(f"dot_general {equation!r}: dim {x} is {extents[x]} and {s}")
    if inputs[0].dtype != inputs[1].dtype:
        raise GraphError(f"dot_general takes one dtype, not {inputs[0]} and {inputs[1]}")
    if inputs[0].dtype == "bool":
        raise GraphError(f"dot_general takes numbers, not {inputs[0]}; cast them first")
    if set(out) - set(a + b) or (set(a) ^ set(b)) - set(out):
        raise GraphError(
            f"dot_general {equation!r}: every dim of one operand alone is in the output"
        )
    return TensorType(tuple(extents[x] for x in out), inputs[0].dtype)


def contraction_dims(inputs: Types, params: Params) -> tuple[int, int, int, int]:
    """(batch, m, n, k) of the matrix product that this contraction is."""
    a, b, out = split_equation(params["equation"])
    extents = dict(zip(a + b, inputs[0].shape + inputs[1].shape, strict=True))

    def size(letters: str) -> int:
        return math.prod(extents[x] for x in letters)

    shared = [x for x in a if x in b]
    return (
        size("".join(x for x in shared if x in out)),
        size("".join(x for x in a if x not in b)),
        size("".join(x for x in b if x not in a)),
        size("".join(x for x in shared if x not in out)),
    )


@lru_cache(maxsize=4096)
def _order(
    equation: str,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int, int, int]:
    """Transposes that bring the operands to (batch, m, k), (batch, k, n), and the output back."""
    a, b, out = split_equation(equation)
    batch = [x for x in out if x in a and x in b]
    contracted = [x for x in a if x in b and x not in out]
    m = [x for x in out if x in a and x not in b]
    n = [x for x in out if x in b and x not in a]
    left = tuple(a.index(x) for x in batch + m + contracted)
    right = tuple(b.index(x) for x in batch + contracted + n)
    made = batch + m + n
    return left, right, tuple(made.index(x) for x in out), len(batch), len(m), len(contracted)


def dot(c: Call, x: Any, y: Any) -> Any:
    """By one batched matrix product on BLAS; transposes stay views where their layout allows it."""
    left, right, back, nb, nm, nk = _order(c.params["equation"])
    x, y = x.transpose(left), y.transpose(right)
    batch, m, n = x.shape[:nb], x.shape[nb : nb + nm], y.shape[nb + nk :]
    k = math.prod(y.shape[nb : nb + nk])
    a = _flat(x, (*batch, math.prod(m), k))
    b = _flat(y, (*batch, k, math.prod(n)))
    if not nb:
        z = product(a, b)
    else:
        size = math.prod(batch)
        z = product(a.reshape(size, *a.shape[-2:]), b.reshape(size, *b.shape[-2:]))
    return z.reshape((*batch, *m, *n)).transpose(back).astype(x.dtype, copy=False)


def product(a: Any, b: Any) -> Any:
    """`np.matmul`; a host multiplies 16-bit floats in float32, and its BLAS knows no others."""
    if isinstance(a, np.ndarray) and a.dtype.name in NARROW:
        a, b = a.astype(NARROW[a.dtype.name]), b.astype(NARROW[b.dtype.name])
    return np.matmul(a, b)


def _flat(x: Any, shape: tuple[int, ...]) -> Any:
    """Reshape; a transposed pair of last dims stays a view, which BLAS takes without a copy."""
    return x if x.shape == shape else x.reshape(shape)


def _vjp(b: Any, e: Any, ct: Any) -> Any:
    x, y = e.inputs
    a, c, out = split_equation(e.params_dict["equation"])
    return (
        b.dot_general(ct, y, equation=f"{out},{c}->{a}"),
        b.dot_general(x, ct, equation=f"{a},{out}->{c}"),
    )


def _rule(inputs: Types, output: TensorType, params: Params) -> Rule:
    a, b, out = split_equation(params["equation"])

    def text(letters: str) -> str:
        return side(x if x in out else x + "+" for x in letters)

    return bind(f"{text(a)}, {text(b)} -> {text(out)}", inputs, output, ((0,), (1,)))


def _flops(inputs: Types, output: TensorType, params: Params) -> float:
    return 2.0 * math.prod(contraction_dims(inputs, params))


define(
    "dot_general",
    infer=_infer,
    reference=dot,
    vjp=_vjp,
    flops=_flops,
    rule=_rule,
    cost="dot_general",
)
