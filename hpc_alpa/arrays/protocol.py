"""What the runtime asks of an array library: memory, copies and kernels, on one device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol, TypeAlias

from numpy.typing import DTypeLike, NDArray

from hpc_alpa.errors import HpcAlpaError

Array: TypeAlias = Any
"""An array of the backend's own library: numpy.ndarray or cupy.ndarray."""

HostArray: TypeAlias = NDArray[Any]


class DeviceError(HpcAlpaError):
    """The accelerator asked for cannot be used.

    The library for it is not installed, no device is visible to this process, or the driver is
    older than the CUDA runtime that the library was built for.
    """


@dataclass(frozen=True)
class Memory:
    """Memory of a device in bytes: in all, and what could be allocated now."""

    total: int
    free: int


class Arrays(Protocol):
    """One device's arrays. All methods are local; the device may still compute when one returns."""

    name: str

    @property
    def xp(self) -> ModuleType:
        """The module with NumPy's functions for these arrays."""
        ...

    @property
    def kernels(self) -> Mapping[str, Callable[..., None]]:
        """Function name -> kernel, with the signatures of `hpc_alpa.kernels.reference`."""
        ...

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """A new C-contiguous array, its values undefined."""
        ...

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """A new C-contiguous array of zeros."""
        ...

    def from_host(self, x: HostArray) -> Array:
        """A new C-contiguous array with the values of a host array."""
        ...

    def to_host(self, x: Array) -> HostArray:
        """A new host array with the values of x, once they are computed."""
        ...

    def contiguous(self, x: Array) -> Array:
        """x itself where it is C-contiguous, else a C-contiguous copy."""
        ...

    def nbytes(self, x: Array) -> int:
        """Bytes of x's elements."""
        ...

    def synchronize(self) -> None:
        """Return when all that was started is done."""
        ...

    def memory(self) -> Memory:
        """The device's memory."""
        ...
