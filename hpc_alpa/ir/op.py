"""The type of an operator's row. `hpc_alpa.ops` fills the table; everything else reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any

import numpy as np

from hpc_alpa.errors import GraphError
from hpc_alpa.ir.types import TensorType, numpy_dtype

Params = Mapping[str, Any]
Types = tuple[TensorType, ...]


@dataclass(frozen=True)
class Call:
    """What a kernel is told besides its arrays.

    Attributes:
        params: the equation's parameters.
        type: type of the output tile that this call makes.
        starts: for each output dim, where the tile starts in the whole array.
        extents: shape of the whole output.
        offsets: start of each input-only factor that the rule marks `@` (the table of a gather).
    """

    params: Params
    type: TensorType
    starts: tuple[int, ...]
    extents: tuple[int, ...]
    offsets: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def whole(cls, params: Params, type: TensorType, offsets: Mapping[str, int]) -> Call:
        """The call that makes the whole output at once."""
        return cls(params, type, (0,) * type.ndim, type.shape, offsets)


@dataclass(frozen=True)
class Op:
    """One operator: one row of the table, one field per meaning.

    Attributes:
        name: the word in the graph's text.
        infer: (input types, params, wanted type or None) -> output type; raises `GraphError`.
        reference: (call, *arrays) -> array, in plain NumPy on an array module's arrays.
        vjp: (builder, equation, cotangent) -> one cotangent or None per input; None: no gradient
            flows through this operator.
        flops: (input types, output type, params) -> floating-point operations.
        rule: (input types, output type, params) -> `ops.rule.Rule`, how dims relate.
        kernel: (backend of `hpc_alpa.arrays`, call, *arrays) -> array, by the functions of
            `hpc_alpa.kernels`; None runs the reference.
        cost: class of the operator in the cost database (`cost.classes`).
        expand: for a fused operator, (builder, inputs, equation) -> output from simple operators.
        view: the output shares the input's memory on a host.
        wide: 16-bit floats are computed in float32 and rounded once, as accelerators do: what sums
            or exponentiates. Also where a processor has no arithmetic for them.
    """

    name: str
    infer: Callable[[Types, Params, TensorType | None], TensorType]
    reference: Callable[..., Any]
    vjp: Callable[..., Any] | None
    flops: Callable[[Types, TensorType, Params], float]
    rule: Callable[[Types, TensorType, Params], Any]
    kernel: Callable[..., Any] | None = None
    cost: str = "elementwise"
    expand: Callable[..., Any] | None = None
    view: bool = False
    wide: bool = False

    def output_type(
        self, inputs: Types, params: Params, want: TensorType | None = None
    ) -> TensorType:
        """`infer`, where a wrong number of operands or a missing parameter has a name too.

        Raises:
            GraphError: the operands, their types or the parameters do not fit the operator.
        """
        try:
            return self.infer(inputs, params, want)
        except (IndexError, KeyError, TypeError, ValueError) as error:
            given = ", ".join(map(str, inputs))
            raise GraphError(
                f"{self.name} does not take ({given}) with {dict(params)}: {error!r}"
            ) from error

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> str | tuple[Any, ...]:
        return op, (self.name,)


TABLE: dict[str, Op] = {}


def define(name: str, **columns: Any) -> Op:
    """Add a row. A second row of the same name is a programming error."""
    assert name not in TABLE, f"operator {name!r} is defined twice"
    columns["reference"] = _array(columns["reference"])
    if columns.get("wide"):
        for column in ("reference", "kernel"):
            if columns.get(column):
                columns[column] = _widened(columns[column])
    TABLE[name] = Op(name, **columns)
    return TABLE[name]


def _array(reference: Callable[..., Any]) -> Callable[..., Any]:
    # NumPy answers with a scalar where a 0-d array is meant; nothing can be written into a scalar.
    @wraps(reference)
    def run(call: Call, *arrays: Any) -> Any:
        out = reference(call, *arrays)
        return np.asarray(out) if isinstance(out, np.generic) else out

    return run


NARROW = {"bfloat16": "float32", "float16": "float32"}  # -> what they are computed in


def _widened(run: Callable[..., Any]) -> Callable[..., Any]:
    """The last arguments are arrays, the one before them the call."""

    def widen(x: Any) -> Any:
        wide = NARROW.get(x.dtype.name)
        return x if wide is None else x.astype(wide)

    @wraps(run)
    def widened(*given: Any) -> Any:
        k = next(k for k, x in enumerate(given) if isinstance(x, Call))
        call, arrays = given[k], given[k + 1 :]
        if call.type.dtype not in NARROW and all(x.dtype.name not in NARROW for x in arrays):
            return run(*given)
        dtype = NARROW.get(call.type.dtype, call.type.dtype)
        made = run(*given[:k], replace(call, type=call.type.with_dtype(dtype)), *map(widen, arrays))
        return made.astype(numpy_dtype(call.type.dtype), copy=False)

    return widened


def op(name: str) -> Op:
    """The row of an operator; raises `GraphError` with the near names when there is none."""
    try:
        return TABLE[name]
    except KeyError:
        import difflib

        near = difflib.get_close_matches(name, TABLE, n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise GraphError(f"there is no operator {name!r}{hint}") from None
