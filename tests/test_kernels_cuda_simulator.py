"""Runs `test_kernels_cuda.py` in Numba's CUDA simulator, and tests the faster simulator itself."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import cuda_simulator

REPOSITORY = Path(__file__).resolve().parent.parent
needs_greenlet = pytest.mark.skipif(
    not cuda_simulator.is_available(), reason="greenlet is missing: only the plain simulator runs"
)


def simulate(*command: str, timeout: int = 300) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, *command],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def test_kernels_pass_in_the_simulator() -> None:
    done = simulate("-m", "pytest", "-p", "no:cacheprovider", "tests/test_kernels_cuda.py")
    assert done.returncode == 0, done.stdout[-4000:]
    summary = re.search(r"(\d+) passed", done.stdout)
    assert summary is not None
    assert int(summary[1]) >= 25
    assert "skipped" not in done.stdout


KERNEL = """
import numpy as np
from tests.helpers import cuda_simulator as simulator
assert simulator.install()
from numba import cuda, float32

{kernel}

x = np.arange(64, dtype="float32")
results = set()
for order in simulator.ORDERS:
    with simulator.thread_order(order):
        out = np.zeros(64, "float32")
        kernel[1, 64](x, out)
        results.add(out.tobytes())
print(len(results), *out[:2])
"""
REVERSE = """
@cuda.jit
def kernel(x, out):
    shared = cuda.shared.array(64, float32)
    i = cuda.threadIdx.x
    shared[i] = x[i]
    {barrier}
    out[i] = shared[63 - i]
"""


@needs_greenlet
def test_a_missing_barrier_is_seen() -> None:
    """Its result depends on the order of the threads, and is NaN where memory is read unwritten."""
    right = simulate("-c", KERNEL.format(kernel=REVERSE.format(barrier="cuda.syncthreads()")))
    assert right.stdout.split() == ["1", "63.0", "62.0"], right.stderr
    wrong = simulate("-c", KERNEL.format(kernel=REVERSE.format(barrier="pass")))
    assert int(wrong.stdout.split()[0]) > 1, wrong.stderr


@needs_greenlet
def test_threads_at_different_barriers_are_an_error() -> None:
    kernel = """
@cuda.jit
def kernel(x, out):
    if cuda.threadIdx.x < 32:
        cuda.syncthreads()
    else:
        cuda.syncthreads()
"""
    done = simulate("-c", KERNEL.format(kernel=kernel))
    assert "BarrierError: threads of block [0, 0, 0] wait in different places" in done.stderr


@needs_greenlet
def test_two_shared_arrays_on_one_line_are_two() -> None:
    kernel = """
@cuda.jit
def kernel(x, out):
    a = cuda.shared.array(64, float32); b = cuda.shared.array(64, float32)
    i = cuda.threadIdx.x
    a[i] = x[i]
    b[i] = -1
    cuda.syncthreads()
    out[i] = a[i] + 1
"""
    assert simulate("-c", KERNEL.format(kernel=kernel)).stdout.split() == ["1", "1.0", "2.0"]


@needs_greenlet
def test_warp_shuffles_and_ballot() -> None:
    kernel = """
@cuda.jit
def kernel(x, out):
    i = cuda.threadIdx.x
    value = x[i]
    for delta in (16, 8, 4, 2, 1):
        value += cuda.shfl_down_sync(0xFFFFFFFF, value, delta)
    first = cuda.shfl_sync(0xFFFFFFFF, value, 0)
    votes = cuda.ballot_sync(0xFFFFFFFF, i % 2 == 1)
    out[i] = first if i else votes % 16
"""
    done = simulate("-c", KERNEL.format(kernel=kernel))
    assert done.stdout.split() == ["1", "10.0", str(float(sum(range(32))))], done.stderr
