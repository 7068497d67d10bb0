"""The NumPy reference against finite differences, adjoint identities and definitions."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hpc_alpa import kernels
from tests.helpers.device_double import DeviceArray, to_host
from tests.helpers.kernel_cases import MAKERS, agree, arguments_of, map_arrays, normal

REFERENCE = kernels.load("reference")
rng = np.random.default_rng(7)


def result(name: str, *arguments: Any, shape: tuple[int, ...]) -> Any:
    out = np.full(shape, np.nan)
    REFERENCE[name](*arguments, out)
    return out


def check_gradient(function: Callable[[Any], Any], x: Any, gradient: Callable[[Any], Any]) -> None:
    """<ct, df/dx v> by central differences = <gradient(ct), v> for random ct and v."""
    ct, v = rng.standard_normal(function(x).shape), rng.standard_normal(x.shape)
    step = 1e-6
    slope = (function(x + step * v) - function(x - step * v)) / (2 * step)
    assert np.sum(gradient(ct) * v) == pytest.approx(np.sum(ct * slope), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("causal", [False, True])
def test_softmax_gradient(causal: bool) -> None:
    x = rng.standard_normal((2, 3, 5))

    def softmax(x: Any) -> Any:
        return result("softmax", x, 0.7, causal, 1, 0, shape=x.shape)

    y = softmax(x)
    check_gradient(softmax, x, lambda ct: result("softmax_grad", y, ct, 0.7, shape=x.shape))


def test_softmax_of_a_row_sums_to_one() -> None:
    y = result("softmax", rng.standard_normal((2, 4, 9)), 3.0, True, 0, 0, shape=(2, 4, 9))
    np.testing.assert_allclose(y.sum(axis=-1), 1)
    assert not np.triu(y[0], 1).any()


def test_causal_tiles_make_the_whole() -> None:
    x = rng.standard_normal((1, 6, 4))
    whole = result("softmax", x, 1.0, True, 0, 0, shape=x.shape)
    for row in (0, 2, 4):
        tile = np.ascontiguousarray(x[:, row : row + 2])
        np.testing.assert_array_equal(
            result("softmax", tile, 1.0, True, row, 0, shape=tile.shape), whole[:, row : row + 2]
        )


def test_causal_columns_of_a_tile() -> None:
    """Columns 4.. of a tile are masked as in the whole: rows before 4 see none of them."""
    y = result("softmax", np.zeros((1, 8, 4)), 1.0, True, 0, 4, shape=(1, 8, 4))
    counts = np.count_nonzero(y[0], axis=1)
    np.testing.assert_array_equal(counts, [0, 0, 0, 0, 1, 2, 3, 4])
    assert np.isfinite(y).all()


def test_layer_norm_gradients() -> None:
    x, scale, bias = rng.standard_normal((4, 6)), rng.standard_normal(6), rng.standard_normal(6)

    def of_x(x: Any) -> Any:
        return result("layer_norm", x, scale, bias, 1e-5, shape=x.shape)

    def of_scale(scale: Any) -> Any:
        return result("layer_norm", x, scale, bias, 1e-5, shape=x.shape)

    check_gradient(of_x, x, lambda ct: result("layer_norm_grad", x, scale, ct, 1e-5, shape=x.shape))
    check_gradient(
        of_scale, scale, lambda ct: result("layer_norm_grad_scale", x, ct, 1e-5, shape=(6,))
    )


def test_gelu_gradient_and_definition() -> None:
    x = rng.standard_normal(50) * 3

    def gelu(x: Any) -> Any:
        return result("gelu", x, shape=x.shape)

    check_gradient(gelu, x, lambda ct: result("gelu_grad", x, ct, shape=x.shape))
    exact = x * [0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x]
    np.testing.assert_allclose(gelu(x), exact, atol=1e-3)


def test_cross_entropy_gradient_and_definition() -> None:
    logits, labels = rng.standard_normal((5, 7)), rng.integers(0, 7, 5)

    def loss(logits: Any) -> Any:
        return result("cross_entropy", logits, labels, shape=(5,))

    check_gradient(
        loss, logits, lambda ct: result("cross_entropy_grad", logits, labels, ct, shape=(5, 7))
    )
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(loss(logits), -np.log(p[np.arange(5), labels]))


def test_adam_is_its_parts_and_kingma_and_ba() -> None:
    p, m, v = rng.standard_normal(9), np.zeros(9), np.zeros(9)
    expected, first, second = p.copy(), m.copy(), v.copy()
    for t in range(1, 6):
        g = rng.standard_normal(9)
        corrections = 1 / (1 - 0.9**t), 1 / (1 - 0.99**t)
        REFERENCE["adam"](p, g, m, v, 0.1, 0.9, 0.99, *corrections, 1e-8, 0.3)
        first = 0.9 * first + 0.1 * g
        second = 0.99 * second + 0.01 * g**2
        ratio = first / (1 - 0.9**t) / (np.sqrt(second / (1 - 0.99**t)) + 1e-8)
        expected = expected - 0.1 * (ratio + 0.3 * expected)
    np.testing.assert_allclose(p, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("forward", "adjoint"), [("gather", "scatter_add"), ("pick", "unpick"), ("pack", "unpack")]
)
def test_indexing_and_its_adjoint(forward: str, adjoint: str) -> None:
    """<ct, F x> = <F* ct, x>."""
    for arguments in arguments_of(forward, "float64"):
        x, *where, out = arguments
        REFERENCE[forward](x, *where, out)
        ct, back = normal(rng, out.shape, "float64"), np.zeros(x.shape)
        REFERENCE[adjoint](ct, *where, back)
        assert np.vdot(ct, out) == pytest.approx(np.vdot(back, x), abs=1e-12)


def test_shards_of_a_table_add_up() -> None:
    table, ids = rng.standard_normal((12, 3)), rng.integers(0, 12, 20)
    parts = [
        result("gather", table[start : start + 4], ids, start, shape=(20, 3)) for start in (0, 4, 8)
    ]
    np.testing.assert_array_equal(sum(parts), table[ids])


@pytest.mark.parametrize("name", [*MAKERS, "random"])
def test_reference_stays_on_the_device(name: str) -> None:
    """It uses the functions of the arrays' own module and never mixes in a NumPy array."""
    cases = [("normal", 1, 2, 3, (1, 2), (4, 9), np.empty((2, 3)))]
    for arguments in cases if name == "random" else arguments_of(name, "float64"):
        on_device = map_arrays(lambda x: DeviceArray(x.copy()), arguments)
        REFERENCE[name](*on_device)
        on_host = map_arrays(np.copy, arguments)
        REFERENCE[name](*on_host)
        agree(tuple(map(to_host, on_device)), on_host, 0)
