"""Reductions over dims, and what their gradients need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hpc_alpa.errors import GraphError
from hpc_alpa.ir.op import Call, Params, Types, define
from hpc_alpa.ir.types import TensorType
from hpc_alpa.ops.rule import Rule, bind, names, side

ALL = ((0,),)


def kept(ndim: int, axes: tuple[int, ...]) -> tuple[int, ...]:
    """The dims that are not reduced."""
    return tuple(d for d in range(ndim) if d not in axes)


def infer_reduced(name: str) -> Callable[[Types, Params, TensorType | None], TensorType]:
    def infer(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
        (x,), axes = inputs, params["axes"]
        if list(axes) != sorted(set(axes)) or any(not 0 <= a < x.ndim for a in axes):
            raise GraphError(f"{name} of {x} takes rising axes below {x.ndim}, not {axes}")
        if name == "reduce_sum":
            _summable(name, x)
        return x.with_shape(tuple(x.shape[d] for d in kept(x.ndim, axes)))

    return infer


def _summable(name: str, x: TensorType) -> None:
    if x.dtype == "bool":
        raise GraphError(f"{name} takes numbers, not {x}; cast it first")


def spread(b: Any, v: Any, like: Any, axes: tuple[int, ...]) -> Any:
    """Broadcast a reduced value back over the reduced axes."""
    return b.broadcast(v, type=like.type.with_dtype(v.type.dtype), dims=kept(like.type.ndim, axes))


def _reduce_rule(mark: str, sums: Any, maxima: Any) -> Callable[[Types, TensorType, Params], Rule]:
    def rule(inputs: Types, output: TensorType, params: Params) -> Rule:
        n, axes = names(inputs[0].ndim), params["axes"]
        left = side(x + mark if d in axes else x for d, x in enumerate(n))
        right = side(n[d] for d in kept(len(n), axes))
        return bind(f"{left} -> {right}", inputs, output, sums, maxima)

    return rule


def _extreme_vjp(sign: int) -> Callable[..., Any]:
    def vjp(b: Any, e: Any, ct: Any) -> Any:
        # Never x == max(x): two conversions of one partial x differ in the last bit.
        (x,), axes = e.inputs, e.params_dict["axes"]
        mask = b.max_mask(x if sign > 0 else b.neg(x), axes=axes)
        return (b.mul(mask, spread(b, ct, x, axes)),)

    return vjp


def _infer_max_mask(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    infer_reduced("max_mask")(inputs, params, want)
    if not inputs[0].is_floating:
        raise GraphError(f"max_mask takes floating values, not {inputs[0]}")
    return inputs[0]


def _max_mask(c: Call, x: Any) -> Any:
    axes = c.params["axes"]
    m = (x == x.max(axis=axes, keepdims=True)).astype(x.dtype)
    return m / m.sum(axis=axes, keepdims=True)


def _max_mask_rule(inputs: Types, output: TensorType, params: Params) -> Rule:
    n = names(output.ndim)
    left = side(x + "^" if d in params["axes"] else x for d, x in enumerate(n))
    return bind(f"{left} -> {side(n)}", inputs, output)


def _size(inputs: Types, output: TensorType, params: Params) -> float:
    return float(inputs[0].size)


_ROWS: dict[str, tuple[Any, ...]] = {  # name: reference, vjp, rule
    "reduce_max": (
        lambda c, x: x.max(axis=c.params["axes"]),
        _extreme_vjp(1),
        _reduce_rule(">", (), ALL),
    ),
    # A partial minimum has no state of its own: the dim stays whole, or the user writes -max(-x).
    "reduce_min": (
        lambda c, x: x.min(axis=c.params["axes"]),
        _extreme_vjp(-1),
        _reduce_rule("^", (), ()),
    ),
    "reduce_sum": (
        lambda c, x: x.sum(axis=c.params["axes"], dtype=x.dtype),
        lambda b, e, ct: (spread(b, ct, e.inputs[0], e.params_dict["axes"]),),
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
    )

define(
    "max_mask",  # 1 at the maximum along the axes; equal maxima share it
    infer=_infer_max_mask,
    reference=_max_mask,
    vjp=None,
    flops=lambda inputs, output, params: 3.0 * output.size,
    rule=_max_mask_rule,
)


# ---------------------------------------------------------------------------- argmax and cumsum
def _infer_argmax(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    (x,), axis = inputs, params["axis"]
    if not 0 <= axis < x.ndim:
        raise GraphError(f"argmax of {x} takes an axis below {x.ndim}, not {axis}")
    return TensorType(tuple(s for d, s in enumerate(x.shape) if d != axis), "int64")


def _infer_cumsum(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    (x,), axis = inputs, params["axis"]
    if not 0 <= axis < x.ndim:
        raise GraphError(f"cumsum of {x} takes an axis below {x.ndim}, not {axis}")
    _summable("cumsum", x)
    return x


def _axis_rule(keep: bool) -> Callable[[Types, TensorType, Params], Rule]:
    def rule(inputs: Types, output: TensorType, params: Params) -> Rule:
        n, axis = names(inputs[0].ndim), params["axis"]
        left = side(x + "^" if d == axis else x for d, x in enumerate(n))
        right = side(x + "^" if d == axis else x for d, x in enumerate(n) if keep or d != axis)
        return bind(f"{left} -> {right}", inputs, output, ALL if keep else ())

    return rule


def _cumsum_vjp(b: Any, e: Any, ct: Any) -> Any:
    # The sum from i on is the total minus the sum before i.
    axis = e.params_dict["axis"]
    total = spread(b, b.reduce_sum(ct, axes=(axis,)), ct, (axis,))
    return (b.add(b.sub(total, b.cumsum(ct, axis=axis)), ct),)


define(
    "argmax",
    infer=_infer_argmax,
    reference=lambda c, x: x.argmax(axis=c.params["axis"]).astype(np.int64),
    vjp=None,
    flops=_size,
    rule=_axis_rule(False),
    cost="reduce",
)
define(
    "cumsum",
    infer=_infer_cumsum,
    reference=lambda c, x: x.cumsum(axis=c.params["axis"], dtype=x.dtype),
    vjp=_cumsum_vjp,
    flops=_size,
    rule=_axis_rule(True),
    cost="reduce",
)
