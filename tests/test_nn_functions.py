"""hpc_alpa.nn: against formulas in float64, on traced and on plain arrays, with gradients."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import hpc_alpa.trace as ht
from hpc_alpa import nn
from hpc_alpa.errors import TracingError
from hpc_alpa.pytree import flatten
from tests.helpers.traced import require_same

RNG = np.random.default_rng(5)


def normal(*shape: int, dtype: str = "float64") -> np.ndarray:
    return RNG.normal(size=shape).astype(dtype)


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    z = np.exp(x - x.max(axis=axis, keepdims=True))
    result: np.ndarray = z / z.sum(axis=axis, keepdims=True)
    return result


def windows(x: np.ndarray, window: int, stride: int) -> np.ndarray:
    """(batch, windows, windows, channels, row, column)."""
    every = np.lib.stride_tricks.sliding_window_view(x, (window, window), (1, 2))
    return every[:, ::stride, ::stride]


def conv(stride: int, padding: tuple[int, int]) -> np.ndarray:
    x = np.pad(IMAGE, ((0, 0), padding, padding, (0, 0)))
    made: np.ndarray = np.einsum("npqcij,ijcd->npqd", windows(x, 3, stride), KERNEL)
    return made


def grouped(x: np.ndarray) -> np.ndarray:
    halves = [np.einsum("npqcij,ijcd->npqd", windows(x[..., c : c + 2], 3, 1),
                        KERNEL[:, :, :2, c : c + 2]) for c in (0, 2)]  # fmt: skip
    return np.concatenate(halves, -1)


def causal(x: np.ndarray) -> np.ndarray:
    mask = np.tril(np.ones(x.shape[-2:], bool))
    return softmax(np.where(mask, x, -np.inf))


SCALE, BIAS = normal(6), normal(6)
IMAGE, KERNEL = normal(2, 7, 7, 4), normal(3, 3, 4, 5)
LABELS = RNG.integers(0, 6, (2, 4))
Q, K, V = normal(2, 3, 4, 5), normal(2, 3, 4, 5), normal(2, 3, 4, 7)


def attention(causally: bool) -> np.ndarray:
    scores = np.einsum("bhqd,bhkd->bhqk", Q, K) / math.sqrt(5)
    weights = causal(scores) if causally else softmax(scores)
    made: np.ndarray = np.einsum("bhqk,bhkv->bhqv", weights, V)
    return made


def layer_norm(x: np.ndarray) -> np.ndarray:
    d = x - x.mean(-1, keepdims=True)
    made: np.ndarray = d / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * SCALE + BIAS
    return made


def batch_norm(x: np.ndarray) -> np.ndarray:
    d = x - x.mean((0, 1))
    made: np.ndarray = d / np.sqrt(x.var((0, 1)) + 1e-5) * SCALE + BIAS
    return made


X = normal(2, 4, 6)
# name: (function, argument, expected); alphabetical
CASES: dict[str, tuple[Callable[[Any], Any], Any, Any]] = {
    "attention": (lambda q: nn.attention(q, K, V), Q, attention(True)),
    "attention, not causal": (lambda q: nn.attention(q, K, V, causal=False), Q, attention(False)),
    "avg_pool": (lambda x: nn.avg_pool(x, 3), IMAGE, windows(IMAGE, 3, 3).mean((-2, -1))),
    "batch_norm": (lambda x: nn.batch_norm(x, SCALE, BIAS), X, batch_norm(X)),
    "batch_norm_inference": (
        lambda x: nn.batch_norm_inference(x, SCALE, BIAS, X.mean((0, 1)), X.var((0, 1))),
        X,
        batch_norm(X),
    ),
    "conv": (lambda x: nn.conv(x, KERNEL[0], 2, 1), IMAGE[0], None),
    "conv2d": (lambda x: nn.conv2d(x, KERNEL), IMAGE, conv(1, (1, 1))),
    "conv2d, groups": (
        lambda x: nn.conv2d(x, KERNEL[:, :, :2, :4], padding="valid"),
        IMAGE,
        grouped(IMAGE),
    ),
    "conv2d, stride 2": (lambda x: nn.conv2d(x, KERNEL, 2), IMAGE, conv(2, (1, 1))),
    "conv2d, valid": (lambda x: nn.conv2d(x, KERNEL, (1, 1), "valid"), IMAGE, conv(1, (0, 0))),
    "conv2d, weights": (lambda w: nn.conv2d(IMAGE, w, 2, [(0, 1), (2, 0)]), KERNEL, None),
    "cross_entropy": (
        lambda x: nn.cross_entropy(x, LABELS),
        X,
        -np.log(np.take_along_axis(softmax(X), LABELS[..., None], -1)[..., 0]),
    ),
    "cross_entropy of one row": (
        lambda x: nn.cross_entropy(x, np.int64(2)),
        X[0, 0],
        -np.log(softmax(X[0, 0])[2]),
    ),
    "embedding": (lambda t: nn.embedding(t, LABELS), normal(6, 3), None),
    "gelu": (
        nn.gelu,
        X,
        0.5 * X * (1 + np.tanh(math.sqrt(2 / math.pi) * (X + 0.044715 * X**3))),
    ),
    "layer_norm": (lambda x: nn.layer_norm(x, SCALE, BIAS), X, layer_norm(X)),
    "log_softmax": (nn.log_softmax, X, np.log(softmax(X))),
    "log_softmax, dim 1": (lambda x: nn.log_softmax(x, axis=1), X, np.log(softmax(X, 1))),
    "max_pool": (lambda x: nn.max_pool(x, 3, 2), IMAGE, windows(IMAGE, 3, 2).max((-2, -1))),
    "max_pool, same": (lambda x: nn.max_pool(x, (2, 2), 1, "same"), IMAGE, None),
    "relu": (nn.relu, X, np.where(X > 0, X, 0)),
    "sigmoid": (nn.sigmoid, X, 1 / (1 + np.exp(-X))),
    "silu": (nn.silu, X, X / (1 + np.exp(-X))),
    "softmax": (nn.softmax, X, softmax(X)),
    "softmax, causal": (lambda x: nn.softmax(x, causal=True, scale=0.3), X, causal(0.3 * X)),
    "softmax, dim 0": (lambda x: nn.softmax(x, axis=0, scale=2.0), X, softmax(2 * X, 0)),
    "top_k": (lambda x: nn.top_k(x, 3)[0], X, -np.sort(-X, -1)[..., :3]),
}


@pytest.mark.parametrize("name", CASES)
def test_values(name: str) -> None:
    function, x, expected = CASES[name]
    expected = x[LABELS] if name == "embedding" else expected
    if expected is not None:
        np.testing.assert_allclose(function(x), expected, rtol=1e-12, atol=1e-13)
    require_same(function, x)
    assert function(x).dtype == np.float64


@pytest.mark.parametrize("name", CASES)
def test_gradients(name: str) -> None:
    function, x, _ = CASES[name]
    weights = normal(*np.shape(function(x)))

    def loss(v: Any) -> Any:
        return (function(v) * weights).sum()

    direction, h = normal(*x.shape), 1e-4
    expected = (loss(x + h * direction) - loss(x - h * direction)) / (2 * h)
    found = (ht.grad(loss)(x) * direction).sum()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_float32_stays_float32() -> None:
    x = X.astype(np.float32)
    for f in (nn.gelu, nn.relu, nn.sigmoid, nn.silu, nn.softmax, nn.log_softmax):
        assert f(x).dtype == np.float32
        require_same(f, x)
    scale, bias = SCALE.astype("f4"), BIAS.astype("f4")
    require_same(lambda x: nn.layer_norm(x, scale, bias), x)


def test_one_hot() -> None:
    expected = np.eye(6, dtype=np.float32)[LABELS]
    np.testing.assert_array_equal(nn.one_hot(LABELS, 6), expected)
    require_same(lambda i: (nn.one_hot(i, 6), nn.one_hot(i, 6, bool)), LABELS.astype(np.int32))
    assert nn.one_hot(LABELS, 6, np.float64).dtype == np.float64


def test_tokens_go_to_experts_and_back() -> None:
    x, weights = normal(2, 5, 3), normal(2, 5, 2)
    experts = RNG.integers(0, 4, (2, 5, 2))
    places = np.arange(20).reshape(2, 5, 2) % 10  # 8 and 9 are beyond the capacity

    def there(x: Any) -> Any:
        return nn.dispatch(x, experts, places, num_experts=4, capacity=8)

    def and_back(x: Any, weights: Any) -> Any:
        return nn.combine(there(x), experts, places, weights)

    y = there(x)
    assert y.shape == (2, 4, 8, 3)
    np.testing.assert_array_equal(y[1, experts[1, 2, 1], 5], x[1, 2])
    np.testing.assert_array_equal(np.abs(y).sum(), np.abs(y[:, :, :8]).sum())
    kept = np.where(places < 8, weights, 0).sum(-1, keepdims=True)
    np.testing.assert_allclose(and_back(x, weights), x * kept, atol=1e-14)
    require_same(and_back, x, weights)
    grads = ht.grad(lambda p: (and_back(*p) * x).sum())((x, weights))
    np.testing.assert_allclose(grads[0], x * kept, atol=1e-14)
    squares = (x * x).sum(-1, keepdims=True)
    np.testing.assert_allclose(grads[1], np.where(places < 8, squares, 0), atol=1e-13)


def test_batch_norm_gives_its_statistics() -> None:
    x = normal(8, 3, 3, 4) * 3 + 7
    require_same(nn.batch_statistics, x)
    mean, variance = nn.batch_statistics(x)
    np.testing.assert_allclose(mean, x.mean((0, 1, 2)), 1e-12)
    np.testing.assert_allclose(variance, x.var((0, 1, 2)), 1e-12)

    def both(x: Any) -> Any:
        return nn.batch_norm(x, np.ones(4), np.zeros(4)), nn.batch_statistics(x)

    names = [e.op.name for e in ht.trace(both, (x,), ("x",)).graph.eqns]
    assert names.count("batch_moments") == names.count("batch_statistics") == 1


@pytest.mark.parametrize(("dtype", "digits"), [("float16", 2e-3), ("float32", 2e-5)])
def test_batch_norm_of_a_far_mean_in_a_narrow_dtype(dtype: str, digits: float) -> None:
    """Deviations of 1 around 1000: their squares are summed beside squares of a million."""
    far = normal(64, 5, 4, dtype=dtype) + np.asarray(1000, dtype)
    x, ones = far.astype(np.float64), np.ones(4, dtype)
    wanted = (x - x.mean((0, 1))) / np.sqrt(x.var((0, 1)) + 1e-5)
    y, (mean, variance) = nn.batch_norm(far, ones, 0 * ones), nn.batch_statistics(far)
    assert (y.dtype, mean.dtype, variance.dtype) == (dtype, "float32", "float32")
    np.testing.assert_allclose(y, wanted, atol=4 * digits)
    np.testing.assert_allclose(variance, x.var((0, 1)), 1e-6)
    require_same(lambda x: nn.batch_norm(x, ones, 0 * ones), far)


def test_top_k_prefers_the_first_of_equal_elements() -> None:
    x = np.array([[2.0, 3.0, 3.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    require_same(lambda x: nn.top_k(x, 2), x)
    values, indices = nn.top_k(x, 2)
    assert indices.tolist() == [[1, 2], [0, 1]] and values.tolist() == [[3, 3], [0, 0]]


def test_one_equation_each() -> None:
    def function(x: Any, labels: Any) -> Any:
        y = nn.layer_norm(nn.gelu(nn.softmax(x)), SCALE, BIAS)
        return nn.cross_entropy(y.reshape(8, 6), labels.reshape(8)).mean()

    t = ht.trace(function, (X, LABELS), ("x", "labels"))
    names = [e.op.name for e in t.graph.eqns]
    assert names[:3] == ["softmax", "gelu", "layer_norm"] and "cross_entropy" in names
    assert {e.source.partition(":")[0] for e in t.graph.eqns} == {"test_nn_functions.py"}


def test_extreme_logits() -> None:
    x = np.array([[1e4, 0.0, -1e4]])
    np.testing.assert_allclose(nn.log_softmax(x), [[0, -1e4, -2e4]])
    np.testing.assert_allclose(nn.cross_entropy(x, np.array([2])), [2e4])
    assert np.isfinite(ht.grad(lambda x: nn.log_softmax(x).sum())(x)).all()
    assert np.isfinite(ht.grad(lambda x: nn.silu(x).sum())(np.array([-1e4, 1e4]))).all()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: nn.softmax(x, axis=0, causal=True), "causal goes along the last axis"),
        (lambda x: nn.cross_entropy(x, LABELS[:1]), r"take labels of shape \(2, 4\), not \(1, 4\)"),
        (lambda x: nn.attention(x, x, x), r"q has shape \(2, 4, 6\), not \(batch, heads"),
        (lambda x: nn.layer_norm(x, SCALE[:2], BIAS), r"layer_norm at test_nn_functions.py:\d+"),
        (lambda x: nn.conv2d(x, KERNEL), r"shapes \(2, 4, 6\) and \(3, 3, 4, 5\)"),
        (lambda x: nn.conv(x, KERNEL), "a window of 2 dims with padding 'same' on x of shape"),
        (lambda x: nn.conv(x, X, padding="full"), "padding is 'same', 'valid', a number or"),
        (lambda x: nn.conv(x, X, (1, 1)), r"stride \(1, 1\) is for 2 spatial dims, x has 1"),
        (lambda x: nn.max_pool(x, (2, 2)), r"max_pool: window \(2, 2\) is for 2 spatial dims"),
        (lambda x: nn.avg_pool(x, 9), r"pool at test_nn_functions.py:\d+: .*does not fit"),
        (lambda x: nn.embedding(x, LABELS), r"gather at test_nn_functions.py:\d+"),
    ],
)
def test_errors(function: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(TracingError, match=message):
        function(X)
    with pytest.raises(TracingError, match=message):
        ht.trace(function, (X,), ("x",))


# --------------------------------------------------------------------------------- a whole GPT step
def gpt(layers: int, width: int, heads: int, classes: int, sequence: int) -> dict[str, Any]:
    def w(*shape: int) -> np.ndarray:
        return (normal(*shape) * 0.1).astype(np.float32)

    def block() -> dict[str, Any]:
        ones, zeros = np.ones(width, np.float32), np.zeros(width, np.float32)
        return {
            "ln1": (ones, zeros), "ln2": (ones, zeros), "qkv": w(3, width, heads, width // heads),
            "out": w(heads, width // heads, width), "w1": w(width, 4 * width),
            "b1": w(4 * width), "w2": w(4 * width, width), "b2": w(width),
        }  # fmt: skip

    return {
        "tokens": w(classes, width), "positions": w(sequence, width),
        "blocks": [block() for _ in range(layers)],
    }  # fmt: skip


def forward(p: dict[str, Any], tokens: Any) -> Any:
    h = nn.embedding(p["tokens"], tokens) + p["positions"]
    for i, b in enumerate(p["blocks"]):
        with ht.layer(i):
            x = nn.layer_norm(h, *b["ln1"])
            q, k, v = (np.einsum("bsd,dhe->bhse", x, b["qkv"][j]) for j in range(3))
            h = h + np.einsum("bhse,hed->bsd", nn.attention(q, k, v), b["out"])
            x = nn.layer_norm(h, *b["ln2"])
            h = h + nn.gelu(x @ b["w1"] + b["b1"]) @ b["w2"] + b["b2"]
    return h @ p["tokens"].T


def gpt_loss(p: dict[str, Any], batch: Any) -> Any:
    return nn.cross_entropy(forward(p, batch[:, :-1]), batch[:, 1:]).mean()


def gpt_step(state: dict[str, Any], batch: Any) -> Any:
    value, grads = ht.value_and_grad(gpt_loss)(state["params"], batch)
    flat, tree = flatten(state["params"])
    g, m = flatten(grads)[0], flatten(state["m"])[0]
    moments = [0.9 * a + 0.1 * b for a, b in zip(m, g)]
    rate = state["lr"] / (1 - 0.9 ** (state["step"] + 1))
    params = tree.unflatten(a - rate * b for a, b in zip(flat, moments))
    new = {
        "params": params, "m": tree.unflatten(moments), "step": state["step"] + 1,
        "lr": state["lr"],
    }  # fmt: skip
    return new, {"loss": value}


def gpt_state(layers: int) -> dict[str, Any]:
    params = gpt(layers, 24, 3, 17, 8)
    leaves, tree = flatten(params)
    zeros = tree.unflatten(np.zeros_like(x) for x in leaves)
    return {"params": params, "m": zeros, "step": 0, "lr": 0.1}


TOKENS = RNG.integers(0, 17, (4, 9)).astype(np.int32)


def test_a_gpt_learns_as_a_graph() -> None:
    state = gpt_state(2)
    t = ht.trace(gpt_step, (state, TOKENS), ("state", "batch"))
    untraced, _ = gpt_step(state, TOKENS)
    losses = []
    for _ in range(30):
        state, metrics = t.evaluate(state, TOKENS)
        losses.append(float(metrics["loss"]))
    assert abs(losses[0] - math.log(17)) < 0.3 and losses[-1] < 0.5 * losses[0]
    one, _ = t.evaluate(gpt_state(2) | {"params": untraced["params"]}, TOKENS)
    assert one["step"] == 1


def test_the_untraced_step_equals_the_graph() -> None:
    state = gpt_state(1)
    require_same(gpt_step, state, TOKENS)


def test_a_gpt_of_four_layers_is_traced_in_two_seconds() -> None:
    state = gpt_state(4)
    start = time.process_time()
    t = ht.trace(gpt_step, (state, TOKENS), ("state", "batch"))
    seconds = time.process_time() - start
    print(f"{len(t.graph.eqns)} equations, two traces, {seconds:.2f} s")
    assert seconds < 2.0
    layers = {e.layer for e in t.graph.eqns if e.phase == "backward" and e.op.name == "dot_general"}
    assert layers == {None, 0, 1, 2, 3}
