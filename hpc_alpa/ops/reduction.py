"""Reductions over dims, and what their gradients need."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from hpc_alpa.errors import GraphError
from hpc_alpa.ir.op import NARROW, Call, Params, Types, define
from hpc_alpa.ir.types import TensorType
from hpc_alpa.ops.rule import ALL, Rule, bind, names, side


def kept(ndim: int, dims: tuple[int, ...]) -> tuple[int, ...]:
    """The dims that are not reduced."""
    return tuple(d for d in range(ndim) if d not in dims)


def infer_reduced(name: str) -> Callable[[Types, Params, TensorType | None], TensorType]:
    """The infer column: the `dims` are gone from the output."""

    def infer(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
        (x,), dims = inputs, params["dims"]
        if list(dims) != sorted(set(dims)) or any(not 0 <= d < x.ndim for d in dims):
            raise GraphError(f"{name} of {x} takes rising dims below {x.ndim}, not {dims}")
        if name == "reduce_sum":
            _summable(name, x)
        return x.with_shape(tuple(x.shape[d] for d in kept(x.ndim, dims)))

    return infer


def _summable(name: str, x: TensorType) -> None:
    if x.dtype == "bool":
        raise GraphError(f"{name} takes numbers, not {x}; cast it first")


def spread(b: Any, v: Any, like: Any, dims: tuple[int, ...]) -> Any:
    """Broadcast a reduced value back over the reduced dims."""
    return b.broadcast(v, type=like.type.with_dtype(v.type.dtype), dims=kept(like.type.ndim, dims))


def _reduce_rule(mark: str, sums: Any, maxima: Any) -> Callable[[Types, TensorType, Params], Rule]:
    def rule(inputs: Types, output: TensorType, params: Params) -> Rule:
        n, dims = names(inputs[0].ndim), params["dims"]
        left = side(x + mark if d in dims else x for d, x in enumerate(n))
        right = side(n[d] for d in kept(len(n), dims))
        return bind(f"{left} -> {right}", inputs, output, sums, maxima)

    return rule


def _extreme_vjp(sign: int) -> Callable[..., Any]:
    def vjp(b: Any, e: Any, ct: Any) -> Any:
        # Never x == max(x): two conversions of one partial x differ in the last bit.
        (x,), dims = e.inputs, e.params_dict["dims"]
        mask = b.max_mask(x if sign > 0 else b.neg(x), dims=dims)
        return (b.mul(mask, spread(b, ct, x, dims)),)

    return vjp


def _infer_max_mask(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    infer_reduced("max_mask")(inputs, params, want)
    if not inputs[0].is_floating:
        raise GraphError(f"max_mask takes floating values, not {inputs[0]}")
    return inputs[0]


def _max_mask(c: Call, x: Any) -> Any:
    dims = c.params["dims"]
    m = (x == x.max(axis=dims, keepdims=True)).astype(x.dtype)
    return m / m.sum(axis=dims, keepdims=True)


def _max_mask_rule(inputs: Types, output: TensorType, params: Params) -> Rule:
    n = names(output.ndim)
    left = side(x + "^" if d in params["dims"] else x for d, x in enumerate(n))
    return bind(f"{left} -> {side(n)}", inputs, output)


def _size(inputs: Types, output: TensorType, params: Params) -> float:
    return float(inputs[0].size)


_ROWS: dict[str, tuple[Any, ...]] = {  # name: reference, vjp, rule
    "reduce_max": (
        lambda c, x: x.max(axis=c.params["dims"]),
        _extreme_vjp(1),
        _reduce_rule(">", (), ALL),
    ),
    # A partial minimum has no state of its own: the dim stays whole, or the user writes -max(-x).
    "reduce_min": (
        lambda c, x: x.min(axis=c.params["dims"]),
        _extreme_vjp(-1),
        _reduce_rule("^", (), ()),
    ),
    "reduce_sum": (
        lambda c, x: x.sum(axis=c.params["dims"], dtype=x.dtype),
        lambda b, e, ct: (spread(b, ct, e.inputs[0], e.params_dict["dims"]),),
        _reduce_rule("+", ALL, ()),
    ),
}
for _name, (_reference, _vjp, _rule) in _ROWS.items():
    define(
        _name,
        infer=infer_reduced(_name),
        reference=_reference,
        vjp=_vjp,
        flops=_size,
        rule=_rule,
        cost="reduce",
        wide=_name == "reduce_sum",
    )

define(
    "max_mask",  # 1 at the maximum along the dims; equal maxima share it
    infer=_infer_max_mask,
    reference=_max_mask,
    vjp=None,
    flops=lambda inputs, output, params: 3.0 * output.size,
    rule=_max_mask_rule,
)


# ------------------------------------------------------------------------------- sum of squares
def _infer_sum_squares(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    (x,) = inputs
    if not x.is_floating:
        raise GraphError(f"sum_squares takes floating values, not {x}")
    return TensorType((), NARROW.get(x.dtype, x.dtype))


def _sum_squares(c: Call, x: Any) -> Any:
    flat = x.reshape(-1)
    return flat @ flat


def _sum_squares_vjp(b: Any, e: Any, ct: Any) -> Any:
    (x,) = e.inputs
    narrow = ct if ct.type.dtype == x.type.dtype else b.cast(ct, dtype=x.type.dtype)
    return (b.mul(b.mul(x, 2.0), narrow),)


define(
    "sum_squares",  # over all dims, 0-d; float32 of 16-bit floats, and no copy of them in it
    infer=_infer_sum_squares,
    reference=_sum_squares,
    vjp=_sum_squares_vjp,
    flops=lambda inputs, output, params: 2.0 * inputs[0].size,
    rule=lambda inputs, output, params: bind(
        f"{side(x + '+' for x in names(inputs[0].ndim))} -> {side(())}", inputs, output
    ),
    cost="reduce",
    wide=True,
)


# --------------------------------------------------------------------- argmax, top_k and cumsum
def _infer_argmax(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    (x,), dim = inputs, params["dim"]
    if not 0 <= dim < x.ndim:
        raise GraphError(f"argmax of {x} takes a dim below {x.ndim}, not {dim}")
    return TensorType(tuple(s for d, s in enumerate(x.shape) if d != dim), "int64")


def _infer_top_k(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    (x,), k = inputs, params["k"]
    if x.ndim < 1 or not 0 < k <= x.shape[-1]:
        raise GraphError(f"top_k takes 1 to all of the last dim, not {k} of {x}")
    return TensorType((*x.shape[:-1], k), "int64")


def _top_k(c: Call, x: Any) -> Any:
    # Sorted back to front, a stable order leaves the first of equal elements last.
    last = np.argsort(x[..., ::-1], axis=-1, kind="stable")[..., ::-1]
    return (x.shape[-1] - 1 - last[..., : c.params["k"]]).astype(np.int64)


def _top_k_rule(inputs: Types, output: TensorType, params: Params) -> Rule:
    rows = " ".join(names(output.ndim - 1))
    return bind(f"{rows} v^ -> {rows} k^", inputs, output)


def _infer_cumsum(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    (x,), dim = inputs, params["dim"]
    if not 0 <= dim < x.ndim:
        raise GraphError(f"cumsum of {x} takes a dim below {x.ndim}, not {dim}")
    _summable("cumsum", x)
    return x


def _dim_rule(keep: bool) -> Callable[[Types, TensorType, Params], Rule]:
    def rule(inputs: Types, output: TensorType, params: Params) -> Rule:
        n, dim = names(inputs[0].ndim), params["dim"]
        left = side(x + "^" if d == dim else x for d, x in enumerate(n))
        right = side(x + "^" if d == dim else x for d, x in enumerate(n) if keep or d != dim)
        return bind(f"{left} -> {right}", inputs, output, ALL if keep else ())

    return rule


def _cumsum_vjp(b: Any, e: Any, ct: Any) -> Any:
    # The sum from i on is the total minus the sum before i.
    dim = e.params_dict["dim"]
    total = spread(b, b.reduce_sum(ct, dims=(dim,)), ct, (dim,))
    return (b.add(b.sub(total, b.cumsum(ct, dim=dim)), ct),)


define(
    "argmax",
    infer=_infer_argmax,
    reference=lambda c, x: x.argmax(axis=c.params["dim"]).astype(np.int64),
    vjp=None,
    flops=_size,
    rule=_dim_rule(False),
    cost="reduce",
)
define(
    "cumsum",
    infer=_infer_cumsum,
    reference=lambda c, x: x.cumsum(axis=c.params["dim"], dtype=x.dtype),
    vjp=_cumsum_vjp,
    flops=_size,
    rule=_dim_rule(True),
    cost="reduce",
    wide=True,
)
define(
    "top_k",  # positions of the k largest of the last dim, the largest first, the first on a tie
    infer=_infer_top_k,
    reference=_top_k,
    vjp=None,
    flops=lambda inputs, output, params: inputs[0].size * math.log2(inputs[0].shape[-1] + 1),
    rule=_top_k_rule,
    cost="reduce",
)
