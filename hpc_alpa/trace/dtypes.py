"""Types of results by NumPy's own tables, and the error of a silent promotion to float64.

A Python number is weak: it adopts the dtype of what it is mixed with (NEP 50). NumPy numbers and
arrays are not, and a float64 one among them would make a whole float32 model float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from hpc_alpa.errors import TracingError
from hpc_alpa.trace.array import TracedArray
from hpc_alpa.trace.position import position
from hpc_alpa.trace.recording import Recording, dtype_name

Descriptor = Any
"""A `numpy.dtype`, or the type `int` or `float` for a weak number."""

_SAMPLES = {int: 0, float: 0.0}


def is_python_number(x: Any) -> bool:
    """A weak plain operand; NumPy's scalars and bool are not."""
    return isinstance(x, (int, float)) and not isinstance(x, (bool, np.generic))


def is_weak(x: Any) -> bool:
    return x.weak if isinstance(x, TracedArray) else is_python_number(x)


def descriptor(x: Any) -> Descriptor:
    """What an operand counts as when the type of a result is found."""
    if isinstance(x, TracedArray):
        if x.weak:
            return float if x.type.is_floating else int
        return x.dtype
    if is_python_number(x):
        return float if isinstance(x, float) else int
    dtype = np.asarray(x).dtype
    dtype_name(dtype)
    return dtype


@cache
def loop_dtypes(
    ufunc: np.ufunc, descriptors: tuple[Descriptor, ...], dtype: np.dtype[Any] | None
) -> tuple[np.dtype[Any], ...]:
    """The dtypes of the loop that a ufunc would run: its operands', then its outputs'."""
    outputs = (None,) * ufunc.nout
    if dtype is None:
        return tuple(ufunc.resolve_dtypes((*descriptors, *outputs)))
    signature = (None,) * ufunc.nin + (dtype,) * ufunc.nout
    return tuple(ufunc.resolve_dtypes((*descriptors, *outputs), signature=signature))


def common_dtype(operands: Sequence[Any]) -> np.dtype[Any]:
    """`numpy.result_type` of operands, weak numbers included."""
    return _common(tuple(descriptor(x) for x in operands))


@cache
def _common(descriptors: tuple[Descriptor, ...]) -> np.dtype[Any]:
    return np.result_type(*(_SAMPLES.get(d, d) for d in descriptors))


@cache
def reduced_dtype(name: str, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype that NumPy's reduction of that name gives."""
    result: np.dtype[Any] = np.asarray(getattr(np, name)(np.ones(1, dtype))).dtype
    return result


def _is_floating(dtype: Descriptor) -> bool:
    return isinstance(dtype, np.dtype) and (dtype.kind == "f" or dtype.name == "bfloat16")


def require_no_promotion(
    trace: Recording, name: str, operands: Sequence[Any], result: np.dtype[Any]
) -> None:
    """Raise the error of a 16- or 32-bit traced value that silently becomes wider.

    To float64 by any other operand, and from bfloat16 to float32 by a Python float (the type of
    ml_dtypes does not know weak numbers).
    """
    if trace.allow_float64 or not _is_floating(result):
        return
    found = [descriptor(x) for x in operands]
    narrow = [
        x
        for x, d in zip(operands, found)
        if isinstance(x, TracedArray) and _is_floating(d) and d.itemsize < 8
    ]
    if not narrow or (result.itemsize < 8 and not _widened_by_a_number(operands, found, result)):
        return
    cause, fix = _cause(operands, found, result)
    where = position()
    raise TracingError(
        f"np.{name}{' at ' + where if where else ''} silently makes {result.name} of a traced "
        f"{narrow[0].type}, because of {cause}; {fix}; or pass allow_float64=True"
    )


def _widened_by_a_number(
    operands: Sequence[Any], found: Sequence[Descriptor], result: np.dtype[Any]
) -> bool:
    strong = [d for d in found if isinstance(d, np.dtype)]
    return any(map(is_weak, operands)) and all(d.itemsize < result.itemsize for d in strong)


def _cause(
    operands: Sequence[Any], found: Sequence[Descriptor], result: np.dtype[Any]
) -> tuple[str, str]:
    """The operand that widens the result, and what to write instead."""
    for x, d in zip(operands, found):
        if isinstance(x, TracedArray) and not x.weak and (not _is_floating(d) or d == result):
            return f"a traced {x.type}", (
                "keep a traced Python number weak (v ** 0.5, not np.sqrt(v)), or write "
                ".astype(np.float32)"
            )
        if not isinstance(x, TracedArray) and isinstance(d, np.dtype) and np.ndim(x) == 0:
            return f"a NumPy {d.name} scalar", (
                "use a Python number: math.sqrt instead of np.sqrt, float(...) around a scalar"
            )
        if not isinstance(x, TracedArray) and isinstance(d, np.dtype) and d.itemsize >= 4:
            return f"a plain {d.name} array", "give it dtype=np.float32, or write .astype()"
    return "a Python number", "write x.dtype.type(number), or convert with .astype()"
