"""The stated errors of the polynomials that the CPU kernels use."""

from typing import Any

import numba
import numpy as np
import pytest

from hpc_alpa.kernels.cpu.elementary import cos_turns, exp, larger, log

SAMPLES = 400_000


@numba.njit
def each_exp(x: Any, out: Any) -> None:
    for i in range(x.size):
        out[i] = exp(x[i])


@numba.njit
def each_log(x: Any, out: Any) -> None:
    for i in range(x.size):
        out[i] = log(x[i])


@numba.njit
def each_cos_turns(x: Any, out: Any) -> None:
    for i in range(x.size):
        out[i] = cos_turns(x[i])


@numba.njit
def largest(x: Any) -> Any:
    top = x[0]
    for i in range(1, x.size):
        top = larger(top, x[i])
    return top


def run(function: Any, x: Any) -> Any:
    out = np.empty_like(x)
    function(x, out)
    return out


@pytest.mark.parametrize(
    ("dtype", "low", "high", "bound"),
    [("float32", -87.32, 88.37, 2.2e-7), ("float64", -708.38, 709.42, 5e-16)],
)
def test_exp_is_as_accurate_as_stated(dtype: str, low: float, high: float, bound: float) -> None:
    rng = np.random.default_rng(0)
    wide = rng.uniform(low, high, SAMPLES)
    near = rng.standard_normal(SAMPLES)
    x = np.concatenate([wide, near, [low, high, 0.0, -0.0]]).astype(dtype)
    exact = np.exp(x.astype(np.longdouble))
    assert np.max(np.abs(run(each_exp, x) - exact) / exact) < bound
    assert run(each_exp, np.zeros(1, dtype))[0] == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exp_of_what_is_out_of_range(dtype: str) -> None:
    x = np.array([-np.inf, -1e30, -800.0, 800.0, 1e30, np.inf, np.nan], dtype)
    np.testing.assert_array_equal(run(each_exp, x), [0, 0, 0, np.inf, np.inf, np.inf, np.nan])


def test_exp_grows() -> None:
    """Neighbours keep their order up to the stated error, across the seams of the reduction."""
    x = np.arange(-100, 100, 0.5) * np.log(2)
    x = np.sort(np.concatenate([np.nextafter(x, -np.inf), x, np.nextafter(x, np.inf)]))
    y = run(each_exp, x.astype("float32"))
    assert (np.diff(y) >= -2.2e-7 * y[1:]).all()


def test_log_is_as_accurate_as_stated() -> None:
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.random(SAMPLES), 2.0 ** -rng.uniform(0, 53, SAMPLES), [1.0, 2.0**-53]])
    x = x[x > 0]
    exact = np.log(x.astype(np.longdouble))
    np.testing.assert_array_less(
        np.abs(run(each_log, x) - exact), 1.2 * np.spacing(np.abs(exact).astype(float)) + 1e-300
    )
    assert run(each_log, np.ones(1))[0] == 0


def test_cos_turns_is_as_accurate_as_stated() -> None:
    w = np.concatenate([np.random.default_rng(2).random(SAMPLES), np.arange(8) / 8])
    turn = 2 * np.arccos(np.longdouble(-1))
    np.testing.assert_allclose(
        run(each_cos_turns, w), np.cos(turn * w.astype(np.longdouble)).astype(float), atol=2.5e-16
    )
    np.testing.assert_array_equal(run(each_cos_turns, np.arange(4) / 4), [1, 0, -1, 0])


def test_larger_keeps_nan() -> None:
    x = np.random.default_rng(3).standard_normal(77).astype("float32")
    assert largest(x) == x.max()
    x[33] = np.nan
    assert np.isnan(largest(x))
