"""`apply`: one canonical operator on traced or plain arrays; `nn` and `random` are made of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpc_alpa.errors import GraphError, TracingError
from hpc_alpa.ir import Eqn, TensorType, Var, freeze, op
from hpc_alpa.ir.evaluate import whole_call
from hpc_alpa.trace.array import TracedArray
from hpc_alpa.trace.position import position
from hpc_alpa.trace.recording import Recording, current, recording_of

# Inside a trace they are equations even without a traced operand: their values may be large.
SOURCES = ("full", "iota", "random_bits")


def is_traced(*values: Any) -> bool:
    return any(isinstance(x, TracedArray) for x in values)


def apply(name: str, *arrays: Any, type: TensorType | None = None, **params: Any) -> Any:
    """The operator's value: an equation in a trace, its reference on plain arrays.

    Raises:
        TracingError: operands that do not fit the operator, with the user's line.
    """
    if is_traced(*arrays):
        return _emit(recording_of(*arrays), name, arrays, type, params)
    trace = current()
    if trace is not None and name in SOURCES:
        return _emit(trace, name, arrays, type, params)
    plain = [np.asarray(x) for x in arrays]
    operands = tuple(Var(k, TensorType.of(x)) for k, x in enumerate(plain))
    types = tuple(v.type for v in operands)
    try:
        output = Var(len(plain), op(name).output_type(types, params, type))
    except GraphError as error:
        raise _mistake(name, error) from error
    e = Eqn(op(name), operands, output, freeze(params))
    return np.asarray(e.op.reference(whole_call(e), *plain))[()]


def _emit(
    trace: Recording,
    name: str,
    arrays: tuple[Any, ...],
    type: TensorType | None,
    params: dict[str, Any],
) -> TracedArray:
    try:
        return trace.emit(name, *(trace.lift(x) for x in arrays), type=type, **params)
    except GraphError as error:
        raise _mistake(name, error) from error


def _mistake(name: str, error: GraphError) -> TracingError:
    where = position()
    return TracingError(f"{name}{' at ' + where if where else ''}: {error}")
