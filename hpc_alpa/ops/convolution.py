"""Convolution and its two gradients: x (batch, *spatial, channels), w (*window, channels, out).

One trilinear form, sum x[n, s p + t, c] w[t, c, d] y[n, p, d] over windows p and their elements t;
each operator is its derivative by one of the three, so each is the gradient of the others.

Groups: the channels of x are groups times those of w. Input channel and output channel then have
the group as their major factor, and a product is made within each group.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hpc_alpa.errors import GraphError
from hpc_alpa.ir.op import Call, Params, Types, define
from hpc_alpa.ir.types import TensorType
from hpc_alpa.ops.contraction import product
from hpc_alpa.ops.halo import HALOS
from hpc_alpa.ops.movement import wanted
from hpc_alpa.ops.rule import Rule, bind
from hpc_alpa.ops.windows import SpatialFactors, pad, padded_shape, taps, unpad, window_extents

EITHER = ((0,), (1,))


# ----------------------------------------------------------------------------------------- types
def _output(name: str, x: TensorType, w: TensorType, params: Params) -> TensorType:
    """The type of a convolution of x by w."""
    if x.ndim < 3 or w.ndim != x.ndim or x.dtype != w.dtype or not x.is_floating:
        raise GraphError(
            f"{name} takes x (batch, *spatial, channels) and w (*window, channels, out) of one "
            f"floating dtype, not {x} and {w}"
        )
    channels, per_group, out = x.shape[-1], w.shape[-2], w.shape[-1]
    groups = channels // per_group if per_group else 0
    if not groups or groups * per_group != channels or out % groups:
        raise GraphError(
            f"{name}: {x} has {channels} channels and {w} takes {per_group} for {out} outputs: "
            "both are to divide into the same number of groups"
        )
    spatial = window_extents(name, x.shape[1:-1], w.shape[:-2], params)
    return x.with_shape((x.shape[0], *spatial, out))


def _infer_conv(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    x, w = inputs
    return _output("conv", x, w, params)


def _infer_grad_input(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    (y, w), x = inputs, wanted("conv_grad_input", want).with_dtype(inputs[0].dtype)
    if _output("conv_grad_input", x, w, params) != y:
        raise GraphError(f"conv_grad_input of {y} by {w} cannot make {x}")
    return x


def _infer_grad_weight(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    (x, y), w = inputs, wanted("conv_grad_weight", want).with_dtype(inputs[0].dtype)
    if _output("conv_grad_weight", x, w, params) != y:
        raise GraphError(f"conv_grad_weight of {x} and {y} cannot make {w}")
    return w


# ----------------------------------------------------------------------------------- NumPy kernels
# By one matrix product a group: (windows, taps x channels) @ (taps x channels, out).
def _patches(
    c: Call, x: Any, window: tuple[int, ...], windows: tuple[int, ...], groups: int
) -> Any:
    """(groups, batch x windows, taps x channels): a copy, but for windows of one element."""
    padded, count = pad(x, c.params, 0), math.prod(window)
    per_group = x.shape[-1] // groups
    shape = (x.shape[0], *windows, count, x.shape[-1])
    if count == 1:
        (where,) = taps(window, windows, c.params)
        out = padded[where]
    else:
        out = np.empty_like(x, shape=shape)
        for t, where in enumerate(taps(window, windows, c.params)):
            out[..., t, :] = padded[where]
    rows = x.shape[0] * math.prod(windows)
    split = out.reshape(rows, count, groups, per_group).transpose(2, 0, 1, 3)
    return split.reshape(groups, rows, count * per_group)


def _by_group(y: Any, groups: int) -> Any:
    """(groups, batch x windows, out)."""
    return y.reshape(-1, groups, y.shape[-1] // groups).transpose(1, 0, 2)


def _weight_by_group(w: Any, groups: int) -> Any:
    """(groups, taps x channels, out)."""
    count, channels, out = math.prod(w.shape[:-2]), w.shape[-2], w.shape[-1] // groups
    split = w.reshape(count, channels, groups, out).transpose(2, 0, 1, 3)
    return split.reshape(groups, count * channels, out)


def _conv(c: Call, x: Any, w: Any) -> Any:
    groups = x.shape[-1] // w.shape[-2]
    patches = _patches(c, x, w.shape[:-2], c.type.shape[1:-1], groups)
    y = product(patches, _weight_by_group(w, groups))
    return y.transpose(1, 0, 2).reshape(c.type.shape).astype(x.dtype, copy=False)


def _grad_weight(c: Call, x: Any, y: Any) -> Any:
    channels, out = c.type.shape[-2:]
    groups = x.shape[-1] // channels
    patches = _patches(c, x, c.type.shape[:-2], y.shape[1:-1], groups)
    w = product(patches.transpose(0, 2, 1), _by_group(y, groups))
    split = w.reshape(groups, -1, channels, out // groups).transpose(1, 2, 0, 3)
    return split.reshape(c.type.shape).astype(x.dtype, copy=False)


def _grad_input(c: Call, y: Any, w: Any) -> Any:
    window, channels = w.shape[:-2], w.shape[-2]
    groups = c.type.shape[-1] // channels
    z = product(_by_group(y, groups), _weight_by_group(w, groups).transpose(0, 2, 1))
    z = z.reshape(groups, *y.shape[:-1], math.prod(window), channels)
    padded = np.zeros_like(y, shape=padded_shape(c.type.shape, c.params))
    by_group = padded.reshape(*padded.shape[:-1], groups, channels)
    for t, where in enumerate(taps(window, y.shape[1:-1], c.params)):
        by_group[where] += np.moveaxis(z[..., t, :], 0, -2)
    return unpad(padded, c.params)


# ----------------------------------------------------------------------------------------- rules
def _texts(
    name: str, x: TensorType, w: TensorType, y: TensorType, params: Params, marked: str
) -> Any:
    """The texts of x, w and y; `marked` has the factors that are summed."""

    def f(name: str) -> str:
        return name + ("+" if name in marked else "")

    window, windows = w.shape[:-2], y.shape[1:-1]
    mark = "+" if "p" in marked else ""
    needs = HALOS[name].needs
    spatial = SpatialFactors.of(x.shape[1:-1], window, windows, params, needs, mark)
    groups = x.shape[-1] // w.shape[-2]
    below, above = (f"(u {f('c')})", f"(u {f('d')})") if groups > 1 else (f("c"), f("d"))
    sizes = spatial.sizes
    if groups > 1:
        sizes += (("u", groups), ("c", w.shape[-2]), ("d", w.shape[-1] // groups))
    elements = " ".join(f"k{d}^" for d in range(len(window)))
    return (
        f"{f('n')} {' '.join(spatial.below)} {below}",
        f"{elements} {f('c')} {above}",
        f"{f('n')} {' '.join(spatial.above)} {above}",
        sizes,
    )


def _conv_rule(inputs: Types, output: TensorType, params: Params) -> Rule:
    x, w, y, sizes = _texts("conv", inputs[0], inputs[1], output, params, "c")
    return bind(f"{x}, {w} -> {y}", inputs, output, EITHER, sizes=sizes)


def _grad_input_rule(inputs: Types, output: TensorType, params: Params) -> Rule:
    x, w, y, sizes = _texts("conv_grad_input", output, inputs[1], inputs[0], params, "d")
    return bind(f"{y}, {w} -> {x}", inputs, output, EITHER, sizes=sizes)


def _grad_weight_rule(inputs: Types, output: TensorType, params: Params) -> Rule:
    x, w, y, sizes = _texts("conv_grad_weight", inputs[0], output, inputs[1], params, "np")
    return bind(f"{x}, {y} -> {w}", inputs, output, EITHER, sizes=sizes)


def product_dims(name: str, inputs: Types, output: TensorType) -> tuple[int, int, int, int]:
    """(batch, m, n, k) of the matrix product by which one of the three is computed."""
    x, w, y = {
        "conv": (inputs[0], inputs[1], output),
        "conv_grad_input": (output, inputs[1], inputs[0]),
        "conv_grad_weight": (inputs[0], output, inputs[1]),
    }[name]
    groups = x.shape[-1] // w.shape[-2]
    rows, out = math.prod(y.shape[:-1]), y.shape[-1] // groups
    window = math.prod(w.shape[:-1])
    return {
        "conv": (groups, rows, out, window),
        "conv_grad_input": (groups, rows, window, out),
        "conv_grad_weight": (groups, window, out, rows),
    }[name]


def _vjp(b: Any, e: Any, ct: Any) -> Any:
    x, w = e.inputs
    return (
        b.conv_grad_input(ct, w, type=x.type, **e.params_dict),
        b.conv_grad_weight(x, ct, type=w.type, **e.params_dict),
    )


def _grad_input_vjp(b: Any, e: Any, ct: Any) -> Any:
    y, w = e.inputs
    return (
        b.conv(ct, w, **e.params_dict),
        b.conv_grad_weight(ct, y, type=w.type, **e.params_dict),
    )


def _grad_weight_vjp(b: Any, e: Any, ct: Any) -> Any:
    x, y = e.inputs
    return b.conv_grad_input(y, ct, type=x.type, **e.params_dict), b.conv(x, ct, **e.params_dict)


_ROWS: dict[str, tuple[Any, ...]] = {  # name: infer, reference, vjp, rule
    "conv": (_infer_conv, _conv, _vjp, _conv_rule),
    "conv_grad_input": (_infer_grad_input, _grad_input, _grad_input_vjp, _grad_input_rule),
    "conv_grad_weight": (_infer_grad_weight, _grad_weight, _grad_weight_vjp, _grad_weight_rule),
}


def _flops(name: str) -> Any:
    return lambda inputs, output, params: 2.0 * math.prod(product_dims(name, inputs, output))


for _name, (_infer, _reference, _gradient, _rule) in _ROWS.items():
    define(
        _name,
        infer=_infer,
        reference=_reference,
        vjp=_gradient,
        flops=_flops(_name),
        rule=_rule,
        cost="dot_general",
    )
