"""Random arrays: bits, uniform, normal, bernoulli."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from hpc_alpa.errors import TracingError
from hpc_alpa.ir import TensorType, numpy_dtype
from hpc_alpa.trace import apply

Shape = int | Sequence[int]

# dtypes that the generator does not make are rounded from one that it does
_MADE_AS = {"bfloat16": "float32", "float16": "float32"}


def stream_key(name: str) -> int:
    """A stable hash of a name, 63 bits of its sha256."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def _random(kind: str, shape: Shape, seed: Any, step: Any, name: str, dtype: str) -> Any:
    if not isinstance(name, str) or not name:
        raise TracingError(f"random values are named by a str, not {name!r}: name='dropout/3'")
    extents = (shape,) if isinstance(shape, int) else tuple(int(n) for n in shape)
    type = TensorType(extents, dtype)
    return apply("random_bits", seed, step, type=type, kind=kind, key=stream_key(name))


def _floating(kind: str, shape: Shape, seed: Any, step: Any, name: str, dtype: Any) -> Any:
    wanted = "bfloat16" if str(dtype) == "bfloat16" else np.dtype(dtype).name
    made = _random(kind, shape, seed, step, name, _MADE_AS.get(wanted, wanted))
    return made.astype(numpy_dtype(wanted)) if wanted in _MADE_AS else made


def bits(shape: Shape, *, seed: Any, name: str, step: Any = 0, dtype: Any = "uint32") -> Any:
    """Independent random bits, uint32 or uint64.

    Args:
        seed, step: 0-d integers, traced ones too.
        name: tells values of one seed and step apart.
    """
    return _random("bits", shape, seed, step, name, np.dtype(dtype).name)


def uniform(shape: Shape, *, seed: Any, name: str, step: Any = 0, dtype: Any = "float32") -> Any:
    """Uniform in [0, 1); arguments as `bits`, dtype floating."""
    return _floating("uniform", shape, seed, step, name, dtype)


def normal(shape: Shape, *, seed: Any, name: str, step: Any = 0, dtype: Any = "float32") -> Any:
    """Normal with mean 0 and variance 1; arguments as `bits`, dtype floating."""
    return _floating("normal", shape, seed, step, name, dtype)


def bernoulli(shape: Shape, p: Any = 0.5, *, seed: Any, name: str, step: Any = 0) -> Any:
    """True with probability p; arguments as `bits`."""
    return uniform(shape, seed=seed, name=name, step=step) < p
