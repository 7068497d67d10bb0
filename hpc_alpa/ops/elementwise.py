"""Elementwise operators: operands of the output's shape, or 0-d. One row each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import special

from hpc_alpa.errors import GraphError
from hpc_alpa.ir.op import Call, Params, Types, define
from hpc_alpa.ir.types import TensorType, numpy_dtype
from hpc_alpa.ops.rule import Rule, bind, names, side

ONE = ((0,), (1,))
BOTH = ((0, 1),)
FIRST = ((0,),)

# What NumPy would compute in another dtype than its operands' is cast first, in the open.
DOMAINS: dict[str, Callable[[TensorType], bool]] = {
    "any": lambda t: True,
    "floating": lambda t: t.is_floating,
    "numeric": lambda t: t.dtype != "bool",
}

COMPARISONS: dict[str, Callable[..., Any]] = {
    "eq": np.equal, "ge": np.greater_equal, "gt": np.greater,
    "le": np.less_equal, "lt": np.less, "ne": np.not_equal,
}  # fmt: skip


def common_shape(name: str, inputs: Types) -> tuple[int, ...]:
    """The one shape of all operands that are not 0-d."""
    shapes = {t.shape for t in inputs if t.shape}
    if len(shapes) > 1:
        raise GraphError(f"{name} takes operands of one shape (or 0-d), not {sorted(shapes)}")
    return shapes.pop() if shapes else ()


def infer_same(
    name: str, arity: int, domain: str = "any"
) -> Callable[[Types, Params, TensorType | None], TensorType]:
    """Operands of one dtype and one shape (or 0-d); the domain is a key of `DOMAINS`."""

    def infer(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
        if len(inputs) != arity:
            raise GraphError(f"{name} takes {arity} operands, not {len(inputs)}")
        dtypes = {t.dtype for t in inputs}
        if len(dtypes) != 1:
            raise GraphError(f"{name} takes operands of one dtype, not {sorted(dtypes)}")
        if not DOMAINS[domain](inputs[0]):
            raise GraphError(f"{name} takes {domain} values, not {inputs[0]}; cast them first")
        return TensorType(common_shape(name, inputs), inputs[0].dtype)

    return infer


def elementwise_text(inputs: Types, output: TensorType) -> str:
    """`a b, ., a b -> a b`."""
    dims = side(names(output.ndim))
    return ", ".join(dims if t.shape else "." for t in inputs) + f" -> {dims}"


def elementwise_rule(
    sums: tuple[tuple[int, ...], ...] = (), maxima: tuple[tuple[int, ...], ...] = ()
) -> Callable[[Types, TensorType, Params], Rule]:
    """The rule column: all dims alike; `sums` and `maxima` as `Rule` has them."""

    def rule(inputs: Types, output: TensorType, params: Params) -> Rule:
        return bind(elementwise_text(inputs, output), inputs, output, sums, maxima)

    return rule


def flops(per_element: float) -> Callable[[Types, TensorType, Params], float]:
    """The flops column, from the operations for one element of the output."""
    return lambda inputs, output, params: float(per_element * output.size)


def call(function: Callable[..., Any]) -> Callable[..., Any]:
    """A reference from a NumPy function of the arrays alone."""
    return lambda c, *arrays: function(*arrays)


def _erf(x: Any) -> Any:
    return np.asarray(special.erf(x), dtype=x.dtype)


def _rsqrt(x: Any) -> Any:
    return np.reciprocal(np.sqrt(x))


def _pow_vjp(b: Any, e: Any, ct: Any) -> Any:
    x, y = e.inputs
    return (
        b.mul(ct, b.mul(y, b.pow(x, b.sub(y, 1)))),
        b.mul(ct, b.mul(e.output, b.log(b.select(b.compare(x, 0, direction="gt"), x, 1)))),
    )


def _picked(b: Any, e: Any, ct: Any) -> Any:
    """Gradient of max and min: to the operand that was taken, to the first on a tie.

    With a number first, as in relu, the result says as much as the second operand, and is kept
    anyway by what reads it.
    """
    x, y = e.inputs
    other = y if x.type.shape else e.output
    first = b.compare(x, other, direction="ge" if e.op.name == "max" else "le")
    return b.select(first, ct, 0.0), b.select(first, 0.0, ct)


_TWO_OVER_SQRT_PI = 2.0 / math.sqrt(math.pi)

# name: (domain, function, vjp, flops per element, sums, maxima)
UNARY: dict[str, tuple[Any, ...]] = {  # alphabetical
    "erf": (
        "floating",
        _erf,
        lambda b, e, ct: (
            b.mul(ct, b.mul(b.exp(b.neg(b.mul(e.inputs[0], e.inputs[0]))), _TWO_OVER_SQRT_PI)),
        ),
        10, (), FIRST,
    ),
    "exp": ("floating", np.exp, lambda b, e, ct: (b.mul(ct, e.output),), 10, (), FIRST),
    # A losing candidate of a partial max may leave the domain of log, sqrt and rsqrt, and NaN wins.
    "log": ("floating", np.log, lambda b, e, ct: (b.div(ct, e.inputs[0]),), 10, (), ()),
    "neg": ("numeric", np.negative, lambda b, e, ct: (b.neg(ct),), 1, FIRST, ()),
    "rsqrt": (
        "floating",
        _rsqrt,
        lambda b, e, ct: (b.mul(ct, b.mul(b.mul(e.output, -0.5), b.mul(e.output, e.output))),),
        4, (), (),
    ),
    "sqrt": (
        "floating",
        np.sqrt,
        lambda b, e, ct: (b.div(b.mul(ct, 0.5), e.output),),
        4, (), (),
    ),
    "stop_gradient": ("any", np.copy, None, 0, FIRST, FIRST),
    "tanh": (
        "floating",
        np.tanh,
        lambda b, e, ct: (b.mul(ct, b.sub(1.0, b.mul(e.output, e.output))),),
        10, (), FIRST,
    ),
}  # fmt: skip

BINARY: dict[str, tuple[Any, ...]] = {  # alphabetical
    "add": ("numeric", np.add, lambda b, e, ct: (ct, ct), 1, BOTH, ONE),
    "div": (
        "floating",
        np.true_divide,
        lambda b, e, ct: (
            b.div(ct, e.inputs[1]),
            b.neg(b.div(b.mul(ct, e.output), e.inputs[1])),
        ),
        4, FIRST, (),
    ),
    "max": ("any", np.maximum, _picked, 1, (), BOTH),
    "min": ("any", np.minimum, _picked, 1, (), ()),
    "mul": (
        "any",
        np.multiply,
        lambda b, e, ct: (b.mul(ct, e.inputs[1]), b.mul(ct, e.inputs[0])),
        1, ONE, (),
    ),
    "pow": ("numeric", np.power, _pow_vjp, 20, (), ()),
    "sub": ("numeric", np.subtract, lambda b, e, ct: (ct, b.neg(ct)), 1, BOTH, FIRST),
}  # fmt: skip

for _name, (_domain, _function, _vjp, _flops, _sums, _maxima) in {**UNARY, **BINARY}.items():
    define(
        _name,
        infer=infer_same(_name, 1 if _name in UNARY else 2, _domain),
        reference=call(_function),
        vjp=_vjp,
        flops=flops(_flops),
        rule=elementwise_rule(_sums, _maxima),
        cost="transcendental" if _flops >= 10 else "elementwise",
    )


def _infer_compare(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    if params.get("direction") not in COMPARISONS:
        raise GraphError(
            f"compare has directions {', '.join(COMPARISONS)}, not {params.get('direction')!r}"
        )
    return infer_same("compare", 2)(inputs, params, want).with_dtype("bool")


def _infer_select(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    mask, a, b = inputs
    if mask.dtype != "bool":
        raise GraphError(f"select takes a bool mask, not {mask}")
    return infer_same("select", 2)((a, b), params, want).with_shape(common_shape("select", inputs))


def _infer_cast(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    return inputs[0].with_dtype(params["dtype"])


def _cast_rule(inputs: Types, output: TensorType, params: Params) -> Rule:
    # A narrowing cast of a partial sum rounds each term: the terms stay in the accumulation type,
    # but where `terms` says that they may be rounded.
    wide = np.can_cast(numpy_dtype(inputs[0].dtype), numpy_dtype(output.dtype), "safe")
    linear = wide or params.get("terms", False)
    return elementwise_rule(FIRST if linear else (), FIRST)(inputs, output, params)


def _cast_vjp(b: Any, e: Any, ct: Any) -> Any:
    source = e.inputs[0].type
    return (
        b.cast(ct, dtype=source.dtype)
        if source.is_floating and e.output.type.is_floating
        else None,
    )


define(
    "cast",
    infer=_infer_cast,
    reference=lambda c, x: x.astype(numpy_dtype(c.type.dtype)),
    vjp=_cast_vjp,
    flops=flops(1),
    rule=_cast_rule,
)
define(
    "compare",
    infer=_infer_compare,
    reference=lambda c, x, y: COMPARISONS[c.params["direction"]](x, y),
    vjp=None,
    flops=flops(1),
    rule=elementwise_rule(),
)
define(
    "select",
    infer=_infer_select,
    reference=lambda c, mask, x, y: np.where(mask, x, y),
    vjp=lambda b, e, ct: (None, b.select(e.inputs[0], ct, 0.0), b.select(e.inputs[0], 0.0, ct)),
    flops=flops(1),
    rule=elementwise_rule(((1, 2),), ((1, 2),)),
)


def run_flat(name: str) -> Callable[..., Any]:
    """A kernel over flat arrays of one shape, 0-d ones spread: `kernels.<name>(*arrays, out)`."""

    def kernel(backend: Any, c: Call, *arrays: Any) -> Any:
        out = backend.empty(c.type.shape, c.type.dtype)
        whole = (
            x if x.shape == out.shape else backend.xp.broadcast_to(x, out.shape) for x in arrays
        )
        flat = [backend.contiguous(x).reshape(-1) for x in whole]
        backend.kernels[name](*flat, out=out.reshape(-1))
        return out

    return kernel


_C = math.sqrt(2.0 / math.pi)


def _gelu(c: Call, x: Any) -> Any:
    dtype = x.dtype.type
    return dtype(0.5) * x * (dtype(1) + np.tanh(dtype(_C) * (x + dtype(0.044715) * x * x * x)))


def _gelu_grad(c: Call, x: Any, ct: Any) -> Any:
    k = x.dtype.type
    t = np.tanh(k(_C) * (x + k(0.044715) * x * x * x))
    slope = k(0.5) * (k(1) + t) + k(0.5) * x * (k(1) - t * t) * k(_C) * (k(1) + k(0.134145) * x * x)
    return ct * slope


def _gelu_grad_vjp(b: Any, e: Any, ct: Any) -> Any:
    """Linear in the cotangent; the second derivative is not offered."""
    x, _ = e.inputs
    return None, b.gelu_grad(x, ct)


define(
    "gelu",  # tanh approximation (Hendrycks and Gimpel 2016, Sec. 2)
    infer=infer_same("gelu", 1, "floating"),
    reference=_gelu,
    vjp=lambda b, e, ct: (b.gelu_grad(e.inputs[0], ct),),
    flops=flops(20),
    rule=elementwise_rule(),
    kernel=run_flat("gelu"),
    cost="gelu",
    wide=True,
)
define(
    "gelu_grad",
    infer=infer_same("gelu_grad", 2, "floating"),
    reference=_gelu_grad,
    vjp=_gelu_grad_vjp,
    flops=flops(25),
    rule=elementwise_rule(((1,),)),
    kernel=run_flat("gelu_grad"),
    cost="gelu_grad",
    wide=True,
)
