"""The CUDA backend on a machine without a GPU: its errors, and its names against real CuPy's."""

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from hpc_alpa import kernels
from hpc_alpa.arrays import BACKENDS, CudaArrays, DeviceError
from hpc_alpa.arrays.cuda import SOURCES


def test_every_family_has_one_source() -> None:
    assert list(SOURCES) == list(kernels.FAMILIES)
    assert {f for f, target in SOURCES.items() if target == "cuda"} == set(kernels.TARGETS["cuda"])
    assert all(family in kernels.TARGETS[target] for family, target in SOURCES.items())


def test_without_cupy_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(
        DeviceError, match=r"CuPy cannot be imported(.|\n)*Install hpc-alpa\[cuda12"
    ):
        BACKENDS["cuda"]()


def without_driver() -> Any:
    """What CuPy answers where there is no driver, as seen on such a machine."""
    cuda = SimpleNamespace(
        is_available=lambda: False,
        runtime=SimpleNamespace(driverGetVersion=lambda: 0, runtimeGetVersion=lambda: 12090),
    )
    return SimpleNamespace(__version__="14.2.0", cuda=cuda)


def with_devices(count: int) -> Any:
    module = ModuleType("cupy")
    module.cuda = SimpleNamespace(  # type: ignore[attr-defined]
        is_available=lambda: True,
        runtime=SimpleNamespace(getDeviceCount=lambda: count),
        Device=lambda i: SimpleNamespace(use=lambda: None),
    )
    return module


def test_without_a_driver_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", without_driver())
    with pytest.raises(DeviceError, match="no GPU that CuPy 14.2.0 can use.*12090, driver none"):
        CudaArrays()


def test_a_device_that_is_not_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", with_devices(2))
    CudaArrays(1)
    with pytest.raises(DeviceError, match="device 2 was asked for, but this process sees 2"):
        CudaArrays(2)


@pytest.mark.parametrize(
    ("visible", "local_rank", "local_size", "device"),
    [(1, 3, 4, 0), (4, 3, 4, 3), (8, 1, 2, 1), (1, 0, 1, 0)],
)
def test_the_device_of_a_rank(
    monkeypatch: pytest.MonkeyPatch, visible: int, local_rank: int, local_size: int, device: int
) -> None:
    """Slurm shows each rank its own GPU, a plain mpirun shows all of the host's."""
    used: list[int] = []
    module = with_devices(visible)
    module.cuda.Device = lambda i: SimpleNamespace(use=lambda: used.append(i))
    monkeypatch.setitem(sys.modules, "cupy", module)
    CudaArrays.of_rank(local_rank, local_size)
    assert used == [device]


def test_more_ranks_than_gpus_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", with_devices(2))
    with pytest.raises(DeviceError, match=r"4 ranks on a host .* sees 2 GPUs"):
        CudaArrays.of_rank(0, 4)


def test_real_cupy_without_a_gpu() -> None:
    cupy = pytest.importorskip("cupy")
    if cupy.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(DeviceError, match="no GPU that CuPy"):
        CudaArrays()


def test_cupy_has_what_the_reference_uses() -> None:
    """The functions of `xp` in the reference, looked up in CuPy's own namespace."""
    cupy = pytest.importorskip("cupy")
    used = set()
    for family in (f for f, target in SOURCES.items() if target == "reference"):
        module = importlib.import_module(f"hpc_alpa.kernels.reference.{family}")
        source = Path(str(module.__file__)).read_text()
        used |= set(re.findall(r"\b(?:xp|array_module\(\w+\))\.(\w+)", source))
    assert {"exp", "where", "arange", "tanh"} <= used
    assert not {name for name in used if not hasattr(cupy, name)}
    names = ("asnumpy", "empty", "zeros", "array", "ndarray", "get_default_memory_pool")
    assert all(hasattr(cupy, name) for name in names)
    assert all(hasattr(cupy.ndarray, name) for name in ("copy", "flags", "nbytes", "view"))
    assert all(hasattr(cupy.cuda, name) for name in ("Device", "get_current_stream"))
    assert all(hasattr(cupy.cuda.Device, name) for name in ("use", "synchronize", "mem_info"))
