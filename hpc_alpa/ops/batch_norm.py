"""Batch normalisation with the statistics of the batch (Ioffe and Szegedy 2015, Alg. 1).

x is (batch, *spatial, channels), and each channel is normalised over all other dims:

    batch_moments(x)            sums of x and of its squares: one partial sum where x is split
    batch_statistics(moments)   mean and variance
    batch_norm(x, statistics, scale, bias)
    batch_norm_grad_sums, batch_norm_grad       its gradient, by one more pair of sums

Each pair of sums is one value, so that a split batch costs one all_reduce forward and one backward,
and the gradients of scale and bias are read from the latter. The squares are summed in float64,
where a mean of a thousand deviations leaves ten digits of a variance: no second pass has to know
the mean of all devices first.

The gradient of `batch_norm` by x includes what x does to the statistics, which are those of x; so
the rows that make them pass none. Statistics that are no function of x (those of a whole training,
at inference) need no operator of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hpc_alpa.errors import GraphError
from hpc_alpa.ir.op import Call, Params, Types, define
from hpc_alpa.ir.types import TensorType, numpy_dtype
from hpc_alpa.ops.rule import Rule, bind


def working_dtype(dtype: str) -> str:
    """The dtype in which x of a dtype is normalised: float32 for 16-bit values too."""
    return "float64" if dtype == "float64" else "float32"


def _pair(x: TensorType, dtype: str) -> TensorType:
    """Two numbers a channel."""
    return TensorType((2, x.shape[-1]), dtype)


def _channels(name: str, x: TensorType) -> TensorType:
    if x.ndim < 2 or not x.is_floating:
        raise GraphError(f"{name} takes floating x (batch, *spatial, channels), not {x}")
    return x.with_shape(x.shape[-1:])


def _infer_moments(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    (x,) = inputs
    _channels("batch_moments", x)
    return _pair(x, "float64")


def _infer_statistics(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    (moments,), count = inputs, params["count"]
    if moments.ndim != 2 or moments.shape[0] != 2 or moments.dtype != "float64" or count < 1:
        raise GraphError(
            f"batch_statistics takes float64[2,channels] and a count, not {moments} and {count}"
        )
    return moments


def _infer(name: str, operands: str) -> Callable[..., TensorType]:
    """x, like x; c, one number a channel; s, statistics; g, the sums of the gradient."""

    def infer(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
        x = inputs[0]
        channel = _channels(name, x)
        sums = _pair(x, working_dtype(x.dtype))
        types = {"c": channel, "g": sums, "s": _pair(x, "float64"), "x": x}
        params["eps"]  # where it is missing, that is told here and not by a kernel
        if inputs != tuple(types[k] for k in operands):
            wanted = ", ".join(str(types[k]) for k in operands)
            raise GraphError(f"{name} takes ({wanted}), not ({', '.join(map(str, inputs))})")
        return sums if name == "batch_norm_grad_sums" else x

    return infer


# ------------------------------------------------------------------------------------ references
def _rows(x: Any) -> tuple[int, ...]:
    return tuple(range(x.ndim - 1))


def _moments(c: Call, x: Any) -> Any:
    wide = x.astype(np.float64)
    return np.stack([wide.sum(axis=_rows(x)), (wide * wide).sum(axis=_rows(x))])


def _statistics(c: Call, moments: Any) -> Any:
    mean = moments[0] / c.params["count"]
    # Rounding may leave a constant channel a variance below 0.
    variance = np.maximum(moments[1] / c.params["count"] - mean * mean, 0)
    return np.stack([mean, variance])


def _normal(x: Any, statistics: Any, eps: float) -> tuple[Any, Any]:
    """x normalised, and the reciprocal deviation, in the dtype that x is normalised in."""
    dtype = numpy_dtype(working_dtype(x.dtype.name))
    r = (1 / np.sqrt(statistics[1] + eps)).astype(dtype)
    return (x.astype(dtype, copy=False) - statistics[0].astype(dtype)) * r, r


def _batch_norm(c: Call, x: Any, statistics: Any, scale: Any, bias: Any) -> Any:
    n, _ = _normal(x, statistics, c.params["eps"])
    return (n * scale + bias).astype(x.dtype, copy=False)


def _grad_sums(c: Call, x: Any, statistics: Any, ct: Any) -> Any:
    n, _ = _normal(x, statistics, c.params["eps"])
    rows, wide = _rows(x), np.float64
    sums = [(ct * n).sum(axis=rows, dtype=wide), ct.sum(axis=rows, dtype=wide)]
    return np.stack(sums).astype(n.dtype, copy=False)


def _grad(c: Call, x: Any, statistics: Any, scale: Any, ct: Any, sums: Any) -> Any:
    n, r = _normal(x, statistics, c.params["eps"])
    mean = sums / sums.dtype.type(c.params["count"])
    return (scale * r * (ct - mean[1] - n * mean[0])).astype(x.dtype, copy=False)


# -------------------------------------------------------------------------------- rules, gradient
def _rule(text: str, sums: tuple[tuple[int, ...], ...] = ()) -> Callable[..., Rule]:
    """`{x}` stands for the dims of x, `{s}` for these, summed; the pair `z` stays whole."""

    def rule(inputs: Types, output: TensorType, params: Params) -> Rule:
        rows = [f"n{d}" for d in range(inputs[0].ndim - 1)]
        x, s = " ".join([*rows, "c"]), " ".join([*(f"{n}+" for n in rows), "c"])
        return bind(text.format(x=x, s=s), inputs, output, sums)

    return rule


def _vjp(b: Any, e: Any, ct: Any) -> Any:
    x, statistics, scale, bias = e.inputs
    eps, count = e.params_dict["eps"], x.type.size // x.type.shape[-1]
    sums = b.batch_norm_grad_sums(x, statistics, ct, eps=eps)

    def row(k: int, like: Any) -> Any:
        one = sums.type.with_shape((1, *like.type.shape))
        vector = b.reshape(b.slice(sums, type=one, starts=(k, 0)), type=like.type)
        same = like.type.dtype == vector.type.dtype
        return vector if same else b.cast(vector, dtype=like.type.dtype)

    return (
        b.batch_norm_grad(x, statistics, scale, ct, sums, eps=eps, count=count),
        None,
        row(0, scale),
        row(1, bias),
    )


_ROWS: dict[str, tuple[Any, ...]] = {  # name: infer, reference, vjp, rule, flops an element
    "batch_moments": (_infer_moments, _moments, None, _rule("{s} -> z^ c"), 3),
    "batch_norm": (
        _infer("batch_norm", "xscc"), _batch_norm, _vjp,
        _rule("{x}, z^ c, c, c -> {x}", ((2, 3),)), 4,
    ),
    "batch_norm_grad": (
        _infer("batch_norm_grad", "xscxg"), _grad, None,
        _rule("{x}, z^ c, c, {x}, z^ c -> {x}", ((2,), (3, 4))), 8,
    ),
    "batch_norm_grad_sums": (
        _infer("batch_norm_grad_sums", "xsx"), _grad_sums, None,
        _rule("{s}, z^ c, {s} -> z^ c", ((2,),)), 5,
    ),
    "batch_statistics": (_infer_statistics, _statistics, None, _rule("z^ c -> z^ c"), 4),
}  # fmt: skip


def _flops(per_element: float) -> Callable[[Types, TensorType, Params], float]:
    return lambda inputs, output, params: float(per_element * inputs[0].size)


for _name, (_infer_row, _reference, _gradient, _rule_row, _per) in _ROWS.items():
    define(
        _name,
        infer=_infer_row,
        reference=_reference,
        vjp=_gradient,
        flops=_flops(_per),
        rule=_rule_row,
        cost="reduce" if _name.endswith(("moments", "sums")) else "elementwise",
    )
