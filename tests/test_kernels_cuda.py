"""The CUDA kernels against the NumPy reference: on a GPU, or in Numba's simulator.

`test_kernels_cuda_simulator.py` runs this file in a process of its own, because the simulator has
to be chosen before Numba is imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.helpers import cuda_simulator
from tests.helpers.kernel_cases import (
    MAKERS,
    Arguments,
    agree,
    arguments_of,
    in_float64,
    map_arrays,
    normal,
)

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
FAST = SIMULATED and cuda_simulator.install()

from hpc_alpa import kernels  # noqa: E402  (numba is imported by the simulator's patch first)

pytestmark = [] if SIMULATED else [pytest.mark.gpu]

NAMES = [name for family in kernels.TARGETS["cuda"] for name in kernels.FAMILIES[family]]
REFERENCE = kernels.load("reference")
# one system thread per CUDA thread makes a barrier cost milliseconds
ORDERS = tuple(cuda_simulator.ORDERS) if FAST else ("forward",)

Run = Callable[[str, Arguments], Arguments]


@pytest.fixture(params=ORDERS if SIMULATED else ("device",))
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs a kernel on copies of its arguments and returns them, as host arrays."""
    if not SIMULATED:
        from hpc_alpa.arrays import BACKENDS

        arrays = BACKENDS["cuda"]()

        def on_device(name: str, arguments: Arguments) -> Arguments:
            copies = map_arrays(arrays.from_host, arguments)
            arrays.kernels[name](*copies)
            host = [arrays.to_host(x) if isinstance(x, arrays.xp.ndarray) else x for x in copies]
            return tuple(host)

        yield on_device
        return

    table = kernels.load("cuda")
    # fewer threads than columns, so that each has several; and it is faster
    for family in ("layer_norm", "softmax"):
        monkeypatch.setattr(f"hpc_alpa.kernels.cuda.{family}.width", lambda length: 8)

    def simulated(name: str, arguments: Arguments) -> Arguments:
        copies = map_arrays(np.copy, arguments)
        table[name](*copies)
        return copies

    with cuda_simulator.thread_order(request.param):
        yield simulated


def chosen(arguments: list[Arguments]) -> list[Arguments]:
    """All cases, or few where each costs seconds."""
    return arguments if FAST or not SIMULATED else arguments[1:4:2]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_kernel_matches_reference(run: Run, name: str, dtype: str) -> None:
    digits = 64 if name.startswith("layer_norm") else 16
    for arguments in chosen(arguments_of(name, dtype)):
        expected = map_arrays(in_float64, arguments)
        REFERENCE[name](*expected)
        agree(run(name, arguments), expected, digits)


@pytest.mark.parametrize("dtype", ["bool", "uint16", "complex128"])
def test_pack_any_element_type(run: Run, dtype: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2, (3, 4, 5)).astype(dtype)
    *_, packed = run("pack", (x, (1, 1, 2), np.zeros((2, 3, 3), dtype)))
    np.testing.assert_array_equal(packed, x[1:, 1:, 2:])
    *_, unpacked = run("unpack", (packed, (0, 0, 0), np.zeros((3, 4, 5), dtype)))
    np.testing.assert_array_equal(unpacked[:2, :3, :3], packed)
    assert not unpacked[2].any()


@pytest.mark.parametrize("name", ["ema", "layer_norm", "softmax"])
def test_out_may_be_an_input(run: Run, name: str) -> None:
    *arguments, out = arguments_of(name, "float32")[1]
    expected = run(name, (*arguments, out))[-1]
    x = arguments[0].copy()
    if SIMULATED:
        kernels.load("cuda")[name](x, *arguments[1:], x)
        np.testing.assert_array_equal(x, expected)
    else:
        from hpc_alpa.arrays import BACKENDS

        arrays = BACKENDS["cuda"]()
        first, *rest = map_arrays(arrays.from_host, tuple(arguments))
        arrays.kernels[name](first, *rest, first)
        np.testing.assert_array_equal(arrays.to_host(first), expected)


def test_rows_longer_than_a_block(run: Run) -> None:
    rng = np.random.default_rng(1)
    columns = 40 if SIMULATED and not FAST else 700
    x = normal(rng, (1, 2, columns), "float32", 3)
    arguments = (x, 0.5, True, columns // 2, 0, np.full_like(x, np.nan))
    expected = map_arrays(in_float64, arguments)
    REFERENCE["softmax"](*expected)
    agree(run("softmax", arguments), expected, 16)


def test_softmax_lets_nan_through_and_masks_minus_infinity(run: Run) -> None:
    x = np.array([[[0.0, -np.inf, 0.0], [-np.inf] * 3, [0.0, np.nan, 0.0]]], "float32")
    out: Any = run("softmax", (x, 1.0, False, 0, 0, np.empty_like(x)))[-1]
    np.testing.assert_array_equal(out[0, 0], [0.5, 0.0, 0.5])
    np.testing.assert_array_equal(out[0, 1], 0.0)
    assert np.isnan(out[0, 2]).all()


def test_every_kernel_is_listed_for_the_compile_gate() -> None:
    from importlib import import_module

    for family in kernels.TARGETS["cuda"]:
        module = import_module(f"hpc_alpa.kernels.cuda.{family}")
        assert all(name in MAKERS for name in kernels.FAMILIES[family])
        assert len(module.entry_points()) >= 2 * len(kernels.FAMILIES[family])
