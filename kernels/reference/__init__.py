"""The oracle: each kernel once more in plain NumPy.

Written so that it also runs on CuPy arrays, where `arrays.cuda` uses it for the families without a
CUDA kernel: functions come from the module of the array, creation included.
"""

from importlib import import_module
from types import ModuleType

from hpc_alpa.kernels import Array


def array_module(x: Array) -> ModuleType:
    """numpy for a NumPy array, cupy for a CuPy one, without importing what is not in use."""
    return import_module(type(x).__module__.partition(".")[0])
