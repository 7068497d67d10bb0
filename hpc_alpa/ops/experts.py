"""Tokens to the places of experts and back, by index (GShard, Lepikhin et al. 2020, Sec. 2.2).

One trilinear form, the sum over groups g, tokens s and choices k of
weights[g, s, k] x[g, s] . y[g, experts[g, s, k], places[g, s, k]]; `dispatch` is its derivative by
y, `combine` that by x, `combine_grad_weights` that by the weights. So each is the gradient of the
others.

An expert or a place that is not there drops the choice. Values are selected and never multiplied by
a mask: 0 x inf is NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from hpc_alpa.errors import GraphError
from hpc_alpa.ir.op import Call, Params, Types, define
from hpc_alpa.ir.types import TensorType
from hpc_alpa.ops.indexing import local_rows
from hpc_alpa.ops.movement import wanted
from hpc_alpa.ops.rule import Rule, bind


# ----------------------------------------------------------------------------------------- types
def _check(name: str, x: TensorType, y: TensorType, routes: Types, weights: Types) -> None:
    """x (groups, tokens, width), y (groups, experts, capacity, width), routes and weights."""
    fits = (
        x.ndim == 3
        and y.ndim == 4
        and (x.shape[0], x.shape[2]) == (y.shape[0], y.shape[3])
        and x.dtype == y.dtype
        and x.is_floating
        and len(routes) == 2
        and all(t.ndim == 3 and t.shape[:2] == x.shape[:2] for t in (*routes, *weights))
        and len({t.shape for t in (*routes, *weights)}) == 1
        and all(t.dtype.startswith(("int", "uint")) for t in routes)
        and len(weights) <= 1
        and all(t.dtype == x.dtype for t in weights)
    )
    if not fits:
        given = ", ".join(map(str, (*routes, *weights)))
        raise GraphError(
            f"{name} takes tokens (groups, tokens, width), places (groups, experts, capacity, "
            "width), two integers a token and choice, and a weight each or none, not "
            f"{x}, {y} and ({given})"
        )


def _infer_dispatch(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    x, y = inputs[0], wanted("dispatch", want).with_dtype(inputs[0].dtype)
    _check("dispatch", x, y, inputs[1:3], inputs[3:])
    return y


def _infer_combine(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    y, experts = inputs[:2]
    if y.ndim != 4 or experts.ndim != 3:
        raise GraphError(f"combine takes places of experts and where tokens are, not {y}")
    x = y.with_shape((*experts.shape[:2], y.shape[3]))
    _check("combine", x, y, inputs[1:3], inputs[3:])
    return x


def _infer_grad_weights(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    y, experts, places, x = inputs
    _check("combine_grad_weights", x, y, (experts, places), ())
    return experts.with_dtype(x.dtype)


# ------------------------------------------------------------------------------------ references
def _choices(
    experts: Any, places: Any, starts: tuple[int, int], tile: tuple[int, int]
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """For each choice: where each token's place is in a tile of y, and which places are in it."""
    groups = np.arange(experts.shape[0])[:, None]
    i, has_expert = local_rows(experts, starts[0], tile[0])
    j, has_place = local_rows(places, starts[1], tile[1])
    inside = has_expert & has_place
    for k in range(experts.shape[-1]):
        yield (np.broadcast_to(groups, i.shape[:2]), i[..., k], j[..., k]), inside[..., k]


def _dispatch(c: Call, x: Any, experts: Any, places: Any, *weights: Any) -> Any:
    out = np.zeros_like(x, shape=c.type.shape)
    tile = c.type.shape[1], c.type.shape[2]
    for k, (at, inside) in enumerate(_choices(experts, places, (c.starts[1], c.starts[2]), tile)):
        rows = x * weights[0][..., k, None] if weights else x
        np.add.at(out, tuple(a[inside] for a in at), rows[inside])
    return out


def _taken(c: Call, y: Any, experts: Any, places: Any) -> Iterator[tuple[Any, Any]]:
    """For each choice: the rows of y at the tokens' places, and which of them are there."""
    starts = c.offsets["e"], c.offsets["c"]
    for at, inside in _choices(experts, places, starts, (y.shape[1], y.shape[2])):
        yield y[at], inside[..., None]


def _combine(c: Call, y: Any, experts: Any, places: Any, *weights: Any) -> Any:
    out = np.zeros_like(y, shape=c.type.shape)
    for k, (rows, inside) in enumerate(_taken(c, y, experts, places)):
        out += np.where(
            inside, rows * weights[0][..., k, None] if weights else rows, y.dtype.type(0)
        )
    return out


def _grad_weights(c: Call, y: Any, experts: Any, places: Any, x: Any) -> Any:
    parts = [
        np.where(inside, rows * x, x.dtype.type(0)).sum(axis=-1, dtype=x.dtype)
        for rows, inside in _taken(c, y, experts, places)
    ]
    return np.stack(parts, axis=-1)


# ------------------------------------------------------------------------------- rules, gradients
def _dispatch_rule(inputs: Types, output: TensorType, params: Params) -> Rule:
    routes = ", ".join(["g s+ k+"] * (len(inputs) - 1))
    sums = ((0,), (3,))[: len(inputs) - 2]
    return bind(f"g s+ m, {routes} -> g e@ c@ m", inputs, output, sums)


def _combine_rule(inputs: Types, output: TensorType, params: Params) -> Rule:
    routes = ", ".join(["g s k+"] * (len(inputs) - 1))
    sums = ((0,), (3,))[: len(inputs) - 2]
    return bind(f"g e@+ c@+ m, {routes} -> g s m", inputs, output, sums)


def _grad_weights_rule(inputs: Types, output: TensorType, params: Params) -> Rule:
    return bind("g e@+ c@+ m+, g s k, g s k, g s m+ -> g s k", inputs, output, ((0,), (3,)))


def _dispatch_vjp(b: Any, e: Any, ct: Any) -> Any:
    x, experts, places, *weights = e.inputs
    return (
        b.combine(ct, experts, places, *weights),
        None,
        None,
        *(b.combine_grad_weights(ct, experts, places, x) for _ in weights),
    )


def _combine_vjp(b: Any, e: Any, ct: Any) -> Any:
    y, experts, places, *weights = e.inputs
    return (
        b.dispatch(ct, experts, places, *weights, type=y.type),
        None,
        None,
        *(b.combine_grad_weights(y, experts, places, ct) for _ in weights),
    )


def _grad_weights_vjp(b: Any, e: Any, ct: Any) -> Any:
    y, experts, places, x = e.inputs
    return (
        b.dispatch(x, experts, places, ct, type=y.type),
        None,
        None,
        b.combine(y, experts, places, ct),
    )


def _flops(inputs: Types, output: TensorType, params: Params) -> float:
    width = next(t for t in inputs if t.is_floating).shape[-1]
    return 2.0 * inputs[1].size * width


_ROWS: dict[str, tuple[Any, ...]] = {  # name: infer, reference, vjp, rule, class of its cost
    "combine": (_infer_combine, _combine, _combine_vjp, _combine_rule, "gather"),
    "combine_grad_weights": (
        _infer_grad_weights,
        _grad_weights,
        _grad_weights_vjp,
        _grad_weights_rule,
        "gather",
    ),
    "dispatch": (_infer_dispatch, _dispatch, _dispatch_vjp, _dispatch_rule, "scatter_add"),
}

for _name, (_infer, _reference, _vjp, _rule, _cost) in _ROWS.items():
    define(
        _name,
        infer=_infer,
        reference=_reference,
        vjp=_vjp,
        flops=_flops,
        rule=_rule,
        cost=_cost,
        wide=True,
    )
