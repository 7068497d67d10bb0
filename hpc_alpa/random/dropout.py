"""Dropout."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpc_alpa.random.values import bernoulli


def dropout(x: Any, rate: float, *, seed: Any, step: Any, name: str) -> Any:
    """Zeros a share `rate` of the elements and scales the others by 1 / (1 - rate).

    Which elements depends on (seed, step, name, index in the whole array) alone.

    Args:
        rate: a static number in [0, 1); 0 gives x itself.
        seed, step, name: as `hpc_alpa.random.bits`.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"dropout: the rate is {rate}, not in [0, 1)")
    if rate == 0:
        return x
    keep = bernoulli(np.shape(x), 1.0 - rate, seed=seed, name=name, step=step)
    return np.where(keep, x * x.dtype.type(1.0 / (1.0 - rate)), x.dtype.type(0))
