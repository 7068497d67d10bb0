"""Arrays in host memory: NumPy, with the Numba kernels of `kernels.cpu`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cached_property
from types import ModuleType

import numpy as np
from numpy.typing import DTypeLike

from hpc_alpa import kernels
from hpc_alpa.arrays.protocol import HostArray, Memory


class HostArrays:
    """NumPy arrays. Kernels are imported, and Numba with them, when they are first asked for."""

    name = "host"

    @property
    def xp(self) -> ModuleType:
        return np

    @cached_property
    def kernels(self) -> Mapping[str, Callable[..., None]]:
        return kernels.load("cpu")

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> HostArray:
        return np.empty(shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike) -> HostArray:
        return np.zeros(shape, dtype)

    def from_host(self, x: HostArray) -> HostArray:
        return np.array(x, order="C")

    def to_host(self, x: HostArray) -> HostArray:
        return np.array(x, order="C")

    def contiguous(self, x: HostArray) -> HostArray:
        # ascontiguousarray gives 0-d arrays a dim
        return x if x.flags.c_contiguous else x.copy(order="C")

    def nbytes(self, x: HostArray) -> int:
        return x.nbytes

    def synchronize(self) -> None:
        """NumPy has nothing under way."""

    def memory(self) -> Memory:
        """Physical memory of the host, shared by all its ranks."""
        page = os.sysconf("SC_PAGE_SIZE")
        return Memory(page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES"))
