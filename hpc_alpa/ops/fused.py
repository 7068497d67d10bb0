"""Fused operators: one node for the planner and one kernel, standing for a small graph.

`expand` writes that graph. It is the oracle of the kernel, and what runs, in phases with all_reduce
of the statistics, when a factor marked `!` is split. Of 16-bit operands the graph is float32
within, and so are the losses of a cross entropy: a sum of thousands has no digits to spare.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hpc_alpa.errors import GraphError
from hpc_alpa.ir.op import NARROW, Call, Params, Types, define
from hpc_alpa.ir.types import TensorType
from hpc_alpa.ops.reduction import spread
from hpc_alpa.ops.rule import Rule, bind, names

Infer = Callable[[Types, Params, TensorType | None], TensorType]

# A masked score; finite, so that a wholly masked row of a tile gives no NaN.
MASKED = -1e30


def _last(v: Any) -> tuple[int]:
    return (v.type.ndim - 1,)


def _rows(x: Any) -> tuple[int, int]:
    return int(np.prod(x.shape[:-1], dtype=np.int64)), x.shape[-1]


def _given(inputs: Types) -> str:
    return f"({', '.join(map(str, inputs))})"


# -------------------------------------------------------------------------------------- softmax
def _infer_softmax(name: str, arity: int) -> Infer:
    def infer(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
        x = inputs[0]
        if inputs != (x,) * arity or x.ndim < 1 or not x.is_floating:
            raise GraphError(
                f"{name} takes {arity} floating value(s) of one type, not {_given(inputs)}"
            )
        if params["causal"] and x.ndim < 2:
            raise GraphError(f"causal {name} needs a query and a key dim, not {x}")
        return x

    return infer


def _softmax_rule(inputs: Types, output: TensorType, params: Params) -> Rule:
    n = names(output.ndim - 1)
    if params["causal"]:
        n[-1] += "@"
    last = "k!@" if params["causal"] else "k!"
    dims = " ".join([*n, last])
    return bind(", ".join(dims for _ in inputs) + f" -> {dims}", inputs, output)


def _causal_mask(c: Call) -> Any:
    q, k = c.type.shape[-2:]
    rows, columns = np.arange(q) + c.starts[-2], np.arange(k) + c.starts[-1]
    return rows[:, None] >= columns[None, :]


def _softmax(c: Call, x: Any) -> Any:
    z = x * x.dtype.type(c.params["scale"])
    if c.params["causal"]:
        z = np.where(_causal_mask(c), z, z.dtype.type(-np.inf))
    z = np.exp(z - z.max(axis=-1, keepdims=True))
    return z / z.sum(axis=-1, keepdims=True)


def _expand_softmax(b: Any, inputs: tuple[Any, ...], e: Any) -> Any:
    (x,), params = inputs, e.params_dict
    x = b.mul(x, params["scale"])
    if params["causal"]:
        square = TensorType(x.type.shape[-2:], "int64")
        mask = b.compare(b.iota(type=square, dim=0), b.iota(type=square, dim=1), direction="ge")
        last = (x.type.ndim - 2, x.type.ndim - 1)
        mask = b.broadcast(mask, type=x.type.with_dtype("bool"), dims=last)
        x = b.select(mask, x, MASKED)
    shifted = b.sub(x, spread(b, b.reduce_max(x, dims=_last(x)), x, _last(x)))
    z = b.exp(shifted)
    return b.div(z, spread(b, b.reduce_sum(z, dims=_last(z)), z, _last(z)))


def _softmax_grad(c: Call, y: Any, ct: Any) -> Any:
    return y * (ct - (y * ct).sum(axis=-1, keepdims=True)) * y.dtype.type(c.params["scale"])


def _expand_softmax_grad(b: Any, inputs: tuple[Any, ...], e: Any) -> Any:
    y, ct = inputs
    total = spread(b, b.reduce_sum(b.mul(y, ct), dims=_last(y)), y, _last(y))
    return b.mul(b.mul(y, b.sub(ct, total)), e.params_dict["scale"])


def _softmax_kernel(backend: Any, c: Call, x: Any) -> Any:
    out = backend.empty(c.type.shape, c.type.dtype)
    q = c.type.shape[-2] if c.type.ndim > 1 else 1
    shape = (-1, q, c.type.shape[-1])
    row = c.starts[-2] if c.type.ndim > 1 else 0
    backend.kernels["softmax"](
        backend.contiguous(x).reshape(shape),
        c.params["scale"], c.params["causal"], row, c.starts[-1], out=out.reshape(shape),
    )  # fmt: skip
    return out


def _softmax_grad_kernel(backend: Any, c: Call, y: Any, ct: Any) -> Any:
    out = backend.empty(c.type.shape, c.type.dtype)
    shape = (-1, c.type.shape[-2] if c.type.ndim > 1 else 1, c.type.shape[-1])
    y, ct = (backend.contiguous(a).reshape(shape) for a in (y, ct))
    backend.kernels["softmax_grad"](y, ct, c.params["scale"], out=out.reshape(shape))
    return out


def _softmax_grad_vjp(b: Any, e: Any, ct: Any) -> Any:
    """Linear in the cotangent, and symmetric; the second derivative is not offered."""
    return None, b.softmax_grad(e.inputs[0], ct, **e.params_dict)


# ----------------------------------------------------------------------------------- layer norm
def _infer_norm(name: str, wanted: str, rows: tuple[bool, ...]) -> Infer:
    """`rows` says which operands are of the type of x; the others are vectors of its last dim."""

    def infer(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
        x = inputs[0]
        vector = x.with_shape(x.shape[-1:])
        params["eps"]  # where it is missing, that is told here and not by a kernel
        if x.ndim < 1 or not x.is_floating or inputs != tuple(x if r else vector for r in rows):
            raise GraphError(f"{name} takes {wanted}, not {_given(inputs)}")
        return vector if name == "layer_norm_grad_scale" else x

    return infer


def _normal(x: Any, eps: float) -> tuple[Any, Any]:
    """x normalised, and the reciprocal deviation."""
    mean = x.mean(axis=-1, keepdims=True)
    d = x - mean
    r = 1 / np.sqrt((d * d).mean(axis=-1, keepdims=True) + x.dtype.type(eps))
    return d * r, r


def _layer_norm_grad(c: Call, x: Any, scale: Any, ct: Any) -> Any:
    n, r = _normal(x, c.params["eps"])
    g = ct * scale
    return r * (g - g.mean(axis=-1, keepdims=True) - n * (g * n).mean(axis=-1, keepdims=True))


def _layer_norm_grad_scale(c: Call, x: Any, ct: Any) -> Any:
    n, _ = _normal(x, c.params["eps"])
    return (ct * n).sum(axis=tuple(range(x.ndim - 1)))


def _mean(b: Any, x: Any) -> Any:
    # Multiplied before it is summed: the mean of a split dim is then a plain partial sum.
    return spread(b, b.mul(b.reduce_sum(x, dims=_last(x)), 1.0 / x.type.shape[-1]), x, _last(x))


def _expand_normal(b: Any, x: Any, eps: float) -> tuple[Any, Any]:
    d = b.sub(x, _mean(b, x))
    variance = b.mul(b.reduce_sum(b.mul(d, d), dims=_last(d)), 1.0 / x.type.shape[-1])
    r = spread(b, b.rsqrt(b.add(variance, eps)), x, _last(x))
    return b.mul(d, r), r


def _row(b: Any, v: Any, like: Any) -> Any:
    return b.broadcast(v, type=like.type, dims=_last(like))


def _expand_layer_norm(b: Any, inputs: tuple[Any, ...], e: Any) -> Any:
    x, scale, bias = inputs
    n, _ = _expand_normal(b, x, e.params_dict["eps"])
    return b.add(b.mul(n, _row(b, scale, x)), _row(b, bias, x))


def _expand_layer_norm_grad(b: Any, inputs: tuple[Any, ...], e: Any) -> Any:
    x, scale, ct = inputs
    n, r = _expand_normal(b, x, e.params_dict["eps"])
    g = b.mul(ct, _row(b, scale, x))
    return b.mul(r, b.sub(b.sub(g, _mean(b, g)), b.mul(n, _mean(b, b.mul(g, n)))))


def _expand_layer_norm_grad_scale(b: Any, inputs: tuple[Any, ...], e: Any) -> Any:
    x, ct = inputs
    n, _ = _expand_normal(b, x, e.params_dict["eps"])
    return b.reduce_sum(b.mul(ct, n), dims=tuple(range(x.type.ndim - 1)))


def _norm_kernel(name: str, rows: tuple[bool, ...]) -> Callable[..., Any]:
    """`rows` says which operands are (rows, width); the others are vectors."""

    def kernel(backend: Any, c: Call, *arrays: Any) -> Any:
        out = backend.empty(c.type.shape, c.type.dtype)
        width = c.type.shape[-1]
        flat = [
            backend.contiguous(a).reshape(-1, width) if r else backend.contiguous(a)
            for a, r in zip(arrays, rows, strict=True)
        ]
        target = out if name == "layer_norm_grad_scale" else out.reshape(-1, width)
        backend.kernels[name](*flat, c.params["eps"], out=target)
        return out

    return kernel


def _norm_rule(text: str) -> Callable[[Types, TensorType, Params], Rule]:
    """`{b}` stands for the leading dims, `{s}` for the same, summed."""

    def rule(inputs: Types, output: TensorType, params: Params) -> Rule:
        n = names(inputs[0].ndim - 1)
        filled = text.format(b=" ".join(n), s=" ".join(x + "+" for x in n))
        return bind(filled, inputs, output)

    return rule


def _layer_norm_vjp(b: Any, e: Any, ct: Any) -> Any:
    x, scale, _ = e.inputs
    eps = e.params_dict["eps"]
    return (
        b.layer_norm_grad(x, scale, ct, eps=eps),
        b.layer_norm_grad_scale(x, ct, eps=eps),
        b.reduce_sum(ct, dims=tuple(range(ct.type.ndim - 1))),
    )


# -------------------------------------------------------------------------------- cross entropy
def _infer_cross_entropy(name: str, arity: int) -> Infer:
    def infer(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
        logits, labels = inputs[:2]
        row = TensorType(labels.shape, NARROW.get(logits.dtype, logits.dtype))
        if logits.ndim != 2 or labels.shape != logits.shape[:1] or not logits.is_floating:
            raise GraphError(
                f"{name} takes logits (rows, classes) and one label a row, not {_given(inputs)}"
            )
        if not labels.dtype.startswith(("int", "uint")):
            raise GraphError(f"{name} takes integer labels, not {labels}")
        if inputs[2:] != (row,) * (arity - 2):
            raise GraphError(
                f"{name} takes {arity} operands, the third like {row}, not {_given(inputs)}"
            )
        return logits if arity == 3 else row

    return infer


def _cross_entropy(c: Call, logits: Any, labels: Any) -> Any:
    top = logits.max(axis=-1)
    total = np.log(np.exp(logits - top[:, None]).sum(axis=-1)) + top
    return total - logits[np.arange(len(labels)), labels]


def _cross_entropy_grad(c: Call, logits: Any, labels: Any, ct: Any) -> Any:
    z = np.exp(logits - logits.max(axis=-1, keepdims=True))
    z /= z.sum(axis=-1, keepdims=True)
    z[np.arange(len(labels)), labels] -= 1
    return z * ct[:, None]


def _expand_cross_entropy(b: Any, inputs: tuple[Any, ...], e: Any) -> Any:
    logits, labels = inputs
    top = b.reduce_max(logits, dims=(1,))
    z = b.exp(b.sub(logits, spread(b, top, logits, (1,))))
    total = b.add(b.log(b.reduce_sum(z, dims=(1,))), top)
    # The label's logit may stay a partial sum: split classes never gather the logits.
    return b.sub(total, b.pick(logits, labels))


def _expand_cross_entropy_grad(b: Any, inputs: tuple[Any, ...], e: Any) -> Any:
    logits, labels, ct = inputs
    top = b.reduce_max(logits, dims=(1,))
    z = b.exp(b.sub(logits, spread(b, top, logits, (1,))))
    scale = b.div(ct, b.reduce_sum(z, dims=(1,)))
    return b.sub(b.mul(z, spread(b, scale, z, (1,))), b.unpick(ct, labels, type=logits.type))


def _cross_entropy_kernel(name: str) -> Callable[..., Any]:
    def kernel(backend: Any, c: Call, *arrays: Any) -> Any:
        out = backend.empty(c.type.shape, c.type.dtype)
        backend.kernels[name](*map(backend.contiguous, arrays), out=out)
        return out

    return kernel


_ROWS: dict[str, tuple[Any, ...]] = {
    # name: infer, reference, vjp, flops per element of the first operand, rule, kernel, expand
    "cross_entropy": (
        _infer_cross_entropy("cross_entropy", 2), _cross_entropy,
        lambda b, e, ct: (b.cross_entropy_grad(*e.inputs, ct), None),
        13,
        # Split classes leave the loss a partial sum: its label's logit is on one device.
        lambda i, o, p: bind("b v!+, b -> b", i, o),
        _cross_entropy_kernel("cross_entropy"), _expand_cross_entropy,
    ),
    "cross_entropy_grad": (
        _infer_cross_entropy("cross_entropy_grad", 3), _cross_entropy_grad, None,
        15, lambda i, o, p: bind("b v!, b, b -> b v!", i, o),
        _cross_entropy_kernel("cross_entropy_grad"), _expand_cross_entropy_grad,
    ),
    "layer_norm": (
        _infer_norm("layer_norm", "x and two vectors of its last dim", (True, False, False)),
        lambda c, x, scale, bias: _normal(x, c.params["eps"])[0] * scale + bias,
        _layer_norm_vjp,
        8, _norm_rule("{b} k!, k!, k! -> {b} k!"),
        _norm_kernel("layer_norm", (True, False, False)), _expand_layer_norm,
    ),
    "layer_norm_grad": (
        _infer_norm("layer_norm_grad", "x, scale and a cotangent like x", (True, False, True)),
        _layer_norm_grad, None,
        16, _norm_rule("{b} k!, k!, {b} k! -> {b} k!"),
        _norm_kernel("layer_norm_grad", (True, False, True)), _expand_layer_norm_grad,
    ),
    "layer_norm_grad_scale": (
        _infer_norm("layer_norm_grad_scale", "two values of one type", (True, True)),
        _layer_norm_grad_scale, None,
        10, _norm_rule("{s} k!, {s} k! -> k!"),
        _norm_kernel("layer_norm_grad_scale", (True, True)), _expand_layer_norm_grad_scale,
    ),
    "softmax": (
        _infer_softmax("softmax", 1), _softmax,
        lambda b, e, ct: (b.softmax_grad(e.output, ct, **e.params_dict),),
        13, _softmax_rule, _softmax_kernel, _expand_softmax,
    ),
    "softmax_grad": (
        _infer_softmax("softmax_grad", 2), _softmax_grad, _softmax_grad_vjp,
        5, _softmax_rule, _softmax_grad_kernel, _expand_softmax_grad,
    ),
}  # fmt: skip


def _in_float32(expand: Callable[..., Any]) -> Callable[..., Any]:
    """The graph between casts, where an operand is 16-bit."""

    def widened(b: Any, inputs: tuple[Any, ...], e: Any) -> Any:
        wide = tuple(
            b.cast(x, dtype=NARROW[x.type.dtype]) if x.type.dtype in NARROW else x for x in inputs
        )
        made, dtype = expand(b, wide, e), e.output.type.dtype
        # Each device rounds the term that it has of a sum, as the kernel does.
        return made if made.type.dtype == dtype else b.cast(made, dtype=dtype, terms=True)

    return widened


def _flops(per_element: float) -> Callable[[Types, TensorType, Params], float]:
    return lambda inputs, output, params: float(per_element * inputs[0].size)


for _name, (_infer, _reference, _vjp, _per, _rule, _kernel, _expand) in _ROWS.items():
    define(
        _name,
        infer=_infer,
        reference=_reference,
        vjp=_vjp,
        flops=_flops(_per),
        rule=_rule,
        kernel=_kernel,
        cost=_name,
        expand=_in_float32(_expand),
        wide=True,
    )
