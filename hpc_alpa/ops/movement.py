"""Operators that move data without computing: linear, and increasing, in their only operands."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpc_alpa.errors import GraphError
from hpc_alpa.ir.op import Call, Params, Types, define
from hpc_alpa.ir.types import TensorType
from hpc_alpa.ops.rule import ALL, Rule, bind, names, reshape_rule, side


def no_flops(inputs: Types, output: TensorType, params: Params) -> float:
    """The flops column of what computes nothing."""
    return 0.0


def wanted(name: str, want: TensorType | None) -> TensorType:
    """The output type of an operator that is told it; raises `GraphError` where it is not."""
    if want is None:
        raise GraphError(f"{name} is told the type of its output")
    return want


# ------------------------------------------------------------------------------------ broadcast
def _infer_broadcast(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    out, (source,) = wanted("broadcast", want), inputs
    dims = params["dims"]
    if len(dims) != source.ndim or list(dims) != sorted(set(dims)):
        raise GraphError(f"broadcast of {source} needs {source.ndim} rising dims, not {dims}")
    for k, d in enumerate(dims):
        if not 0 <= d < out.ndim or source.shape[k] not in (1, out.shape[d]):
            raise GraphError(f"broadcast of {source} along dims {dims} does not give {out}")
    return out.with_dtype(source.dtype)


def _broadcast(c: Call, x: Any) -> Any:
    shape = [1] * c.type.ndim
    for k, d in enumerate(c.params["dims"]):
        shape[d] = x.shape[k]
    return np.broadcast_to(x.reshape(shape), c.type.shape)


def _broadcast_vjp(b: Any, e: Any, ct: Any) -> Any:
    source, out, dims = e.inputs[0].type, e.output.type, e.params_dict["dims"]
    stretched = [d for k, d in enumerate(dims) if source.shape[k] != out.shape[d]]
    summed = tuple(d for d in range(out.ndim) if d not in dims or d in stretched)
    r = b.reduce_sum(ct, dims=summed) if summed else ct
    return (r if r.type == source else b.reshape(r, type=source),)


def _broadcast_rule(inputs: Types, output: TensorType, params: Params) -> Rule:
    n = names(output.ndim)
    left = [
        n[d] if inputs[0].shape[k] == output.shape[d] else "1" for k, d in enumerate(params["dims"])
    ]
    return bind(f"{side(left)} -> {side(n)}", inputs, output, ALL, ALL)


# -------------------------------------------------------------------------------------- reshape
def _infer_reshape(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    out = wanted("reshape", want)
    if out.size != inputs[0].size:
        raise GraphError(f"{inputs[0]} has {inputs[0].size} elements, {out} has {out.size}")
    return out.with_dtype(inputs[0].dtype)


def _reshape_rule(inputs: Types, output: TensorType, params: Params) -> Rule:
    text, sizes = reshape_rule(inputs[0].shape, output.shape)
    return bind(text, inputs, output, ALL, ALL, sizes)


# ------------------------------------------------------------------------------------ transpose
def _infer_transpose(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    perm = params["perm"]
    if sorted(perm) != list(range(inputs[0].ndim)):
        raise GraphError(f"perm {perm} is not an order of the dims of {inputs[0]}")
    return inputs[0].with_shape(tuple(inputs[0].shape[d] for d in perm))


def _transpose_vjp(b: Any, e: Any, ct: Any) -> Any:
    return (b.transpose(ct, perm=tuple(int(d) for d in np.argsort(e.params_dict["perm"]))),)


def _transpose_rule(inputs: Types, output: TensorType, params: Params) -> Rule:
    n, perm = names(output.ndim), params["perm"]
    left = side(n[perm.index(d)] for d in range(len(n)))
    return bind(f"{left} -> {side(n)}", inputs, output, ALL, ALL)


# -------------------------------------------------------------------------------- slice and pad
def _window(call: Call, shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(s, s + n) for s, n in zip(call.params["starts"], shape, strict=True))


def _infer_slice(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    out, source, starts = wanted("slice", want), inputs[0], params["starts"]
    if not len(starts) == out.ndim == source.ndim:
        raise GraphError(f"slice of {source} at {starts} to {out} needs one start a dim")
    for d, s in enumerate(starts):
        if not 0 <= s <= s + out.shape[d] <= source.shape[d]:
            raise GraphError(f"slice of {source} at {starts} to {out} leaves dim {d}")
    return out.with_dtype(source.dtype)


def _infer_pad(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    out, source, starts = wanted("pad", want), inputs[0], params["starts"]
    if not len(starts) == out.ndim == source.ndim:
        raise GraphError(f"pad of {source} at {starts} to {out} needs one start a dim")
    for d, s in enumerate(starts):
        if not 0 <= s <= s + source.shape[d] <= out.shape[d]:
            raise GraphError(f"pad of {source} at {starts} to {out} leaves dim {d}")
    return out.with_dtype(source.dtype)


def _pad(c: Call, x: Any) -> Any:
    out = np.zeros_like(x, shape=c.type.shape)
    out[_window(c, x.shape)] = x
    return out


def _window_rule(inputs: Types, output: TensorType, params: Params) -> Rule:
    n = names(output.ndim)
    cut = [s != t for s, t in zip(inputs[0].shape, output.shape, strict=True)]
    left = side(f"{x}^" if c else x for x, c in zip(n, cut, strict=True))
    right = side(f"y{x}^" if c else x for x, c in zip(n, cut, strict=True))
    return bind(f"{left} -> {right}", inputs, output, ALL, ALL)


# ---------------------------------------------------------------------------------- concatenate
def _infer_concatenate(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    dim, first = params["dim"], inputs[0]
    for t in inputs:
        same = all(
            d == dim or s == f for d, (s, f) in enumerate(zip(t.shape, first.shape, strict=True))
        )
        if t.ndim != first.ndim or t.dtype != first.dtype or not same:
            raise GraphError(f"concatenate along {dim} of {first} and {t} does not fit")
    shape = list(first.shape)
    shape[dim] = sum(t.shape[dim] for t in inputs)
    return first.with_shape(tuple(shape))


def _concatenate_vjp(b: Any, e: Any, ct: Any) -> Any:
    dim, start, parts = e.params_dict["dim"], 0, []
    for v in e.inputs:
        starts = tuple(start if d == dim else 0 for d in range(v.type.ndim))
        parts.append(b.slice(ct, type=v.type, starts=starts))
        start += v.type.shape[dim]
    return tuple(parts)


def _concatenate_rule(inputs: Types, output: TensorType, params: Params) -> Rule:
    n, dim = names(output.ndim), params["dim"]

    def text(factor: str) -> str:
        return side(factor if d == dim else x for d, x in enumerate(n))

    left = ", ".join(text(f"k{m}^") for m in range(len(inputs)))
    every = (tuple(range(len(inputs))),)
    return bind(f"{left} -> {text('k^')}", inputs, output, every, every)


_ROWS: dict[str, tuple[Any, ...]] = {  # name: infer, reference, vjp, rule, is a view
    "broadcast": (_infer_broadcast, _broadcast, _broadcast_vjp, _broadcast_rule, True),
    "concatenate": (
        _infer_concatenate,
        lambda c, *xs: np.concatenate(xs, c.params["dim"]),
        _concatenate_vjp,
        _concatenate_rule,
        False,
    ),
    "pad": (
        _infer_pad,
        _pad,
        lambda b, e, ct: (b.slice(ct, type=e.inputs[0].type, starts=e.params_dict["starts"]),),
        _window_rule,
        False,
    ),
    "reshape": (
        _infer_reshape,
        lambda c, x: x.reshape(c.type.shape),
        lambda b, e, ct: (b.reshape(ct, type=e.inputs[0].type),),
        _reshape_rule,
        True,
    ),
    "slice": (
        _infer_slice,
        lambda c, x: x[_window(c, c.type.shape)],
        lambda b, e, ct: (b.pad(ct, type=e.inputs[0].type, starts=e.params_dict["starts"]),),
        _window_rule,
        True,
    ),
    "transpose": (
        _infer_transpose,
        lambda c, x: x.transpose(c.params["perm"]),
        _transpose_vjp,
        _transpose_rule,
        True,
    ),
}

for _name, (_infer, _reference, _vjp, _rule, _view) in _ROWS.items():
    define(
        _name,
        infer=_infer,
        reference=_reference,
        vjp=_vjp,
        flops=no_flops,
        rule=_rule,
        cost="view" if _view else "copy",
        view=_view,
    )
