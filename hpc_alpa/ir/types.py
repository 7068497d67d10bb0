"""The type of a value: a shape and a dtype."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache

import ml_dtypes
import numpy as np

from hpc_alpa.errors import GraphError

_TEXT = re.compile(r"^([a-z]+[0-9]*)\[([0-9,]*)\]$")


@cache
def numpy_dtype(name: str) -> np.dtype:
    """The NumPy dtype of a dtype name; `bfloat16` comes from `ml_dtypes`."""
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


@dataclass(frozen=True, slots=True)
class TensorType:
    """Shape and dtype of a value, written `float32[4,8]`; a 0-d value is `float32[]`."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.size * numpy_dtype(self.dtype).itemsize

    @property
    def is_floating(self) -> bool:
        return self.dtype in ("float16", "bfloat16", "float32", "float64")

    def with_shape(self, shape: tuple[int, ...]) -> TensorType:
        """The same dtype, another shape."""
        return TensorType(tuple(shape), self.dtype)

    def with_dtype(self, dtype: str) -> TensorType:
        """The same shape, another dtype."""
        return TensorType(self.shape, dtype)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"

    @classmethod
    def parse(cls, text: str) -> TensorType:
        """Read the form that `str` prints; raises `GraphError` for another one."""
        match = _TEXT.match(text)
        if match is None:
            raise GraphError(f"type {text!r} is not of the form float32[4,8]")
        dims = tuple(int(d) for d in match[2].split(",") if d)
        return cls(dims, match[1])

    @classmethod
    def of(cls, array: np.ndarray) -> TensorType:
        """The type of a NumPy array or scalar."""
        return cls(tuple(np.shape(array)), np.asarray(array).dtype.name)
