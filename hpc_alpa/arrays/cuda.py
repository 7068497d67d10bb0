"""Arrays on an NVIDIA GPU: CuPy, with the Numba CUDA kernels of `kernels.cuda`.

CuPy is imported when a `CudaArrays` is made, not before. Families without a CUDA kernel run as
their NumPy reference on CuPy arrays, by the table SOURCES.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from functools import cached_property
from types import ModuleType
from typing import Any

from numpy.typing import DTypeLike

from hpc_alpa import kernels
from hpc_alpa.arrays.protocol import Array, DeviceError, HostArray, Memory

# alphabetical: family -> the target whose kernels run on the device
SOURCES = {
    "adam": "cuda",
    "cross_entropy": "reference",
    "embedding": "reference",
    "gelu": "reference",
    "layer_norm": "cuda",
    "pack": "cuda",
    "random": "reference",
    "softmax": "cuda",
}

# CUDA's handle of the default stream, driver_types.h: cudaStreamLegacy. CuPy calls it 0, which the
# exchange of arrays between libraries may read as "not given", and then waits for the device.
LEGACY_STREAM = 1


class CudaArrays:
    """CuPy arrays on one GPU; work goes to CuPy's current stream.

    Args:
        device: number of the GPU among those visible to this process.

    Raises:
        DeviceError: CuPy is not installed, or has no such device.
    """

    name = "cuda"

    def __init__(self, device: int = 0) -> None:
        self._cupy = _import_cupy()
        count = _count_devices(self._cupy)
        if not 0 <= device < count:
            raise DeviceError(
                f"backend cuda: device {device} was asked for, but this process sees {count}.\n"
                "  Check CUDA_VISIBLE_DEVICES and the job's --gpus, or choose another device."
            )
        self._device = self._cupy.cuda.Device(device)
        self._device.use()

    @classmethod
    def of_rank(cls, local_rank: int, local_size: int) -> CudaArrays:
        """The GPU of one of a host's ranks: the only one that it sees, or the one of its number.

        Raises:
            DeviceError: as the class; or it sees several GPUs, but fewer than the host has ranks.
        """
        count = _count_devices(_import_cupy())
        if 1 < count < local_size:
            raise DeviceError(
                f"backend cuda: {local_size} ranks on a host where this process sees {count} GPUs;"
                " NCCL wants one for each.\n  Start one rank per GPU (srun --ntasks-per-node, or"
                " mpirun's ppr)."
            )
        return cls(local_rank if count > 1 else 0)

    @property
    def xp(self) -> ModuleType:
        return self._cupy  # type: ignore[no-any-return]

    @cached_property
    def kernels(self) -> Mapping[str, Callable[..., None]]:
        table: dict[str, Callable[..., None]] = {}
        for family, target in SOURCES.items():
            for name, kernel in kernels.load(target, (family,)).items():
                table[name] = self._on_current_stream(kernel) if target == "cuda" else kernel
        return table

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        return self._cupy.empty(shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        return self._cupy.zeros(shape, dtype)

    def from_host(self, x: HostArray) -> Array:
        return self._cupy.array(x, order="C")

    def to_host(self, x: Array) -> HostArray:
        return self._cupy.asnumpy(x, order="C")  # type: ignore[no-any-return]

    def contiguous(self, x: Array) -> Array:
        return x if x.flags.c_contiguous else x.copy(order="C")

    def nbytes(self, x: Array) -> int:
        return int(x.nbytes)

    def synchronize(self) -> None:
        self._device.synchronize()

    def memory(self) -> Memory:
        """Memory of the GPU; what CuPy's pool holds unused counts as free."""
        free, total = self._device.mem_info
        return Memory(total, free + self._cupy.get_default_memory_pool().free_bytes())

    def _on_current_stream(self, kernel: Callable[..., None]) -> Callable[..., None]:
        from numba import cuda

        @functools.wraps(kernel)
        def launch(*arguments: Any, **named: Any) -> None:
            stream = self._cupy.cuda.get_current_stream().ptr or LEGACY_STREAM
            kernel(*arguments, **named, stream=cuda.external_stream(stream))

        return launch


def _import_cupy() -> Any:
    try:
        return importlib.import_module("cupy")
    except ImportError as error:
        raise DeviceError(
            f"backend cuda: CuPy cannot be imported: {error}.\n"
            "  Install hpc-alpa[cuda12], or choose the backend host."
        ) from error


def _count_devices(cupy: Any) -> int:
    # getDeviceCount raises without a driver, is_available does not
    if not cupy.cuda.is_available():
        driver = cupy.cuda.runtime.driverGetVersion()
        raise DeviceError(
            f"backend cuda: no GPU that CuPy {cupy.__version__} can use; CUDA runtime "
            f"{cupy.cuda.runtime.runtimeGetVersion()}, driver {driver or 'none'}.\n"
            "  Run on a node with an NVIDIA GPU and a driver for that runtime, "
            "or choose the backend host."
        )
    return int(cupy.cuda.runtime.getDeviceCount())
