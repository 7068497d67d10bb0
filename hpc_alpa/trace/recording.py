"""`Recording`: the state of one trace, and how values enter it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from hpc_alpa.errors import TracingError
from hpc_alpa.ir import Builder, Eqn, TensorType, Var, numpy_dtype
from hpc_alpa.trace.array import TracedArray
from hpc_alpa.trace.position import name_of, position

DTYPES = (
    "bfloat16", "bool", "float16", "float32", "float64", "int16", "int32", "int64", "int8",
    "uint16", "uint32", "uint64", "uint8",
)  # fmt: skip  # alphabetical

# A constant of the function travels with every rank: what is larger belongs into the arguments.
CAPTURED_LIMIT = 1 << 20


@dataclass(frozen=True)
class Handlers:
    """What a traced array calls; `protocol` fills it."""

    function: Callable[..., Any]
    index: Callable[..., Any]
    operator: Callable[..., Any]
    ufunc: Callable[..., Any]


@dataclass(frozen=True)
class Differentiated:
    """What `value_and_grad` did in a trace, as values of its graph."""

    loss: Var
    wanted: tuple[Var, ...]
    gradients: tuple[Var, ...]


class Recording:
    """One trace under way: a builder, the captured arrays, and what was differentiated.

    Attributes:
        captured_limit: largest captured array in bytes, or None.
        captured: the array behind each captured input, by the input.
        gradient_source: the user's line with `value_and_grad`, once it began.
        renamed: values that stand for another one, and are replaced by it when the graph is built.
    """

    def __init__(self, handlers: Handlers, allow_float64: bool, captured_limit: int | None) -> None:
        self.handlers = handlers
        self.allow_float64 = allow_float64
        self.captured_limit = captured_limit
        self.builder = Builder()
        self.captured: dict[Var, np.ndarray] = {}
        self.renamed: dict[Var, Var] = {}
        self.differentiated: Differentiated | None = None
        self.gradient_source: str | None = None
        self.finished = False
        self._inputs_by_value: dict[tuple[Any, ...], Var] = {}
        self._producers: dict[Var, Eqn] = {}
        self._num_known = 0

    # ------------------------------------------------------------------------------------ emitting
    def emit(
        self, name: str, *operands: Any, type: TensorType | None = None, **params: Any
    ) -> TracedArray:
        """Append one equation; a Python number becomes a constant of the last array's dtype."""
        if self.finished:
            raise TracingError(
                f"a traced array is used at {position()} after its trace ended: return it from "
                "the traced function instead of keeping it outside"
            )
        values = [self.own(x).value if isinstance(x, TracedArray) else x for x in operands]
        self.builder.source = position()
        return TracedArray(self, self.builder.emit(name, *values, type=type, **params))

    def own(self, x: TracedArray) -> TracedArray:
        """The array itself, if it belongs to this trace."""
        if x.recording is not self:
            raise TracingError(
                f"a traced {x.type} of another trace is used at {position()}: pass it as an "
                "argument instead of keeping it outside the function"
            )
        return x

    def producer(self, x: TracedArray) -> Eqn | None:
        """The equation that made a value, or None for an input."""
        for e in self.builder.eqns[self._num_known :]:
            self._producers[e.output] = e
        self._num_known = len(self.builder.eqns)
        return self._producers.get(x.value)

    def known(self, x: TracedArray) -> Any:
        """The number that every element is, if the graph says so, or None."""
        e = self.producer(x)
        return e.params_dict["value"] if e is not None and e.op.name == "full" else None

    # ------------------------------------------------------------------------------------- lifting
    def lift(self, x: Any, dtype: Any = None) -> TracedArray:
        """A traced array, number or plain array as a value of this trace, of `dtype` if given."""
        if isinstance(x, TracedArray):
            return self._cast(self.own(x), None if dtype is None else dtype_name(dtype))
        array = plain_array(x)
        name = dtype_name(array.dtype if dtype is None else dtype)
        if array.ndim == 0:
            return self.constant(x if isinstance(x, (int, float)) else array, name)
        array = array.astype(numpy_dtype(name), copy=False)
        number = _uniform(array)
        if number is not None:
            return self.full(array.shape, number, name)
        return TracedArray(self, self._capture(array, x))

    def _cast(self, x: TracedArray, name: str | None) -> TracedArray:
        if name is None or name == x.type.dtype:
            return TracedArray(self, x.value) if x.weak and name else x
        return self.emit("cast", x, dtype=name)

    def constant(self, number: Any, name: str) -> TracedArray:
        """A 0-d value."""
        return self.full((), number, name)

    def full(self, shape: tuple[int, ...], number: Any, name: str) -> TracedArray:
        """An array of one number, of a dtype name; overflow is an error, as in NumPy."""
        value = np.asarray(number).item()
        if not isinstance(value, (bool, int, float)):
            raise TypeError(f"{number!r} is not a real number")
        shape = tuple(map(operator.index, shape))
        if min(shape, default=0) < 0:
            raise ValueError(f"the shape {shape} has a negative extent")
        kind = numpy_dtype(name).kind
        if kind in "iu":
            np.array(int(value), numpy_dtype(name))  # raises on overflow
        value = int(value) if kind in "iu" else bool(value) if kind == "b" else value
        if value != value:
            # A NaN does not compare equal to itself, so it cannot be a parameter of an equation.
            infinite = self.full(shape, np.inf, name)
            return self.emit("sub", infinite, infinite)
        if shape:
            return self.emit("full", type=TensorType(shape, name), value=value)
        self.builder.source = position()
        return TracedArray(self, self.builder.constant(value, name))

    def _capture(self, array: np.ndarray, held: Any) -> Var:
        if self.captured_limit is not None and array.nbytes > self.captured_limit:
            name = name_of(held)
            raise TracingError(
                f"{'the array ' + repr(name) if name else 'an array'} that the function holds, "
                f"{TensorType.of(array)} of {array.nbytes} bytes, is used at {position()}: an "
                f"array over {self.captured_limit} bytes is an argument of the step (put it into "
                "the state or the batch), or is made by hpc_alpa.random, np.where or "
                "hpc_alpa.nn.softmax(causal=True) inside"
            )
        # By value, and copied: the function may write into its own plain array later.
        key = (array.shape, array.dtype.name, array.tobytes())
        if key not in self._inputs_by_value:
            v = self.builder.input(TensorType.of(array))
            self._inputs_by_value[key] = v
            self.captured[v] = array.copy()
            self.captured[v].setflags(write=False)
        return self._inputs_by_value[key]


def plain_array(x: Any) -> np.ndarray:
    """A plain number, array or nested list as an array; a traced one inside is an error."""
    array = np.asarray(x)
    dtype_name(array.dtype)
    return array


def dtype_name(dtype: Any) -> str:
    """The name of a dtype that graphs have."""
    name = _name(dtype)
    if name not in DTYPES:
        raise TracingError(
            f"a value of dtype {name} is used at {position()}; traced values are "
            f"{', '.join(DTYPES)}"
        )
    return name


@cache
def _name(dtype: Any) -> str:
    return "bfloat16" if dtype == "bfloat16" else np.dtype(dtype).name


def _uniform(array: np.ndarray) -> Any:
    """The one number that an array holds everywhere, or None."""
    if array.size == 0:
        return 0
    first = array[(0,) * array.ndim]
    same = bool((array == first).all())
    if same and array.dtype.kind == "f" and first == 0:
        same = bool((np.signbit(array) == np.signbit(first)).all())
    return first if same else None


def recording_of(*operands: Any) -> Recording:
    """The trace of the first traced operand."""
    return next(x for x in operands if isinstance(x, TracedArray)).recording


_CURRENT: ContextVar[Recording | None] = ContextVar("hpc_alpa_recording", default=None)


def current() -> Recording | None:
    """The trace under way on this thread, if any."""
    return _CURRENT.get()


@contextmanager
def recording(made: Recording) -> Iterator[Recording]:
    """Trace inside the block."""
    token = _CURRENT.set(made)
    try:
        yield made
    finally:
        _CURRENT.reset(token)
        made.finished = True


@contextmanager
def layer(number: int) -> Iterator[None]:
    """Marks the equations made inside as belonging to one layer of the model; `with layer(3):`.

    Layers that are equal are planned alike, and may be made again in backward instead of being kept
    for it (`parallelize(recompute=...)`). Outside a trace it does nothing.
    """
    trace = current()
    if trace is None:
        yield
    else:
        with trace.builder.noted(layer=int(number)):
            yield
