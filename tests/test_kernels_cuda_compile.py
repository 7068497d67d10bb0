"""Every CUDA kernel to machine code for sm_70, sm_80 and sm_90, without a GPU."""

import re
from typing import Any

import pytest

from tests.helpers import compile_gate

MISSING = compile_gate.missing_packages()
pytestmark = [
    pytest.mark.cuda_compile,
    pytest.mark.skipif(bool(MISSING), reason=f"no CUDA compiler: install {', '.join(MISSING)}"),
]

# 65,536 registers of a processor / 256 threads of a block: two blocks fit up to this many
MAX_REGISTERS = 128


@pytest.mark.parametrize("architecture", compile_gate.ARCHITECTURES)
def test_kernels_assemble_without_spills(architecture: tuple[int, int]) -> None:
    for family, kernel, types in compile_gate.kernels():
        ptx = compile_gate.to_ptx(kernel, types, architecture)
        resources = compile_gate.assemble(ptx, architecture)
        where = f"{family} {kernel.py_func.__name__}{types} {resources}"
        assert "target sm_{}{}".format(*architecture) in ptx, where
        assert resources.spill_stores == resources.spill_loads == resources.stack == 0, where
        assert 0 < resources.registers <= MAX_REGISTERS, where


def test_float32_kernels_compute_in_float32() -> None:
    """One float64 literal would make a kernel several times slower on most GPUs."""
    for family, kernel, types in compile_gate.kernels():
        if "float32" in str(types[0]):
            wide = re.findall(r"(?:fma|mul|add|sub|div)\S*\.f64", to_ptx(kernel, types))
            assert not wide, (family, kernel.py_func.__name__, wide)


def to_ptx(kernel: Any, types: tuple[Any, ...]) -> str:
    return compile_gate.to_ptx(kernel, types, (8, 0))


def test_the_gate_sees_spills_and_errors() -> None:
    from numba import cuda, float32

    @cuda.jit
    def spilling(x: Any, out: Any) -> None:
        i = cuda.grid(1)
        local = cuda.local.array(128, float32)
        for k in range(128):
            local[k] = x[(i + k * 7) % x.size]
        total = float32(0)
        for k in range(128):
            total += local[(k * i) % 128]
        out[i] = total

    flat = float32[::1]
    resources = compile_gate.assemble(to_ptx(spilling, (flat, flat)), (8, 0))
    assert resources.stack >= 512
    with pytest.raises(RuntimeError, match="ptxas for sm_80"):
        compile_gate.assemble("not PTX", (8, 0))
