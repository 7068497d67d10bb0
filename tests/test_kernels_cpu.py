"""The compiled CPU kernels against the NumPy reference in float64, on random input."""

import platform
import re
import threading
from importlib import import_module
from typing import Any
from unittest import mock

import ml_dtypes
import numba
import numpy as np
import pytest

from hpc_alpa import kernels
from hpc_alpa.errors import DataError
from hpc_alpa.kernels.cpu.compile import FAST
from tests.helpers.kernel_cases import MAKERS, arguments_of, compare, garbage, map_arrays, normal

CPU, REFERENCE = kernels.load("cpu"), kernels.load("reference")
FLOATS = ("float32", "float64")
# units in the last place of the largest element; a sum over rows or a long row loses a few
DIGITS = {"layer_norm_grad": 64.0, "layer_norm_grad_scale": 32.0}


def test_every_kernel_has_cases() -> None:
    assert set(MAKERS) | {"random"} == set(CPU) == set(REFERENCE)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", MAKERS)
def test_kernel_matches_reference(name: str, dtype: str) -> None:
    for arguments in arguments_of(name, dtype):
        compare(CPU[name], REFERENCE[name], arguments, DIGITS.get(name, 16.0))


@pytest.mark.parametrize("name", sorted(set(MAKERS) - {"adam"}))  # adam writes its inputs
def test_kernel_reads_what_may_not_be_written(name: str) -> None:
    arguments = arguments_of(name, "float32")[2]
    for x in arguments[:-1]:
        if isinstance(x, np.ndarray):
            x.flags.writeable = False
    expected = map_arrays(np.copy, arguments)
    CPU[name](*arguments)
    CPU[name](*expected)
    np.testing.assert_array_equal(arguments[-1], expected[-1])


@pytest.mark.parametrize(
    ("name", "position"),
    [
        ("adam_update", 0),
        ("cross_entropy_grad", 0),
        ("ema", 0),
        ("gelu", 0),
        ("gelu_grad", 1),
        ("layer_norm", 0),
        ("layer_norm_grad", 2),
        ("softmax", 0),
        ("softmax_grad", 1),
    ],
)
@pytest.mark.parametrize("target", ["cpu", "reference"])
def test_out_may_be_an_input(target: str, name: str, position: int) -> None:
    kernel = kernels.load(target)[name]
    for arguments in arguments_of(name, "float32"):
        expected = map_arrays(np.copy, arguments)
        kernel(*expected)
        actual = map_arrays(np.copy, arguments)
        kernel(*actual[:-1], actual[position])
        np.testing.assert_array_equal(actual[position], expected[-1])


@pytest.mark.parametrize("target", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_softmax_of_masks_and_extremes(target: str, dtype: str) -> None:
    softmax = kernels.load(target)["softmax"]
    x = np.array([[[0.0, -np.inf, 0.0], [-np.inf] * 3, [0.0, np.nan, 0.0], [3e4, -3e4, 3e4]]])
    out = garbage(x.shape, dtype)
    softmax(x.astype(dtype), 1.0, False, 0, 0, out)
    np.testing.assert_array_equal(out[0, 0], [0.5, 0.0, 0.5])
    np.testing.assert_array_equal(out[0, 1], 0.0)
    assert np.isnan(out[0, 2]).all()
    np.testing.assert_array_equal(out[0, 3], [0.5, 0.0, 0.5])


@pytest.mark.parametrize("target", ["cpu", "reference"])
def test_nan_reaches_the_loss(target: str) -> None:
    table = kernels.load(target)
    logits = np.zeros((2, 40), "float32")
    logits[1, 7] = np.nan
    out = garbage((2,), "float32")
    table["cross_entropy"](logits, np.array([0, 0]), out)
    assert out[0] == pytest.approx(np.log(40))
    assert np.isnan(out[1])
    y = garbage((40,), "float32")
    table["gelu"](logits[1], y)
    assert np.isnan(y[7])
    assert np.isfinite(np.delete(y, 7)).all()


def test_gelu_far_from_zero() -> None:
    x = np.array([-1e30, -100.0, -20.0, 20.0, 100.0, 1e30, -np.inf, np.inf])
    for dtype in FLOATS:
        y, slope = garbage(x.shape, dtype), garbage(x.shape, dtype)
        CPU["gelu"](x.astype(dtype), y)
        CPU["gelu_grad"](x[1:5].astype(dtype), np.ones(4, dtype), slope[:4])
        np.testing.assert_allclose(y[:6], np.maximum(x[:6], 0), rtol=1e-6, atol=1e-30)
        np.testing.assert_allclose(slope[:4], x[1:5] > 0, atol=1e-30)


@pytest.mark.parametrize("target", ["cpu", "reference"])
@pytest.mark.parametrize("label", [-1, 5, 2**31])
def test_label_outside_is_an_error(target: str, label: int) -> None:
    table = kernels.load(target)
    logits, labels = np.zeros((3, 5)), np.array([0, 4, label])
    with pytest.raises(DataError, match=f"label {label} in row 2 is none of the 5 classes 0..4"):
        table["cross_entropy"](logits, labels, np.empty(3))
    with pytest.raises(DataError, match=f"label {label} in row 2"):
        table["cross_entropy_grad"](logits, labels, np.ones(3), np.empty((3, 5)))


@pytest.mark.parametrize(
    "dtype",
    ["bool", "int8", "uint16", "int32", "uint64", "complex128", "float16", ml_dtypes.bfloat16],
)
def test_pack_any_element_type(dtype: Any) -> None:
    rng = np.random.default_rng(3)
    for _ in range(40):
        shape = tuple(rng.integers(1, 7, rng.integers(1, 5)))
        starts = tuple(int(rng.integers(0, extent)) for extent in shape)
        tile = tuple(int(rng.integers(0, e - s + 1)) for e, s in zip(shape, starts, strict=True))
        slices = tuple(slice(s, s + t) for s, t in zip(starts, tile, strict=True))
        x = rng.integers(0, 2, shape).astype(dtype)
        buffer = np.zeros(tile, dtype)
        CPU["pack"](x, starts, buffer)
        np.testing.assert_array_equal(buffer, x[slices])
        back, expected = x.copy(), x.copy()
        other = rng.integers(0, 2, tile).astype(dtype)
        expected[slices] = other
        CPU["unpack"](other, starts, back)
        np.testing.assert_array_equal(back, expected)


def test_pack_refuses_a_tile_that_sticks_out() -> None:
    with pytest.raises(AssertionError, match=r"tile \(2, 2\) at \(0, 2\) is not inside \(3, 3\)"):
        CPU["pack"](np.zeros((3, 3)), (0, 2), np.zeros((2, 2)))


def test_scalars_of_any_kind_compile_once() -> None:
    from hpc_alpa.kernels.cpu.adam import _ema

    old, new = normal(np.random.default_rng(0), (2, 8), "float32")
    out = np.empty_like(old)
    CPU["ema"](old, new, 0.5, out)
    forms = len(_ema.signatures)  # type: ignore[attr-defined]
    for decay in (np.float32(0.5), np.float64(0.5), np.array(0.5, "float32"), 1):
        CPU["ema"](old, new, decay, out)
    assert len(_ema.signatures) == forms  # type: ignore[attr-defined]
    assert out.dtype == np.float32


def test_kernels_run_on_several_threads_at_once() -> None:
    arguments = arguments_of("softmax", "float64")[10]
    expected = map_arrays(np.copy, arguments)
    CPU["softmax"](*expected)
    results = [map_arrays(np.copy, arguments) for _ in range(8)]
    threads = [threading.Thread(target=CPU["softmax"], args=result) for result in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        np.testing.assert_array_equal(result[-1], expected[-1])


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86 machine code")
@pytest.mark.parametrize("name", ["cross_entropy_grad", "gelu", "gelu_grad", "softmax"])
def test_float32_exp_runs_on_vector_lanes(name: str) -> None:
    """Its polynomial is packed instructions: one element at a time a kernel is ten times slower."""
    family = next(family for family, names in kernels.FAMILIES.items() if name in names)
    module = import_module(f"hpc_alpa.kernels.cpu.{family}")
    # compiled afresh, because code that comes from the cache cannot be read
    function = getattr(module, f"_{name}").py_func
    fresh = numba.njit(fastmath=set(FAST), error_model="numpy")(function)
    with mock.patch.object(module, f"_{name}", fresh):
        CPU[name](*arguments_of(name, "float32")[2])
    (code,) = fresh.inspect_asm().values()
    words = [line.split()[0] for line in code.splitlines() if line.split()]
    packed = sum(
        re.fullmatch(r"v?(mul|add|sub|fn?m(add|sub)\d*)ps", word) is not None for word in words
    )
    assert packed >= 20, f"{packed} packed multiplications and additions"
