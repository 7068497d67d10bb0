"""Pooling over windows of the spatial dims of (batch, *spatial, channels), and its gradients.

    pool         the maximum or the sum of each window; padding counts for nothing
    unpool       the transpose of the sum: a window's value added to each of its elements
    pool_unpick  the gradient of the maximum: a window's value added to its first largest element
    pool_pick    the transpose of that: what another value has at the window's largest element

The largest element is found by one operator in one operand: two conversions of one partial value
differ in the last bit, and an element equal to the maximum there may equal nothing here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from hpc_alpa.errors import GraphError
from hpc_alpa.ir.op import Call, Params, Types, define
from hpc_alpa.ir.types import TensorType
from hpc_alpa.ops.halo import HALOS
from hpc_alpa.ops.movement import wanted
from hpc_alpa.ops.rule import ALL, Rule, bind
from hpc_alpa.ops.windows import SpatialFactors, pad, padded_shape, taps, unpad, window_extents

KINDS = ("max", "sum")
SECOND = ((1,),)


def _pooled(name: str, x: TensorType, params: Params) -> TensorType:
    if x.ndim < 3 or not x.is_floating:
        raise GraphError(f"{name} takes floating x (batch, *spatial, channels), not {x}")
    return x.with_shape(
        (x.shape[0], *window_extents(name, x.shape[1:-1], params["window"], params), x.shape[-1])
    )


def _infer_pool(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    (x,) = inputs
    if params["kind"] not in KINDS:
        raise GraphError(f"pool has kinds {', '.join(KINDS)}, not {params['kind']!r}")
    return _pooled("pool", x, params)


def _infer_unpool(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    (y,), x = inputs, wanted("unpool", want).with_dtype(inputs[0].dtype)
    if _pooled("unpool", x, params) != y:
        raise GraphError(f"unpool of {y} with {dict(params)} cannot make {x}")
    return x


def _infer_pick(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    x, v = inputs
    if v != x:
        raise GraphError(f"pool_pick takes two values of one type, not {x} and {v}")
    return _pooled("pool_pick", x, params)


def _infer_unpick(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    x, ct = inputs
    if ct != _pooled("pool_unpick", x, params):
        raise GraphError(f"pool_unpick takes x and one value a window, not {x} and {ct}")
    return x


# ----------------------------------------------------------------------------------- NumPy kernels
def _pool(c: Call, x: Any) -> Any:
    combine, nothing = (np.add, 0) if c.params["kind"] == "sum" else (np.maximum, -np.inf)
    padded, out = pad(x, c.params, nothing), None
    for where in taps(c.params["window"], c.type.shape[1:-1], c.params):
        out = padded[where].copy() if out is None else combine(out, padded[where], out=out)
    return out


def _unpool(c: Call, y: Any) -> Any:
    padded = np.zeros_like(y, shape=padded_shape(c.type.shape, c.params))
    for where in taps(c.params["window"], y.shape[1:-1], c.params):
        padded[where] += y
    return unpad(padded, c.params)


def _largest(x: Any, windows: tuple[int, ...], params: Params) -> Any:
    """Which element of each window is the first largest."""
    padded = pad(x, params, -np.inf)
    first, *others = taps(params["window"], windows, params)
    best, chosen = padded[first], np.zeros_like(padded[first], dtype=np.int64)
    for t, where in enumerate(others, 1):
        better = padded[where] > best
        chosen[better] = t
        best = np.where(better, padded[where], best)
    return chosen


def _pick(c: Call, x: Any, v: Any) -> Any:
    windows, padded = c.type.shape[1:-1], pad(v, c.params, 0)
    chosen, out = _largest(x, windows, c.params), np.zeros_like(v, shape=c.type.shape)
    for t, where in enumerate(taps(c.params["window"], windows, c.params)):
        out = np.where(chosen == t, padded[where], out)
    return out


def _unpick(c: Call, x: Any, ct: Any) -> Any:
    windows = ct.shape[1:-1]
    chosen = _largest(x, windows, c.params)
    padded = np.zeros_like(ct, shape=padded_shape(c.type.shape, c.params))
    for t, where in enumerate(taps(c.params["window"], windows, c.params)):
        padded[where] += np.where(chosen == t, ct, ct.dtype.type(0))
    return unpad(padded, c.params)


# ------------------------------------------------------------------------------ rules, gradients
def _rule(name: str, text: str, sums: Any, maxima: Any = ()) -> Callable[..., Rule]:
    """`x` stands for a value with the dims of x, `y` for one with a value a window."""

    def rule(inputs: Types, output: TensorType, params: Params) -> Rule:
        operands = dict(zip(text.replace(" ->", ",").split(", "), (*inputs, output), strict=True))
        x, y = operands["x"], operands["y"]
        windows = y.shape[1:-1]
        factors = SpatialFactors.of(
            x.shape[1:-1], params["window"], windows, params, HALOS[name].needs
        )
        dims = {
            "x": f"n {' '.join(factors.below)} c",
            "y": f"n {' '.join(factors.above)} c",
        }
        filled = "".join(dims.get(letter, letter) for letter in text)
        by_kind = isinstance(sums, dict)
        s, m = (sums[params["kind"]], maxima[params["kind"]]) if by_kind else (sums, maxima)
        return bind(filled, inputs, output, s, m, factors.sizes)

    return rule


def _without_kind(e: Any) -> dict[str, Any]:
    return {k: v for k, v in e.params_dict.items() if k != "kind"}


def _pool_vjp(b: Any, e: Any, ct: Any) -> Any:
    (x,) = e.inputs
    if e.params_dict["kind"] == "sum":
        return (b.unpool(ct, type=x.type, **_without_kind(e)),)
    return (b.pool_unpick(x, ct, **_without_kind(e)),)


_ROWS: dict[str, tuple[Any, ...]] = {  # name: infer, reference, vjp, rule
    "pool": (
        _infer_pool,
        _pool,
        _pool_vjp,
        _rule("pool", "x -> y", {"max": (), "sum": ALL}, {"max": ALL, "sum": ()}),
    ),
    "pool_pick": (
        _infer_pick,
        _pick,
        lambda b, e, ct: (None, b.pool_unpick(e.inputs[0], ct, **e.params_dict)),
        _rule("pool_pick", "x, x -> y", SECOND),
    ),
    "pool_unpick": (
        _infer_unpick,
        _unpick,
        lambda b, e, ct: (None, b.pool_pick(e.inputs[0], ct, **e.params_dict)),
        _rule("pool_unpick", "x, y -> x", SECOND),
    ),
    "unpool": (
        _infer_unpool,
        _unpool,
        lambda b, e, ct: (b.pool(ct, kind="sum", **e.params_dict),),
        _rule("unpool", "y -> x", ALL),
    ),
}


def _flops(inputs: Types, output: TensorType, params: Params) -> float:
    windows = min(t.size for t in (*inputs, output))
    return float(windows * math.prod(params["window"]))


for _name, (_infer, _reference, _vjp, _rule_column) in _ROWS.items():
    define(
        _name,
        infer=_infer,
        reference=_reference,
        vjp=_vjp,
        flops=_flops,
        rule=_rule_column,
        cost="reduce",
    )
