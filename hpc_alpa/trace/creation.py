"""NumPy's functions that make an array like a traced one, convert it, or ask for what is static."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hpc_alpa.errors import TracingError
from hpc_alpa.trace.array import TracedArray
from hpc_alpa.trace.dtypes import descriptor
from hpc_alpa.trace.recording import dtype_name
from hpc_alpa.trace.shapes import broadcast_to


def full_like(
    a: TracedArray, fill_value: Any, dtype: Any = None, order: str = "K", subok: bool = True,
    shape: Any = None,
) -> TracedArray:  # fmt: skip
    name = dtype_name(a.dtype if dtype is None else dtype)
    extents = a.shape if shape is None else (shape,) if isinstance(shape, int) else tuple(shape)
    if isinstance(fill_value, TracedArray) or np.ndim(fill_value):
        return broadcast_to(a.recording.lift(fill_value, name), extents)
    return a.recording.full(extents, np.asarray(fill_value).item(), name)


def _filled(number: int) -> Callable[..., TracedArray]:
    def row(
        a: TracedArray, dtype: Any = None, order: str = "K", subok: bool = True, shape: Any = None
    ) -> TracedArray:
        return full_like(a, number, dtype, order, subok, shape)

    return row


def astype(x: TracedArray, dtype: Any, /, *args: Any, **options: Any) -> TracedArray:
    """Also the method, whose further arguments (order, casting, copy) change no values."""
    return x.recording.lift(x, np.dtype(dtype))


def copy(a: TracedArray, order: str = "K", subok: bool = False) -> TracedArray:
    return a


def clip(
    a: Any, a_min: Any = None, a_max: Any = None, out: None = None, *, min: Any = None,
    max: Any = None, dtype: Any = None,
) -> Any:  # fmt: skip
    low, high = (a_min if min is None else min), (a_max if max is None else max)
    made = a if low is None else np.maximum(a, low, dtype=dtype)
    return made if high is None else np.minimum(made, high, dtype=dtype)


# ---------------------------------------------------------------------------------- static answers
def _sample(x: Any) -> Any:
    """What stands for an operand where only its dtype matters."""
    if not isinstance(x, TracedArray):
        return x
    d = descriptor(x)
    return d(0) if d in (int, float) else d


def result_type(*arrays_and_dtypes: Any) -> np.dtype[Any]:
    return np.result_type(*map(_sample, arrays_and_dtypes))


def can_cast(from_: Any, to: Any, casting: Any = "safe") -> bool:
    return np.can_cast(from_.dtype, to, casting)


def size(a: TracedArray, axis: Any = None) -> int:
    axes = () if axis is None else (axis,) if isinstance(axis, int) else axis
    return a.size if axis is None else int(np.prod([a.shape[d] for d in axes]))


def min_scalar_type(a: TracedArray, /) -> np.dtype[Any]:
    if not a.ndim:
        raise TracingError("np.min_scalar_type of a 0-d array depends on its value; use its dtype")
    return a.dtype


ROWS: dict[str, Callable[..., Any]] = {  # alphabetical
    "astype": astype,
    "can_cast": can_cast,
    "clip": clip,
    "copy": copy,
    "full_like": full_like,
    "imag": lambda val: full_like(val, 0),
    "iscomplexobj": lambda x: False,
    "isrealobj": lambda x: True,
    "min_scalar_type": min_scalar_type,
    "ndim": lambda a: a.ndim,
    "ones_like": _filled(1),
    "real": lambda val: val,
    "result_type": result_type,
    "shape": lambda a: a.shape,
    "size": size,
    "zeros_like": _filled(0),
}
