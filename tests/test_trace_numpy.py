"""Each row of the tables: the traced graph equals plain NumPy, in values, shapes and dtypes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import special

from hpc_alpa.errors import TracingError
from tests.helpers.traced import recorded, require_same

RNG = np.random.default_rng(7)
DTYPES = ["float16", "float32", "float64", "int32", "int64", "uint8", "bool"]


def sample(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if dtype == "bool":
        return RNG.random(shape) < 0.5
    if dtype.startswith(("int", "uint")):
        return RNG.integers(0 if dtype[0] == "u" else -4, 9, shape).astype(dtype)
    return RNG.normal(size=shape).astype(dtype)


ONE: dict[str, Callable[[Any], Any]] = {
    "abs": lambda x: abs(x) + np.abs(x) + np.absolute(x),
    "all": lambda x: (x.all(), np.all(x, axis=1), (x > 0).all(axis=0, keepdims=True)),
    "any": lambda x: (x.any(), np.any(x, axis=-1)),
    "argmax": lambda x: (x.argmax(), x.argmax(axis=1), np.argmax(x, 0, keepdims=True)),
    "argmin": lambda x: (x.argmin(), x.argmin(-1), np.argmin(x, axis=0)),
    "astype": lambda x: (x.astype(np.float64), x.astype("float32"), x.astype(bool)),
    "atleast": lambda x: (np.atleast_2d(x), np.atleast_3d(x), np.atleast_1d(x[0, 0, 0])),
    "broadcast_arrays": lambda x: np.broadcast_arrays(x, x[:, :1], 1.5),
    "broadcast_to": lambda x: np.broadcast_to(x[:, :1], (2, *x.shape)),
    "clip": lambda x: (x.clip(0, 2), np.clip(x, None, 1), np.clip(x, 1, None), x.clip(min=1)),
    "concatenate": lambda x: (
        np.concatenate([x, x[:1]]),
        np.concatenate((x, x), axis=-1),
        np.concatenate([x, x], axis=None),
        np.concat([x, x], 1),
    ),
    "copy": lambda x: (x.copy(), np.copy(x), x.real, x.conj()),
    "count_nonzero": lambda x: (np.count_nonzero(x, axis=1), np.count_nonzero(x, keepdims=True)),
    "cumsum": lambda x: (x.cumsum(), np.cumsum(x, axis=1), np.add.accumulate(x, axis=0)),
    "dot": lambda x: (np.dot(x, x[0].T), x[0].dot(x[0, 0]), np.dot(x, 2), np.vdot(x[0], x[1])),
    "einsum": lambda x: (
        np.einsum("bij,bkj->bik", x, x),
        np.einsum("bij->jb", x),
        np.einsum("...ij,kj->...ki", x, x[0]),
        np.einsum("Bij,Bij->", x, x),
        np.einsum("bij,cij", x, x),
        np.einsum("bij,bi,b->j", x, x[:, :, 0], x[:, 0, 0]),
    ),
    "expand_dims": lambda x: (
        np.expand_dims(x, 1),
        np.expand_dims(x, (0, -1)),
        x[None],
        x[..., None],
    ),
    "flip": lambda x: (np.flip(x, 1), np.flip(x), np.fliplr(x), np.flipud(x)),
    "full_like": lambda x: (
        np.full_like(x, 3),
        np.zeros_like(x),
        np.ones_like(x, dtype=np.int64),
        np.ones_like(x, shape=(2, 2)),
        np.full_like(x, x[0, 0, 0]),
    ),
    "inner": lambda x: (np.inner(x, x[0]), np.outer(x[0], x[1, 0]), np.inner(x[0, 0], x[0, 0])),
    "isfinite": lambda x: (np.isfinite(x), np.isnan(x), np.isinf(x)),
    "iterate": lambda x: [a + b for a, b, _ in x],
    "logical": lambda x: (
        np.logical_and(x, x > 1),
        np.logical_or(x, x > 1),
        np.logical_not(x),
        np.logical_xor(x, x > 1),
        (x > 0) & (x < 3) | ~(x == 1) ^ (x >= 2),
    ),
    "matmul": lambda x: (
        x @ x[0].T,
        x[0] @ x.swapaxes(1, 2),
        x @ x[0, 0],
        x[0, 0] @ x[0].T,
        np.matmul(x[:, None], x[None].mT),
        np.linalg.matmul(x, x.mT),
    ),
    "max": lambda x: (
        x.max(),
        x.max(axis=(0, 2)),
        np.max(x, 1, keepdims=True),
        np.maximum.reduce(x),
    ),
    "mean": lambda x: (
        x.mean(),
        np.mean(x, axis=1),
        x.mean((0, 1), keepdims=True),
        np.average(x, 0),
    ),
    "min": lambda x: (x.min(), np.amin(x, axis=-1), np.minimum.reduce(x, axis=None)),
    "moveaxis": lambda x: (
        np.moveaxis(x, 0, -1),
        np.swapaxes(x, 0, 2),
        x.T,
        x.mT,
        x.transpose(1, 0, 2),
        np.transpose(x, (2, 0, 1)),
        np.permute_dims(x, (1, 2, 0)),
        x.T.T,
    ),
    "pad": lambda x: (np.pad(x, 1), np.pad(x, ((0, 1), (2, 0), (1, 1))), np.pad(x, (2, 1))),
    "repeat": lambda x: (
        x.repeat(2),
        np.repeat(x, 3, axis=1),
        np.tile(x, 2),
        np.tile(x, (2, 1, 1, 3)),
    ),
    "reshape": lambda x: (
        x.reshape(-1),
        x.reshape(2, -1),
        x.reshape((3, 1, 4)),
        x.ravel(),
        x.flatten(),
        np.reshape(x, (4, 3)).reshape(12).reshape(x.shape),
    ),
    "roll": lambda x: (np.roll(x, 1), np.roll(x, -2, axis=1), np.roll(x, (1, 5), (0, 2))),
    "sign": lambda x: np.sign(x.astype(np.float64)),
    "split": lambda x: (
        np.split(x, 2, axis=2),
        np.array_split(x, 2),
        np.hsplit(x, 3),
        np.split(x, [1], 1),
        np.vsplit(x, [1, 2]),
        np.dsplit(x, 2),
    ),
    "squeeze": lambda x: (x[:, :1].squeeze(), np.squeeze(x[:1], axis=0), x[:1, :1].squeeze((0, 1))),
    "stack": lambda x: (
        np.stack([x, x], axis=1),
        np.vstack([x[0], x[1]]),
        np.hstack([x, x]),
        np.dstack([x[0], x[1]]),
        np.hstack([x[0, 0], x[0, 1]]),
    ),
    "static": lambda x: (
        np.shape(x),
        x.shape,
        np.ndim(x),
        np.size(x),
        len(x),
        np.size(x, 1),
        x.size,
        x.nbytes,
        x.itemsize,
    ),
    "std": lambda x: (
        x.std(),
        x.var(axis=1),
        np.var(x, axis=(0, 2), ddof=1),
        np.std(x, 0, keepdims=True),
    ),
    "sum": lambda x: (
        x.sum(),
        np.sum(x, axis=1),
        x.sum(axis=(0, -1)),
        x.sum(-1, keepdims=True),
        x.sum(dtype=np.float64),
        np.add.reduce(x),
        np.sum(x, axis=()),
    ),
    "take": lambda x: (
        x.take([2, 0], axis=1),
        np.take(x, 3),
        x[[0, 1, 1]],
        x[:, np.array([-1, 0])],
        np.take_along_axis(x, np.array([[[1], [0], [1]]] * 2), axis=2),
    ),
    "tensordot": lambda x: (np.tensordot(x, x, axes=([1, 2], [1, 2])), np.tensordot(x, x[0].T, 1)),
    "triangle": lambda x: (np.tril(x), np.triu(x, 1), np.tril(x[0], -1), np.triu(x[0, 0])),
    "where": lambda x: (np.where(x > 0, x, 0), np.where(x > 1, 2, x), np.where(x, x[:, :1], x[0])),
}

FLOATING: dict[str, Callable[[Any], Any]] = {
    "diff": lambda x: (np.diff(x), np.diff(x, n=2, axis=1), np.ptp(x, axis=0)),
    "exp": lambda x: (np.exp(x), np.exp2(x), np.expm1(x), np.tanh(x)),
    "log": lambda x: (np.log(abs(x)), np.log1p(abs(x)), np.log2(abs(x)), np.log10(abs(x))),
    "norm": lambda x: (
        np.linalg.norm(x[0]),
        np.linalg.norm(x, axis=1),
        np.linalg.vector_norm(x),
        np.linalg.norm(x[0], "fro"),
        np.linalg.norm(x, 2, -1, True),
    ),
    "power": lambda x: (
        x**2,
        x**3,
        x**0,
        x**1,
        abs(x) ** 0.5,
        abs(x) ** -0.5,
        x**-1,
        abs(x) ** 1.7,
        2**x,
        np.power(abs(x), x),
        np.square(x),
        np.reciprocal(x),
        np.sqrt(abs(x)),
    ),
    "sign": lambda x: (np.sign(x), np.negative(x), -x, +x, np.fabs(x)),
}

TWO: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda x, y: (x + y, y + x, np.add(x, y[0]), np.add.outer(x[0, 0], y[0])),
    "compare": lambda x, y: (x < y, x <= y, x == y, x != y, x > y, x >= y),
    "concatenate": lambda x, y: (
        np.concatenate([x, y]),
        np.stack([x[0], y[1]]),
        np.where(x > y, x, y),
    ),
    "divide": lambda x, y: (x / (y + 20), np.true_divide(x, 3), x / 2.5),
    "dot": lambda x, y: (x @ y.mT, np.einsum("bij,bkj->bik", x, y), np.dot(x, y[0].T)),
    "maximum": lambda x, y: (np.maximum(x, y), np.minimum(x, y)),
    "multiply": lambda x, y: (x * y, 2 * x, x * 0.5, x[:, :1] * y[0]),
    "numbers": lambda x, y: (x + 1, 1.5 - y, x * True, np.maximum(x, 0), y + np.int64(2)),
}


@pytest.mark.parametrize("name", ONE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_functions_of_one_array(name: str, dtype: str) -> None:
    require_same(ONE[name], sample((2, 3, 2), dtype), allow_float64=True)


@pytest.mark.parametrize("name", FLOATING)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_functions_of_one_floating_array(name: str, dtype: str) -> None:
    require_same(FLOATING[name], sample((2, 3, 2), dtype))


@pytest.mark.parametrize("name", TWO)
def test_functions_of_two_arrays_of_all_dtypes(name: str) -> None:
    for left in DTYPES:
        for right in DTYPES:
            x, y = sample((2, 3, 2), left), sample((2, 3, 2), right)
            require_same(TWO[name], x, y, allow_float64=True)
            # One of them plain: the same types, with the constant in the graph.
            require_same(lambda v, y=y, f=TWO[name]: f(v, y), x, allow_float64=True)
            require_same(lambda v, x=x, f=TWO[name]: f(x, v), y, allow_float64=True)


@pytest.mark.skipif(not hasattr(np, "unstack"), reason="functions that came with NumPy 2.1")
def test_newer_functions() -> None:
    require_same(
        lambda x: (np.astype(x, np.int64), np.unstack(x, axis=1)), sample((2, 3), "float32")
    )


def test_special_functions() -> None:
    for dtype in ("float32", "float64"):
        require_same(lambda x: (special.erf(x), special.expit(x)), sample((3, 4), dtype))


def test_bfloat16() -> None:
    x = RNG.normal(size=(3, 4)).astype(ml_dtypes.bfloat16)
    two = ml_dtypes.bfloat16(2)
    require_same(lambda v: (v + v, v * two, two * v, np.exp(v), v.sum(), v.mean(), v @ v.T), x)
    require_same(lambda v: (np.dot(v, v.T), np.inner(v, v[0])), x)
    require_same(lambda v: (v.astype(np.float32) * 0.5).astype(v.dtype), x)
    with pytest.raises(TracingError, match=r"float32 of a traced bfloat16.*x\.dtype\.type"):
        recorded(lambda v: v * 0.5, x)


SHAPE = (3, 4, 5)
INDEX = st.one_of(
    hnp.basic_indices(SHAPE, allow_newaxis=True, max_dims=6),
    hnp.integer_array_indices((3,), result_shape=hnp.array_shapes(max_dims=2, max_side=4)),
    hnp.integer_array_indices(SHAPE[:2], result_shape=hnp.array_shapes(max_dims=2, max_side=3)),
    st.tuples(
        st.integers(-3, 2), hnp.arrays(np.int64, st.integers(1, 4), elements=st.integers(-4, 3))
    ),
    st.tuples(
        st.just(slice(None)),
        hnp.arrays(np.int32, (2, 2), elements=st.integers(-4, 3)),
        st.one_of(st.slices(5), st.integers(-5, 4), st.none()),
    ),
    st.tuples(
        hnp.arrays(np.int64, 2, elements=st.integers(-3, 2)), st.slices(4), st.integers(-5, 4)
    ),
)


@settings(max_examples=150, deadline=None)
@given(INDEX)
def test_indexing(key: Any) -> None:
    x = np.arange(60.0).reshape(SHAPE)
    try:
        require_same(lambda v: v[key], x)
    except TracingError as error:
        assert "slice between them" in str(error)


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(np.int32, hnp.array_shapes(max_dims=2, max_side=4), elements=st.integers(-3, 2)),
    st.sampled_from([np.int8, np.int32, np.int64]),
)
def test_traced_indices(index: np.ndarray, dtype: type) -> None:
    x: Any = np.arange(60.0).reshape(SHAPE)
    i: Any = index.astype(dtype)
    require_same(lambda v, i: (v[i], v[i, i], np.take(v, i, axis=1), v[:, i], v[i, 0]), x, i)
    require_same(lambda v, i: (v[i], v[i[0]], v[-1, i.ravel()[0]]), x, i)
    rows: Any = np.resize(i, (3, 2))
    require_same(lambda i: np.take_along_axis(x[..., 0], i, 1), rows)


def test_the_logit_of_the_label_is_one_pick() -> None:
    x, labels = sample((6, 5), "float32"), np.array([0, 4, -1, 2, 1, 3], np.int32)
    for function in (
        lambda v, i: v[np.arange(6), i],
        lambda v, i: np.take_along_axis(v, i[:, None], axis=1)[:, 0],
    ):
        traced = require_same(function, x, labels)
        assert [e.op.name for e in traced.graph.eqns].count("pick") == 1
        assert "gather" not in str(traced.graph)
    assert "gather" not in str(require_same(lambda v: v[np.arange(4)], x).graph)


def test_accurate_near_zero() -> None:
    x = np.concatenate([10.0 ** np.arange(-20, 2), -(10.0 ** np.arange(-20, -1)), [0.0, np.inf]])
    require_same(lambda v: (np.log1p(v), np.expm1(np.minimum(v, 50))), x)
    traced = recorded(lambda v: (np.log1p(v) / v, np.expm1(v) / v), x[:10])
    for made in traced.evaluate(x[:10]):
        np.testing.assert_allclose(made, 1.0, rtol=1e-9)


def test_special_values() -> None:
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -1.5])
    require_same(lambda v: (np.isnan(v), np.isinf(v), np.isfinite(v), np.sign(v), abs(v)), x)
    require_same(lambda v: (np.maximum(v, 0), np.minimum(v, 0), v.argmax(), v.argmin()), x)
    require_same(lambda v: np.where(v > 0, np.nan, -np.inf), x)


def test_broadcasts_and_reshapes_leave_no_detours() -> None:
    x = sample((4, 6), "float32")
    traced = require_same(lambda v: v - v.mean(axis=1, keepdims=True), x)
    names = [e.op.name for e in traced.graph.eqns]
    assert names == ["reduce_sum", "full", "div", "broadcast", "sub"]
    assert not require_same(lambda v: v.T.T.reshape(24).reshape(4, 6)[...], x).graph.eqns


def test_a_contraction_reads_the_array_before_its_transpose() -> None:
    x, y = sample((2, 3, 4), "float32"), sample((5, 4), "float32")
    traced = require_same(lambda v, w: (v @ w.T, np.einsum("ij,bij->b", v[0].T, v.mT)), x, y)
    assert "transpose" not in [e.op.name for e in traced.graph.eqns]


@settings(max_examples=60, deadline=None)
@given(
    hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=3),
    st.sampled_from(DTYPES),
    st.sampled_from(DTYPES),
)
def test_broadcasts_of_any_shapes(shapes: Any, left: str, right: str) -> None:
    x, y = (sample(shape, d) for shape, d in zip(shapes.input_shapes, (left, right)))
    both = lambda x, y: (x * y, np.maximum(x, y), np.where(x > y, x, y), x < y)  # noqa: E731
    require_same(both, x, y, allow_float64=True)


@settings(max_examples=60, deadline=None)
@given(
    hnp.mutually_broadcastable_shapes(
        signature=np.matmul.signature, max_dims=2, min_side=1, max_side=4
    ),
    st.sampled_from(["float32", "float64", "int64", "bool"]),
)
def test_products_of_any_shapes(shapes: Any, dtype: str) -> None:
    x, y = (sample(shape, dtype) for shape in shapes.input_shapes)
    require_same(lambda x, y: x @ y, x, y)
    if x.ndim > 1 and y.ndim > 1:
        require_same(lambda x, y: np.einsum("...ij,...jk->...ki", x, y), x, y)
    require_same(lambda x, y: np.tensordot(x, y, axes=(-1, max(y.ndim - 2, 0))), x, y)
    require_same(lambda x, y: np.dot(x, y), x, y)


@settings(max_examples=60, deadline=None)
@given(
    hnp.array_shapes(min_dims=1, max_dims=4, max_side=4),
    st.sampled_from(DTYPES),
    st.data(),
)
def test_reductions_and_movement_of_any_shapes(
    shape: tuple[int, ...], dtype: str, data: st.DataObject
) -> None:
    x, n = sample(shape, dtype), len(shape)
    axes = tuple(data.draw(st.lists(st.integers(0, n - 1), unique=True)))
    keep, d = data.draw(st.booleans()), data.draw(st.integers(-n, n - 1))
    order = data.draw(st.permutations(range(n)))
    target = data.draw(st.permutations(shape))
    require_same(
        lambda x: (x.sum(axes, keepdims=keep), x.max(axes, keepdims=keep), x.mean(axes)), x
    )
    require_same(lambda x: (x.argmin(d), x.cumsum(d), np.flip(x, d), np.roll(x, 1, d)), x)
    require_same(lambda x: (x.transpose(order).reshape(target), np.moveaxis(x, d, 0)), x)
    require_same(lambda x: (np.stack([x, x], d), np.concatenate([x, x], d), x.repeat(2, d)), x)
