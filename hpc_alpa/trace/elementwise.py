"""NumPy's elementwise functions as canonical operators. One row each, alphabetical.

A row gets its operands as traced arrays of the dtypes of NumPy's own loop and of one shape, or 0-d.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import special

from hpc_alpa.errors import TracingError
from hpc_alpa.trace.array import TracedArray
from hpc_alpa.trace.dtypes import (
    descriptor,
    is_python_number,
    is_weak,
    loop_dtypes,
    require_no_promotion,
)
from hpc_alpa.trace.recording import Recording, dtype_name
from hpc_alpa.trace.shapes import spread

Row = Callable[..., TracedArray]


def _emit(name: str, **params: Any) -> Row:
    return lambda *xs: xs[0].recording.emit(name, *xs, **params)


def compare(x: TracedArray, y: Any, direction: str) -> TracedArray:
    return x.recording.emit("compare", x, y, direction=direction)


def select(mask: TracedArray, x: Any, y: Any) -> TracedArray:
    """`x` where the mask holds, else `y`; one of them may be a number."""
    return mask.recording.emit("select", mask, x, y)


def _compare(direction: str) -> Row:
    return lambda x, y: compare(x, y, direction)


def _same(x: TracedArray) -> TracedArray:
    return x


def _constant(x: TracedArray, number: Any) -> TracedArray:
    return x.recording.constant(number, x.type.dtype)


def _full_like(x: TracedArray, number: Any) -> TracedArray:
    return x.recording.full(x.shape, number, x.type.dtype)


def is_bool(x: TracedArray) -> bool:
    return x.type.dtype == "bool"


def _only_bool(name: str, row: Row) -> Row:
    def lowered(*xs: TracedArray) -> TracedArray:
        if not is_bool(xs[0]):
            raise TracingError(f"np.{name} of traced integers has no operator; masks have")
        return row(*xs)

    return lowered


def _truths(row: Row) -> Row:
    """A row on bools, for operands of any dtype."""
    return lambda *xs: row(*(x.recording.lift(x, "bool") for x in xs))


def _not(x: TracedArray) -> TracedArray:
    return compare(x, False, "eq")


def _arithmetic(op: str, of_bools: str) -> Row:
    return lambda x, y: x.recording.emit(of_bools if is_bool(x) else op, x, y)


def _absolute(x: TracedArray) -> TracedArray:
    if x.dtype.kind in "bu":
        return x
    return _emit("max")(x, _emit("neg")(x))


def _exp2(x: TracedArray) -> TracedArray:
    return _emit("pow")(_constant(x, 2), x)


def _expit(x: TracedArray) -> TracedArray:
    # By tanh: 1 / (1 + exp(-x)) has the gradient 0 * inf where exp overflows.
    b = x.recording.emit
    return b("mul", b("add", b("tanh", b("mul", x, 0.5)), 1.0), 0.5)


def _expm1(x: TracedArray) -> TracedArray:
    # tanh(x/2) (exp(x) + 1) = exp(x) - 1 without the cancellation at small x.
    b = x.recording.emit
    return b("mul", b("tanh", b("mul", x, 0.5)), b("add", b("exp", x), 1.0))


def _log1p(x: TracedArray) -> TracedArray:
    # Kahan: log(u) * c with u = 1 + x rounded and c = x / (u - 1). c enters as a constant and x / c
    # is u - 1, so that the gradient is that of log(1 + x); where c has no meaning it is 1.
    b = x.recording.emit
    u, one = b("add", x, 1.0), _constant(x, 1.0)
    tiny = compare(u, 1.0, "eq")
    c = b("div", x, select(tiny, one, b("sub", u, 1.0)))
    c = select(tiny, one, c)
    c = b("stop_gradient", select(compare(c, math.inf, "lt"), c, one))
    accurate = b("mul", c, b("log", b("add", b("div", x, c), 1.0)))
    return select(tiny, x, accurate)


def _scaled_log(base: float) -> Row:
    return lambda x: x.recording.emit("div", x.recording.emit("log", x), math.log(base))


def _isfinite(x: TracedArray) -> TracedArray:
    if not x.type.is_floating:
        return compare(x, x, "eq")
    return compare(_absolute(x), math.inf, "lt")


def _isinf(x: TracedArray) -> TracedArray:
    if not x.type.is_floating:
        return compare(x, x, "ne")
    return compare(_absolute(x), math.inf, "eq")


def _power(x: TracedArray, y: TracedArray) -> TracedArray:
    number, b = x.recording.known(y), x.recording.emit
    if x.dtype.kind in "iu" and number is not None and number < 0:
        raise TracingError("np.power: integers to negative powers; write a float exponent")
    if number is None or x.shape != np.broadcast_shapes(x.shape, y.shape):
        return b("pow", x, y)
    floating: dict[float, Row] = {  # exponents that need no pow
        -1: lambda x: b("div", 1.0, x),
        -0.5: _emit("rsqrt"),
        0.5: _emit("sqrt"),
    }
    exact: dict[float, Row] = {
        0: lambda x: _full_like(x, 1),
        1: _same,
        2: lambda x: b("mul", x, x),
        3: lambda x: b("mul", b("mul", x, x), x),
    }
    table = {**exact, **floating} if x.type.is_floating else exact
    return table[number](x) if number in table else b("pow", x, y)


def _reciprocal(x: TracedArray) -> TracedArray:
    if not x.type.is_floating:
        raise TracingError("np.reciprocal of integers is 0 or 1; write 1 / x")
    return x.recording.emit("div", 1.0, x)


def _sign(x: TracedArray) -> TracedArray:
    if is_bool(x):
        raise TracingError("np.sign of bool is not defined")
    # The rest is 0 or NaN, and has no gradient.
    rest = x.recording.emit("stop_gradient", x)
    if x.dtype.kind != "u":
        rest = select(compare(x, 0, "lt"), _constant(x, -1), rest)
    return select(compare(x, 0, "gt"), _constant(x, 1), rest)


ROWS: dict[str, Row] = {  # alphabetical
    "absolute": _absolute,
    "add": _arithmetic("add", "max"),
    "bitwise_and": _only_bool("bitwise_and", _emit("min")),
    "bitwise_or": _only_bool("bitwise_or", _emit("max")),
    "bitwise_xor": _only_bool("bitwise_xor", _compare("ne")),
    "conjugate": _same,
    "divide": _emit("div"),
    "equal": _compare("eq"),
    "exp": _emit("exp"),
    "exp2": _exp2,
    "expm1": _expm1,
    "fabs": _absolute,
    "greater": _compare("gt"),
    "greater_equal": _compare("ge"),
    "invert": _only_bool("invert", _not),
    "isfinite": _isfinite,
    "isinf": _isinf,
    "isnan": lambda x: compare(x, x, "ne"),
    "less": _compare("lt"),
    "less_equal": _compare("le"),
    "log": _emit("log"),
    "log10": _scaled_log(10.0),
    "log1p": _log1p,
    "log2": _scaled_log(2.0),
    "logical_and": _truths(_emit("min")),
    "logical_not": _truths(_not),
    "logical_or": _truths(_emit("max")),
    "logical_xor": _truths(_compare("ne")),
    "maximum": _emit("max"),
    "minimum": _emit("min"),
    "multiply": _arithmetic("mul", "min"),
    "negative": _emit("neg"),
    "not_equal": _compare("ne"),
    "positive": _same,
    "power": _power,
    "reciprocal": _reciprocal,
    "sign": _sign,
    "sqrt": _emit("sqrt"),
    "square": lambda x: _arithmetic("mul", "min")(x, x),
    "subtract": _emit("sub"),
    "tanh": _emit("tanh"),
}

# alphabetical; scipy.special
SPECIAL: dict[str, Row] = {"erf": _emit("erf"), "expit": _expit}


TABLE: dict[np.ufunc, tuple[str, Row]] = {
    getattr(module, name): (name, row)
    for module, rows in ((np, ROWS), (special, SPECIAL))
    for name, row in rows.items()
}


def apply_ufunc(
    trace: Recording, ufunc: np.ufunc, operands: Sequence[Any], dtype: Any = None
) -> TracedArray:
    """One elementwise function on traced and plain operands, with NumPy's dtypes.

    Raises:
        TracingError: for a silent promotion to float64.
    """
    name, row = TABLE[ufunc]
    operands = [x if isinstance(x, TracedArray) else _plain(x) for x in operands]
    wanted = None if dtype is None else np.dtype(dtype)
    dtypes = loop_dtypes(ufunc, tuple(descriptor(x) for x in operands), wanted)
    if wanted is None:
        require_no_promotion(trace, name, operands, dtypes[-1])
        require_no_promotion(trace, name, operands, dtypes[0])
    xs = spread([trace.lift(x, d) for x, d in zip(operands, dtypes)])
    return trace.lift(row(*xs), dtype_name(dtypes[-1]))


def _plain(x: Any) -> Any:
    return x if is_python_number(x) else np.asarray(x)


def apply_operator(trace: Recording, ufunc: np.ufunc, operands: Sequence[Any]) -> TracedArray:
    """A Python operator: as the ufunc, but among Python numbers the result stays one."""
    weak = all(map(is_weak, operands))
    if weak and ufunc is np.power and is_python_number(operands[1]) and operands[1] < 0:
        operands = [trace.lift(operands[0], "float64"), float(operands[1])]
    made = apply_ufunc(trace, ufunc, operands)
    return TracedArray(trace, made.value, weak and not is_bool(made))
