"""Arrays of one device behind one protocol, chosen by name: `BACKENDS["host"]()`."""

from collections.abc import Callable

from hpc_alpa.arrays.cuda import CudaArrays
from hpc_alpa.arrays.host import HostArrays
from hpc_alpa.arrays.protocol import Array, Arrays, DeviceError, Memory

# alphabetical: name -> factory
BACKENDS: dict[str, Callable[..., Arrays]] = {
    "cuda": CudaArrays,
    "host": HostArrays,
}

__all__ = ["BACKENDS", "Array", "Arrays", "CudaArrays", "DeviceError", "HostArrays", "Memory"]
