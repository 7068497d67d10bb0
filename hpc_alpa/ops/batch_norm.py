"""Batch normalisation with the statistics of the batch (Ioffe and Szegedy 2015, Alg. 1).

x is (batch, *spatial, channels), and each channel is normalised over all other dims:

    batch_moments(x)            sums of x and of its squares: one partial sum where x is split
    batch_statistics(moments)   mean and variance
    batch_norm(x, statistics, scale, bias)
    batch_norm_grad_sums, batch_norm_grad       its gradient, by one more pair of sums

With the parameter `rows`, so many rows of the batch have statistics of their own: the pairs are
(groups, 2, channels), not (2, channels), and microbatches of whole groups change nothing.

Each pair of sums is one value, so that a split batch costs one all_reduce forward and one backward,
and the gradients of scale and bias are read from the latter. The squares are summed in float64,
where a mean of a thousand deviations leaves ten digits of a variance: no second pass has to know
the mean of all devices first.

The gradient of `batch_norm` by x includes what x does to the statistics, which are those of x; so
the rows that make them pass none. Statistics that are no function of x (those of a whole training,
at inference) need no operator of their own.
"""

from __future__ import annotations

import math
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


def _pair(x: TensorType, dtype: str, params: Params) -> TensorType:
    """Two numbers a channel, of each group."""
    rows = params.get("rows")
    if rows is not None and (rows < 1 or x.shape[0] % rows):
        raise GraphError(f"groups of {rows} rows do not fill the batch of {x}")
    groups = () if rows is None else (x.shape[0] // rows,)
    return TensorType((*groups, 2, x.shape[-1]), dtype)


def _channels(name: str, x: TensorType) -> TensorType:
    if x.ndim < 2 or not x.is_floating:
        raise GraphError(f"{name} takes floating x (batch, *spatial, channels), not {x}")
    return x.with_shape(x.shape[-1:])


def _infer_moments(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    (x,) = inputs
    _channels("batch_moments", x)
    return _pair(x, "float64", params)


def _infer_statistics(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    (moments,), count = inputs, params["count"]
    fits = moments.ndim in (2, 3) and moments.shape[-2] == 2 and moments.dtype == "float64"
    if not fits or count < 1:
        raise GraphError(
            "batch_statistics takes float64[2,channels] and a count, or such a pair of each group, "
            f"not {moments} and {count}"
        )
    return moments


def _infer(name: str, operands: str) -> Callable[..., TensorType]:
    """x, like x; c, one number a channel; s, statistics; g, the sums of the gradient."""

    def infer(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
        x = inputs[0]
        channel = _channels(name, x)
        sums = _pair(x, working_dtype(x.dtype), params)
        types = {"c": channel, "g": sums, "s": _pair(x, "float64", params), "x": x}
        params["eps"]  # where it is missing, that is told here and not by a kernel
        if inputs != tuple(types[k] for k in operands):
            wanted = ", ".join(str(types[k]) for k in operands)
            raise GraphError(f"{name} takes ({wanted}), not ({', '.join(map(str, inputs))})")
        return sums if name == "batch_norm_grad_sums" else x

    return infer


# ------------------------------------------------------------------------------------ references
def _split(x: Any, groups: int) -> Any:
    """(groups, rows, *spatial, channels): a tile has whole groups, or rows of one."""
    return x.reshape(groups, -1, *x.shape[1:])


def _of(pairs: Any, k: int, like: Any) -> Any:
    """The k-th numbers of pairs, spread over the rows of a value that is split into groups."""
    v = pairs[..., k, :]
    return v.reshape(-1, *(1,) * (like.ndim - 2), v.shape[-1])


def _sums(c: Call, *values: Any) -> Any:
    """Sums of values that are split into groups, over the rows of each, in float64."""
    over = tuple(range(1, values[0].ndim - 1))
    pairs = np.stack([v.sum(axis=over, dtype=np.float64) for v in values], axis=1)
    return pairs.reshape(c.type.shape).astype(numpy_dtype(c.type.dtype), copy=False)


def _groups(pairs: Any) -> int:
    return pairs.shape[0] if pairs.ndim == 3 else 1


def _moments(c: Call, x: Any) -> Any:
    wide = _split(x, c.type.shape[0] if c.type.ndim == 3 else 1).astype(np.float64)
    return _sums(c, wide, wide * wide)


def _statistics(c: Call, moments: Any) -> Any:
    mean = moments[..., 0, :] / c.params["count"]
    # Rounding may leave a constant channel a variance below 0.
    variance = np.maximum(moments[..., 1, :] / c.params["count"] - mean * mean, 0)
    return np.stack([mean, variance], axis=-2)


def _normal(x: Any, statistics: Any, eps: float) -> tuple[Any, Any]:
    """x normalised, split into groups, and the reciprocal deviation; dtype: `working_dtype`."""
    dtype = numpy_dtype(working_dtype(x.dtype.name))
    x = _split(x, _groups(statistics)).astype(dtype, copy=False)
    r = (1 / np.sqrt(_of(statistics, 1, x) + eps)).astype(dtype)
    return (x - _of(statistics, 0, x).astype(dtype)) * r, r


def _batch_norm(c: Call, x: Any, statistics: Any, scale: Any, bias: Any) -> Any:
    n, _ = _normal(x, statistics, c.params["eps"])
    return (n * scale + bias).astype(x.dtype, copy=False).reshape(x.shape)


def _grad_sums(c: Call, x: Any, statistics: Any, ct: Any) -> Any:
    n, _ = _normal(x, statistics, c.params["eps"])
    ct = _split(ct, _groups(statistics))
    return _sums(c, ct * n, ct)


def _grad(c: Call, x: Any, statistics: Any, scale: Any, ct: Any, sums: Any) -> Any:
    n, r = _normal(x, statistics, c.params["eps"])
    mean = sums / sums.dtype.type(c.params["count"])
    d = _split(ct, _groups(statistics)) - _of(mean, 1, n) - n * _of(mean, 0, n)
    return (scale * r * d).astype(x.dtype, copy=False).reshape(x.shape)


# -------------------------------------------------------------------------------- rules, gradient
def _rule(text: str, sums: tuple[tuple[int, ...], ...] = ()) -> Callable[..., Rule]:
    """`{x}` stands for the dims of x, `{s}` for these, summed, `{z}` for those of pairs.

    The two of a pair stay together. Groups are the major factor of the batch dim.
    """

    def rule(inputs: Types, output: TensorType, params: Params) -> Rule:
        n = [f"n{d}" for d in range(inputs[0].ndim - 1)]
        summed, z = [f"{d}+" for d in n], "z^ c"
        sizes: tuple[tuple[str, int], ...] = ()
        if rows := params.get("rows"):
            sizes = (("g", inputs[0].shape[0] // rows), ("n0", rows))
            n[0], summed[0], z = "(g n0)", "(g n0+)", "g z^ c"
        dims = {"x": [*n, "c"], "s": [*summed, "c"], "z": [z]}
        filled = text.format(**{k: " ".join(v) for k, v in dims.items()})
        return bind(filled, inputs, output, sums, (), sizes)

    return rule


def _statistics_rule(inputs: Types, output: TensorType, params: Params) -> Rule:
    pair = "g z^ c" if output.ndim == 3 else "z^ c"
    return bind(f"{pair} -> {pair}", inputs, output)


def _vjp(b: Any, e: Any, ct: Any) -> Any:
    x, statistics, scale, bias = e.inputs
    params = e.params_dict
    sums = b.batch_norm_grad_sums(x, statistics, ct, **params)
    groups = sums.type.shape[:-2]
    count = x.type.size // x.type.shape[-1] // math.prod(groups)

    def row(k: int, like: Any) -> Any:
        one = sums.type.with_shape((*groups, 1, *like.type.shape))
        taken = b.slice(sums, type=one, starts=(*(0 for _ in groups), k, 0))
        vector = b.reshape(taken, type=sums.type.with_shape((*groups, *like.type.shape)))
        if groups:
            vector = b.reduce_sum(vector, dims=(0,))
        same = like.type.dtype == vector.type.dtype
        return vector if same else b.cast(vector, dtype=like.type.dtype)

    return (
        b.batch_norm_grad(x, statistics, scale, ct, sums, count=count, **params),
        None,
        row(0, scale),
        row(1, bias),
    )


_ROWS: dict[str, tuple[Any, ...]] = {  # name: infer, reference, vjp, rule, flops an element
    "batch_moments": (_infer_moments, _moments, None, _rule("{s} -> {z}"), 3),
    "batch_norm": (
        _infer("batch_norm", "xscc"), _batch_norm, _vjp,
        _rule("{x}, {z}, c, c -> {x}", ((2, 3),)), 4,
    ),
    "batch_norm_grad": (
        _infer("batch_norm_grad", "xscxg"), _grad, None,
        _rule("{x}, {z}, c, {x}, {z} -> {x}", ((2,), (3, 4))), 8,
    ),
    "batch_norm_grad_sums": (
        _infer("batch_norm_grad_sums", "xsx"), _grad_sums, None,
        _rule("{s}, {z}, {s} -> {z}", ((2,),)), 5,
    ),
    "batch_statistics": (_infer_statistics, _statistics, None, _statistics_rule, 4),
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
