"""The array backends: what both give, and that the host's kernels are the compiled ones."""

import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from hpc_alpa import kernels
from hpc_alpa.arrays import BACKENDS, Arrays

CHOICES = [pytest.param("cuda", marks=pytest.mark.gpu), "host"]


@pytest.fixture(params=CHOICES)
def arrays(request: pytest.FixtureRequest) -> Iterator[Arrays]:
    yield BACKENDS[request.param]()


def test_names_are_those_of_the_table() -> None:
    assert list(BACKENDS) == sorted(BACKENDS)
    assert BACKENDS["host"]().name == "host"


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "bool"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 5)])
def test_arrays_come_and_go(arrays: Arrays, shape: tuple[int, ...], dtype: str) -> None:
    values = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    x = arrays.from_host(values)
    back = arrays.to_host(x)
    np.testing.assert_array_equal(back, values)
    assert (back.shape, back.dtype) == (values.shape, values.dtype)
    assert isinstance(back, np.ndarray)
    assert arrays.nbytes(x) == values.nbytes
    zeros = arrays.zeros(shape, dtype)
    np.testing.assert_array_equal(arrays.to_host(zeros), np.zeros(shape))
    empty = arrays.empty(shape, dtype)
    assert (empty.shape, empty.dtype) == (shape, np.dtype(dtype))
    assert empty.flags.c_contiguous
    assert zeros.flags.c_contiguous


def test_copies_are_copies(arrays: Arrays) -> None:
    values = np.arange(4.0)
    x = arrays.from_host(values)
    values[0] = 9
    back = arrays.to_host(x)
    back[1] = 9
    np.testing.assert_array_equal(arrays.to_host(x), [0, 1, 2, 3])


def test_contiguous_copies_only_what_is_not(arrays: Arrays) -> None:
    x = arrays.from_host(np.arange(12.0).reshape(3, 4))
    assert arrays.contiguous(x) is x
    turned = arrays.contiguous(x.T)
    assert turned.flags.c_contiguous
    np.testing.assert_array_equal(arrays.to_host(turned), np.arange(12).reshape(3, 4).T)
    scalar = arrays.from_host(np.array(3.0))
    assert arrays.contiguous(scalar).shape == ()


def test_from_host_makes_them_contiguous(arrays: Arrays) -> None:
    turned = np.arange(12.0).reshape(3, 4).T
    x = arrays.from_host(turned)
    assert x.flags.c_contiguous
    np.testing.assert_array_equal(arrays.to_host(x), turned)


def test_memory_and_functions(arrays: Arrays) -> None:
    memory = arrays.memory()
    assert 0 < memory.free <= memory.total
    x = arrays.from_host(np.ones((2, 3), "float32"))
    total = arrays.xp.sum(x @ x.T)
    arrays.synchronize()
    assert float(total) == 12


def test_every_kernel_is_there_and_takes_names(arrays: Arrays) -> None:
    assert set(arrays.kernels) == {name for names in kernels.FAMILIES.values() for name in names}
    x = arrays.from_host(np.array([-1.0, 0.0, 2.0], "float32"))
    out = arrays.empty((3,), "float32")
    arrays.kernels["gelu"](x, out=out)
    np.testing.assert_allclose(arrays.to_host(out), [-0.158808, 0, 1.954598], rtol=1e-5)
    y = arrays.empty((1, 1, 3), "float32")
    arrays.kernels["softmax"](x.reshape(1, 1, 3), 1.0, False, 0, 0, out=y)
    np.testing.assert_allclose(float(arrays.to_host(y).sum()), 1, rtol=1e-6)


def test_a_tile_of_random_values(arrays: Arrays) -> None:
    fill: Callable[..., None] = arrays.kernels["random"]
    whole, tile = arrays.empty((4, 6), "float64"), arrays.empty((2, 3), "float64")
    fill("uniform", 1, 2, 3, (0, 0), (4, 6), out=whole)
    fill("uniform", 1, 2, 3, (1, 2), (4, 6), out=tile)
    np.testing.assert_array_equal(arrays.to_host(tile), arrays.to_host(whole)[1:3, 2:5])


def test_host_kernels_are_the_compiled_ones() -> None:
    assert BACKENDS["host"]().kernels["softmax"].__module__ == "hpc_alpa.kernels.cpu.softmax"


def test_importing_the_room_starts_nothing() -> None:
    code = "import sys, hpc_alpa.arrays; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"cupy", "numba", "mpi4py.MPI"} & set(done.stdout.split())
