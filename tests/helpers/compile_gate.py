"""Compile every CUDA kernel to machine code for each supported architecture, without a GPU.

`python -m tests.helpers.compile_gate` prints one line per kernel and architecture: registers,
shared memory, stack and spills, as the assembler reports them. It needs no driver, only
`numba-cuda[cu12]` from PyPI, whose NVVM turns Python into PTX, and whose nvcc brings the assembler
`ptxas`. CUDA 13 has no sm_70 any more.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

ARCHITECTURES = ((7, 0), (8, 0), (9, 0))
# module that must be there -> the PyPI package that brings it
NEEDS = {
    "cuda.bindings": "cuda-bindings<13",
    "numba_cuda": "numba-cuda[cu12]",
    "nvidia.cuda_nvcc": "nvidia-cuda-nvcc-cu12",
    "nvidia.cuda_nvrtc": "nvidia-cuda-nvrtc-cu12",
}


@dataclass(frozen=True)
class Resources:
    """What one thread block of a compiled kernel takes; bytes but for registers and barriers."""

    registers: int
    shared: int
    stack: int
    spill_stores: int
    spill_loads: int
    barriers: int


# field -> where `ptxas -v` says it; a line that is missing means none
PATTERNS = {
    "registers": r"Used (\d+) registers",
    "shared": r"(\d+) bytes smem",
    "stack": r"(\d+) bytes stack",
    "spill_stores": r"(\d+) bytes spill stores",
    "spill_loads": r"(\d+) bytes spill loads",
    "barriers": r"used (\d+) barriers",
}


def missing_packages() -> list[str]:
    """The PyPI packages that the gate needs and this environment lacks."""
    return [package for module, package in NEEDS.items() if not _is_there(module)]


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@contextlib.contextmanager
def _pretend(architecture: tuple[int, int]) -> Iterator[None]:
    """Answer for the device, whose architecture Numba asks for when a kernel calls a function."""
    from numba.cuda import dispatcher

    device = SimpleNamespace(compute_capability=architecture)
    with mock.patch.object(dispatcher, "get_current_device", lambda: device):
        yield


def _helpers(function: Any) -> Iterator[Any]:
    """The device functions that a kernel reaches through its globals and closure."""
    from numba.cuda.dispatcher import CUDADispatcher

    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    for value in (*function.__globals__.values(), *cells):
        if isinstance(value, CUDADispatcher) and value.py_func is not function:
            yield value


def to_ptx(kernel: Any, types: tuple[Any, ...], architecture: tuple[int, int]) -> str:
    """PTX of a kernel for argument types and an architecture."""
    from numba import cuda

    # a device function keeps one compiled form per argument types, of whatever architecture
    pending, seen = list(_helpers(kernel.py_func)), set()
    while pending:
        helper = pending.pop()
        if id(helper) not in seen:
            seen.add(id(helper))
            helper.overloads.clear()
            pending += _helpers(helper.py_func)
    with _pretend(architecture):
        ptx, _ = cuda.compile(
            kernel.py_func, types, device=False, cc=architecture, abi="numba", output="ptx"
        )
    return str(ptx)


def assemble(ptx: str, architecture: tuple[int, int]) -> Resources:
    """Machine code from PTX, thrown away but for what it takes.

    Raises:
        RuntimeError: the assembler refuses; its message.
    """
    nvcc = import_module("nvidia.cuda_nvcc")
    ptxas = str(Path(next(iter(nvcc.__path__))) / "bin" / "ptxas")
    target = "sm_{}{}".format(*architecture)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        command = [ptxas, "-v", f"-arch={target}", "-o", f"{folder}/kernel.cubin", str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ptxas for {target}: {done.stderr}")
    found = {name: re.search(pattern, done.stderr) for name, pattern in PATTERNS.items()}
    return Resources(**{name: int(match[1]) if match else 0 for name, match in found.items()})


def kernels() -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """(family, kernel, argument types) of everything that kernels/cuda launches."""
    from hpc_alpa.kernels import TARGETS

    for family in TARGETS["cuda"]:
        for kernel, types in import_module(f"hpc_alpa.kernels.cuda.{family}").entry_points():
            yield family, kernel, types


def main() -> int:
    """Print the table; 1 where a kernel does not compile or spills registers."""
    if missing := missing_packages():
        print("compile gate: install " + ", ".join(missing), file=sys.stderr)
        return 2
    names = [field.name.replace("_", " ") for field in fields(Resources)]
    print(f"{'arch':6}{'kernel':24}{'first argument':34}" + "".join(f"{n:>14}" for n in names))
    bad = 0
    for architecture in ARCHITECTURES:
        for _, kernel, types in kernels():
            resources = assemble(to_ptx(kernel, types, architecture), architecture)
            bad += resources.spill_stores > 0
            target = "sm_{}{}".format(*architecture)
            print(f"{target:6}{kernel.py_func.__name__.strip('_'):24}{str(types[0]):34}", end="")
            print("".join(f"{value:14}" for value in astuple(resources)))
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
