"""`TracedArray`: an array that has a type and no values, and records what is done with it.

NumPy's functions reach the trace by `__array_ufunc__` and `__array_function__`; methods are those
functions again. What would need values raises `TracingError` and says what to write instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from hpc_alpa.errors import TracingError
from hpc_alpa.ir import TensorType, Var, numpy_dtype
from hpc_alpa.trace.position import position

if TYPE_CHECKING:
    from hpc_alpa.trace.recording import Recording

Function = Callable[..., Any]

IN_PLACE = "arrays are not written in place: `x = x + y` rebinds, np.where(mask, new, x) replaces"
VALUES = "return the array from the step and read the result"
MEMORY = "a traced array has no memory; use shape, dtype, size and nbytes"


def _method(name: str) -> Function:
    """The NumPy function of the same name with the array first."""
    function = getattr(np, name)

    def method(self: TracedArray, *args: Any, **kwargs: Any) -> Any:
        return function(self, *args, **kwargs)

    method.__name__, method.__doc__ = name, f"As `numpy.ndarray.{name}`."
    return method


def _operator(name: str, swapped: bool = False) -> Function:
    ufunc = getattr(np, name)

    def operator(self: TracedArray, *other: Any) -> Any:
        operands = (*other, self) if swapped else (self, *other)
        return self.recording.handlers.operator(self.recording, ufunc, operands)

    return operator


def _refusing(what: str, instead: str) -> Function:
    def method(self: TracedArray, *args: Any, **kwargs: Any) -> NoReturn:
        self.refuse(what, instead)

    return method


def _no_attribute(name: str) -> Any:
    return property(_refusing(f"`.{name}`", MEMORY))


class TracedArray:
    """A value of a graph under construction, with the interface of `numpy.ndarray`.

    Attributes:
        recording: the trace that it belongs to.
        value: the value in the graph.
        weak: made from Python numbers alone, and so adopts the dtype of what it is mixed with.
    """

    __slots__ = ("recording", "value", "weak")

    def __init__(self, recording: Recording, value: Var, weak: bool = False) -> None:
        self.recording = recording
        self.value = value
        self.weak = weak

    def refuse(self, what: str, instead: str) -> NoReturn:
        """Raise the error of something that a trace cannot record."""
        where = position()
        raise TracingError(
            f"{what} of a traced {self.type}{' at ' + where if where else ''}: a traced array has "
            f"a type but no values; {instead}"
        )

    # ------------------------------------------------------------------------------ static answers
    @property
    def type(self) -> TensorType:
        return self.value.type

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.type.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return numpy_dtype(self.value.type.dtype)

    @property
    def ndim(self) -> int:
        return len(self.value.type.shape)

    @property
    def size(self) -> int:
        return self.value.type.size

    @property
    def nbytes(self) -> int:
        return self.value.type.nbytes

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    def __len__(self) -> int:
        if not self.shape:
            self.refuse("len()", "a 0-d array has no length")
        return self.shape[0]

    def __repr__(self) -> str:
        return f"TracedArray({self.type})"

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __copy__(self) -> TracedArray:
        return self

    def __deepcopy__(self, memo: Any) -> TracedArray:
        return self

    # ------------------------------------------------------------------------------ NumPy protocol
    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        return self.recording.handlers.ufunc(self.recording, ufunc, method, inputs, kwargs)

    def __array_function__(
        self, function: Function, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        return self.recording.handlers.function(self.recording, function, args, kwargs)

    def __getitem__(self, key: Any) -> Any:
        return self.recording.handlers.index(self.recording, self, key)

    def __iter__(self) -> Iterator[Any]:
        if not self.shape:
            self.refuse("iteration", "a 0-d array has no elements to iterate over")
        return (self[i] for i in range(self.shape[0]))

    # ----------------------------------------------------------------------------------- operators
    __abs__ = _operator("absolute")
    __add__ = _operator("add")
    __and__ = _operator("bitwise_and")
    __divmod__ = _operator("divmod")
    __eq__ = _operator("equal")
    __floordiv__ = _operator("floor_divide")
    __ge__ = _operator("greater_equal")
    __gt__ = _operator("greater")
    __invert__ = _operator("invert")
    __le__ = _operator("less_equal")
    __lshift__ = _operator("left_shift")
    __lt__ = _operator("less")
    __matmul__ = _operator("matmul")
    __mod__ = _operator("remainder")
    __mul__ = _operator("multiply")
    __ne__ = _operator("not_equal")
    __neg__ = _operator("negative")
    __or__ = _operator("bitwise_or")
    __pos__ = _operator("positive")
    __pow__ = _operator("power")
    __radd__ = _operator("add", swapped=True)
    __rand__ = _operator("bitwise_and", swapped=True)
    __rdivmod__ = _operator("divmod", swapped=True)
    __rfloordiv__ = _operator("floor_divide", swapped=True)
    __rlshift__ = _operator("left_shift", swapped=True)
    __rmatmul__ = _operator("matmul", swapped=True)
    __rmod__ = _operator("remainder", swapped=True)
    __rmul__ = _operator("multiply", swapped=True)
    __ror__ = _operator("bitwise_or", swapped=True)
    __rpow__ = _operator("power", swapped=True)
    __rrshift__ = _operator("right_shift", swapped=True)
    __rshift__ = _operator("right_shift")
    __rsub__ = _operator("subtract", swapped=True)
    __rtruediv__ = _operator("true_divide", swapped=True)
    __rxor__ = _operator("bitwise_xor", swapped=True)
    __sub__ = _operator("subtract")
    __truediv__ = _operator("true_divide")
    __xor__ = _operator("bitwise_xor")

    # ------------------------------------------------------------------------------------- methods
    all = _method("all")
    any = _method("any")
    argmax = _method("argmax")
    argmin = _method("argmin")
    argpartition = _method("argpartition")
    argsort = _method("argsort")
    choose = _method("choose")
    compress = _method("compress")
    conj = _method("real")
    conjugate = _method("real")
    copy = _method("copy")
    cumprod = _method("cumprod")
    cumsum = _method("cumsum")
    diagonal = _method("diagonal")
    dot = _method("dot")
    max = _method("max")
    mean = _method("mean")
    min = _method("min")
    nonzero = _method("nonzero")
    prod = _method("prod")
    ravel = _method("ravel")
    repeat = _method("repeat")
    round = _method("round")
    searchsorted = _method("searchsorted")
    squeeze = _method("squeeze")
    std = _method("std")
    sum = _method("sum")
    swapaxes = _method("swapaxes")
    take = _method("take")
    trace = _method("trace")
    var = _method("var")

    def astype(self, dtype: Any, *args: Any, **options: Any) -> TracedArray:
        """As `numpy.ndarray.astype`; order, casting and copy change no values."""
        return self.recording.lift(self, np.dtype(dtype))

    def clip(self, min: Any = None, max: Any = None, **options: Any) -> Any:
        """As `numpy.ndarray.clip`."""
        return _method("clip")(self, min, max, **options)

    def flatten(self, order: str = "C") -> Any:
        """As `numpy.ndarray.flatten`."""
        return _method("ravel")(self, order)

    def reshape(self, *shape: Any, **options: Any) -> Any:
        """As `numpy.ndarray.reshape`: a tuple or several numbers."""
        target = shape[0] if len(shape) == 1 else shape
        return _method("reshape")(self, target, **options)

    def transpose(self, *axes: Any) -> Any:
        """As `numpy.ndarray.transpose`: nothing, a tuple or several numbers."""
        order = None if not axes else axes[0] if len(axes) == 1 else axes
        return _method("transpose")(self, order)

    @property
    def T(self) -> Any:
        return self.transpose()

    @property
    def mT(self) -> Any:
        return _method("matrix_transpose")(self)

    @property
    def real(self) -> TracedArray:
        return self

    @property
    def imag(self) -> Any:
        return _method("zeros_like")(self)

    # --------------------------------------------------------------------------------------- traps
    __array__ = _refusing(
        "np.asarray() or another read of the values",
        "leave np.asarray out, join arrays with np.stack, index a plain table by a traced index "
        "with hpc_alpa.nn.embedding, and write into no plain array",
    )
    __bool__ = _refusing(
        "bool()",
        "write np.where(condition, a, b) for `if`, np.logical_and for `and`; what decides the "
        "structure of the step is a static value (str, bool, None) of its arguments",
    )
    __complex__ = _refusing("complex()", "keep the traced array in the expression")
    __contains__ = _refusing("`in`", "write (x == value).any()")
    __delitem__ = _refusing("`del x[...]`", IN_PLACE)
    __dlpack__ = _refusing("from_dlpack()", MEMORY)
    __dlpack_device__ = _refusing("from_dlpack()", MEMORY)
    __float__ = _refusing(
        "float() or a function of the module math",
        "keep the traced array in the expression: x ** 0.5, np.exp(x)",
    )
    __index__ = _refusing(
        "use as an index or a length",
        "index with x[i] of a traced x, or hpc_alpa.nn.embedding for a plain table; lengths are "
        "static: make them Python numbers outside the arguments of the step",
    )
    __int__ = _refusing("int()", "write x.astype(np.int64)")
    __round__ = _refusing("round()", "there is no operator for rounding")
    __setitem__ = _refusing("`x[...] = y`", IN_PLACE)
    byteswap = _refusing("byteswap()", IN_PLACE)
    dump = _refusing("dump()", VALUES)
    dumps = _refusing("dumps()", VALUES)
    fill = _refusing("fill()", IN_PLACE)
    getfield = _refusing("getfield()", MEMORY)
    item = _refusing("item()", VALUES)
    partition = _refusing("partition()", IN_PLACE)
    put = _refusing("put()", IN_PLACE)
    resize = _refusing("resize()", IN_PLACE)
    setfield = _refusing("setfield()", IN_PLACE)
    setflags = _refusing("setflags()", MEMORY)
    sort = _refusing("sort()", IN_PLACE)
    to_device = _refusing("to_device()", "the plan places arrays")
    tobytes = _refusing("tobytes()", VALUES)
    tofile = _refusing("tofile()", VALUES)
    tolist = _refusing("tolist()", VALUES)
    view = _refusing("view()", "write x.astype(dtype) to convert values")

    base = _no_attribute("base")
    ctypes = _no_attribute("ctypes")
    data = _no_attribute("data")
    device = _no_attribute("device")
    flags = _no_attribute("flags")
    flat = _no_attribute("flat")
    strides = _no_attribute("strides")
