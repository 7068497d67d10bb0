"""From NumPy's two protocols to the tables: find the row, bind its arguments, name the errors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from hpc_alpa.errors import GraphError, TracingError
from hpc_alpa.trace import (
    contractions,
    creation,
    elementwise,
    indexing,
    joining,
    movement,
    reductions,
)
from hpc_alpa.trace.array import IN_PLACE, TracedArray
from hpc_alpa.trace.hints import hint
from hpc_alpa.trace.position import position
from hpc_alpa.trace.recording import Handlers, Recording
from hpc_alpa.trace.shapes import reshape_to

Row = Callable[..., Any]


def _resolved(rows: Mapping[str, Row]) -> dict[Any, tuple[str, Row]]:
    """The rows by NumPy's function objects; those that this version of NumPy has."""
    found = {}
    for name, row in rows.items():
        function: Any = np
        for part in name.split("."):
            function = getattr(function, part, None)
        if function is not None:
            found[function] = (name, row)
    return found


FUNCTIONS: dict[Any, tuple[str, Row]] = _resolved(
    {
        **contractions.ROWS,
        **creation.ROWS,
        **indexing.ROWS,
        **joining.ROWS,
        **movement.ROWS,
        **reductions.ROWS,
    }
)

# Reductions as ufunc methods: np.add.reduce and its kind. Alphabetical.
REDUCTIONS: dict[np.ufunc, Row] = {
    np.add: reductions.ROWS["sum"],
    np.logical_and: reductions.ROWS["all"],
    np.logical_or: reductions.ROWS["any"],
    np.maximum: reductions.ROWS["max"],
    np.minimum: reductions.ROWS["min"],
}

_MISTAKES = (GraphError, IndexError, OverflowError, TypeError, ValueError)


def _shown(name: str) -> str:
    where = position()
    return f"np.{name}{' at ' + where if where else ''}"


def _unsupported(name: str) -> TracingError:
    return TracingError(f"{_shown(name)} is called with a traced array: {hint(name)}")


@cache
def _signature(function: Any) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


def _accepted(name: str, row: Row, function: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The options that the row takes; any other must have NumPy's default."""
    signature, theirs = _signature(row), _signature(function)
    assert signature is not None
    kinds = {p.kind for p in signature.parameters.values()}
    kept = {}
    for key, value in kwargs.items():
        if value is np._NoValue:
            continue
        if key == "out" and value is not None:
            raise TracingError(f"{_shown(name)} writes to out=: {IN_PLACE}")
        if key in signature.parameters or inspect.Parameter.VAR_KEYWORD in kinds:
            kept[key] = value
        elif value is not None and not _is_default(theirs, key, value):
            raise TracingError(
                f"{_shown(name)} with {key}={value!r}: traced arrays do not have this option; "
                f"leave {key} out"
            )
    return kept


def _is_default(signature: inspect.Signature | None, key: str, value: Any) -> bool:
    if signature is None or key not in signature.parameters:
        return False
    default = signature.parameters[key].default
    return default is value or (isinstance(value, (str, bool)) and default == value)


def _named(name: str, run: Callable[[], Any]) -> Any:
    """Run a row; NumPy's own complaints (shapes, axes, dtypes) get the user's line."""
    try:
        return run()
    except TracingError as error:
        if position() in str(error):
            raise
        raise TracingError(f"{_shown(name)}: {error}") from error
    except _MISTAKES as error:
        raise TracingError(f"{_shown(name)}: {error}") from error


# -------------------------------------------------------------------------------------- functions
def call_function(
    trace: Recording, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """`__array_function__`."""
    module = (getattr(function, "__module__", "") or "numpy").removeprefix("numpy").lstrip(".")
    if function not in FUNCTIONS:
        public = f"{module}." if module and not module.startswith(("_", "lib")) else ""
        raise _unsupported(public + getattr(function, "__name__", str(function)))
    name, row = FUNCTIONS[function]

    def run() -> Any:
        options = _accepted(name, row, function, kwargs)
        bound = _bound(trace, row, args, options)
        return row(*bound.args, **bound.kwargs)

    return _named(name, run)


def _bound(
    trace: Recording, row: Row, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> inspect.BoundArguments:
    """Arguments by the row's parameters; a plain array for a traced parameter is lifted."""
    signature = _signature(row)
    assert signature is not None
    bound = signature.bind(*args, **kwargs)
    for key, value in bound.arguments.items():
        annotation = signature.parameters[key].annotation
        if annotation in ("TracedArray", TracedArray) and not isinstance(value, TracedArray):
            bound.arguments[key] = trace.lift(value)
        if key == "out" and value is not None:
            raise TracingError(f"out= is written in place: {IN_PLACE}")
        if value is np._NoValue:
            bound.arguments[key] = signature.parameters[key].default
    return bound


# ----------------------------------------------------------------------------------------- ufuncs
def call_ufunc(
    trace: Recording, ufunc: np.ufunc, method: str, inputs: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """`__array_ufunc__`."""
    name = ufunc.__name__ if method == "__call__" else f"{ufunc.__name__}.{method}"
    run: Row = METHODS.get(method, _no_method)
    return _named(name, lambda: run(trace, ufunc, inputs, kwargs))


def _options(name: str, kwargs: dict[str, Any], allowed: Sequence[str]) -> dict[str, Any]:
    """Options of a ufunc; those that change nothing are left out."""
    harmless = {
        "casting": "same_kind",
        "order": "K",
        "subok": True,
        "where": True,
        "keepdims": False,
    }
    if any(x is not None for x in kwargs.get("out") or ()):
        raise TracingError(
            f"{_shown(name)} writes to out= (or `a += x` to a plain array a): {IN_PLACE}, and a "
            "plain array cannot hold traced values: write a = a + x"
        )
    kept = {}
    for key, value in kwargs.items():
        if key in allowed:
            kept[key] = value
        elif key != "out" and value is not None and value is not np._NoValue:
            if isinstance(value, (TracedArray, np.ndarray)) or value != harmless.get(key):
                raise TracingError(
                    f"{_shown(name)} with {key}=: traced arrays do not have this option; "
                    "np.where selects"
                )
    return kept


def _no_method(trace: Recording, ufunc: np.ufunc, inputs: Any, kwargs: Any) -> Any:
    raise TracingError(f"np.{ufunc.__name__}: this method of a ufunc has no operator; {IN_PLACE}")


def _call(trace: Recording, ufunc: np.ufunc, inputs: Any, kwargs: dict[str, Any]) -> Any:
    if ufunc in elementwise.TABLE:
        options = _options(ufunc.__name__, kwargs, ("dtype",))
        return elementwise.apply_ufunc(trace, ufunc, inputs, **options)
    if ufunc in contractions.UFUNCS:
        options = _options(ufunc.__name__, kwargs, ("dtype",))
        return contractions.UFUNCS[ufunc](trace, *inputs, **options)
    raise _unsupported(ufunc.__name__)


def _reduce(trace: Recording, ufunc: np.ufunc, inputs: Any, kwargs: dict[str, Any]) -> Any:
    if ufunc not in REDUCTIONS:
        raise _unsupported(f"{ufunc.__name__}.reduce")
    options = _options(f"{ufunc.__name__}.reduce", kwargs, ("axis", "dtype", "keepdims"))
    if options.get("dtype", 0) is None or ufunc is not np.add:
        options.pop("dtype", None)
    return REDUCTIONS[ufunc](trace.lift(inputs[0]), **{"axis": 0, **options})


def _accumulate(trace: Recording, ufunc: np.ufunc, inputs: Any, kwargs: dict[str, Any]) -> Any:
    if ufunc is not np.add:
        raise _unsupported(f"{ufunc.__name__}.accumulate")
    options = _options("add.accumulate", kwargs, ("axis", "dtype"))
    return reductions.cumsum(trace.lift(inputs[0]), **{"axis": 0, **options})


def _outer(trace: Recording, ufunc: np.ufunc, inputs: Any, kwargs: dict[str, Any]) -> Any:
    x, y = inputs
    options = _options(f"{ufunc.__name__}.outer", kwargs, ("dtype",))
    shape = np.shape(x) + (1,) * np.ndim(y)
    x = reshape_to(x, shape) if isinstance(x, TracedArray) else np.reshape(x, shape)
    return _call(trace, ufunc, (x, y), options)


METHODS: dict[str, Callable[..., Any]] = {  # alphabetical
    "__call__": _call,
    "accumulate": _accumulate,
    "outer": _outer,
    "reduce": _reduce,
}


# -------------------------------------------------------------------------------------- operators
def call_operator(trace: Recording, ufunc: np.ufunc, operands: tuple[Any, ...]) -> Any:
    """A Python operator; unknown types get their own turn."""
    if not all(isinstance(x, _OPERANDS) or hasattr(x, "__array__") for x in operands):
        return NotImplemented
    if ufunc in elementwise.TABLE:
        return _named(ufunc.__name__, lambda: elementwise.apply_operator(trace, ufunc, operands))
    return call_ufunc(trace, ufunc, "__call__", operands, {})


_OPERANDS = (TracedArray, bool, int, float, complex, list, tuple, np.ndarray, np.generic)


def call_index(trace: Recording, x: TracedArray, key: Any) -> Any:
    """`x[key]`."""
    return _named("ndarray.__getitem__", lambda: indexing.getitem(trace, x, key))


HANDLERS = Handlers(call_function, call_index, call_operator, call_ufunc)
