"""Fused kernels: a file per family in `reference/`, `cpu/` and `cuda/`, shared bodies in `scalar/`.

Every function of a family has the same name and signature on every target. Arrays are C-contiguous,
results go to `out`, which the caller allocates and names last. `out` may be an input of the same
shape (the result is right, though the CPU loop may then run without vector instructions), but no
array may overlap another one in part. float32 and float64 everywhere, any element type in `pack`.
No kernel starts a thread, and the compiled ones release the interpreter lock.

This module imports neither NumPy nor Numba: `load` does, for the target asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any, TypeAlias

Array: TypeAlias = Any
"""A NumPy array on the host, a CuPy array on a device."""

Kernel: TypeAlias = Callable[..., None]

# alphabetical: family (a file in each target's folder) -> its functions
FAMILIES: dict[str, tuple[str, ...]] = {
    "adam": ("adam", "adam_update", "ema"),
    "cross_entropy": ("cross_entropy", "cross_entropy_grad"),
    "embedding": ("gather", "pick", "scatter_add", "unpick"),
    "gelu": ("gelu", "gelu_grad"),
    "layer_norm": ("layer_norm", "layer_norm_grad", "layer_norm_grad_scale"),
    "pack": ("pack", "unpack"),
    "random": ("random",),
    "softmax": ("softmax", "softmax_grad"),
}

# alphabetical: target -> the families it has files for
TARGETS: dict[str, tuple[str, ...]] = {
    "cpu": tuple(FAMILIES),
    "cuda": ("adam", "layer_norm", "pack", "softmax"),
    "reference": tuple(FAMILIES),
}


def load(target: str, families: Iterable[str] | None = None) -> dict[str, Kernel]:
    """Function name -> kernel of `target` (cpu, cuda or reference), of all its families or some."""
    return {
        name: getattr(import_module(f"{__name__}.{target}.{family}"), name)
        for family in (TARGETS[target] if families is None else families)
        for name in FAMILIES[family]
    }
