"""Every row of the operator table against an independent oracle, and its columns between them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from scipy import special

from hpc_alpa.ir import TABLE, Call, evaluate, parse, verify
from hpc_alpa.ir.types import numpy_dtype
from hpc_alpa.kernels.reference.random import random as random_values
from hpc_alpa.ops.products import product_dims
from hpc_alpa.transform.expand import expanded
from tests.helpers.random_equations import EQUATIONS, random_equation

# Equations around the microbatch loop: the identity on one slot; tests of the loop run them.
BOUNDARY = {"accumulate", "accumulate_max", "enter", "slot", "stack"}
FUSED = sorted(name for name, row in TABLE.items() if row.expand)


def _loop(function: Callable[..., Any], shape: tuple[int, ...]) -> np.ndarray:
    """An array made index by index."""
    out = np.empty(shape)
    for index in np.ndindex(*shape):
        out[index] = function(*index)
    return out


def _broadcast(c: Call, x: np.ndarray) -> np.ndarray:
    dims = c.params["dims"]
    return _loop(lambda *i: x[tuple(min(i[d], n - 1) for d, n in zip(dims, x.shape))], c.extents)


def _pad(c: Call, x: np.ndarray) -> np.ndarray:
    before = c.params["starts"]
    widths = [(s, n - s - m) for s, n, m in zip(before, c.extents, x.shape)]
    return np.pad(x, widths) if widths else x


def _slice(c: Call, x: np.ndarray) -> np.ndarray:
    return _loop(lambda *i: x[tuple(s + k for s, k in zip(c.params["starts"], i))], c.extents)


def _scatter_add(c: Call, ct: np.ndarray, indices: np.ndarray) -> np.ndarray:
    out = np.zeros(c.extents)
    for k in np.ndindex(*indices.shape):
        out[indices[k]] += ct[k]
    return out


def _elements(
    c: Call, spatial: tuple[int, ...], window: tuple[int, ...], windows: tuple[int, ...]
) -> Iterator[tuple[Any, ...]]:
    """(where in x, element of the window, which window) for all that do not lie in the padding."""
    rows = list(zip(c.params["strides"], c.params["padding"]))
    for p, t in itertools.product(np.ndindex(*windows), np.ndindex(*window)):
        place = tuple(s * i + k - before for i, k, (s, (before, _)) in zip(p, t, rows))
        if all(0 <= i < n for i, n in zip(place, spatial)):
            yield (slice(None), *place), t, (slice(None), *p)


def _dense(w: np.ndarray, groups: int) -> np.ndarray:
    """The weights of a grouped convolution with zeros between the groups."""
    channels, out = w.shape[-2], w.shape[-1] // groups
    whole = np.zeros((*w.shape[:-2], groups * channels, w.shape[-1]))
    for g in range(groups):
        rows, columns = (slice(g * n, (g + 1) * n) for n in (channels, out))
        whole[..., rows, columns] = w[..., columns]
    return whole


def _conv(c: Call, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    out, dense = np.zeros(c.extents), _dense(w, x.shape[-1] // w.shape[-2])
    for i, t, p in _elements(c, x.shape[1:-1], w.shape[:-2], c.extents[1:-1]):
        out[p] += x[i] @ dense[t]
    return out


def _conv_grad_input(c: Call, y: np.ndarray, w: np.ndarray) -> np.ndarray:
    out, dense = np.zeros(c.extents), _dense(w, c.extents[-1] // w.shape[-2])
    for i, t, p in _elements(c, c.extents[1:-1], w.shape[:-2], y.shape[1:-1]):
        out[i] += y[p] @ dense[t].T
    return out


def _conv_grad_weight(c: Call, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    channels = c.extents[-2]
    groups, per_group = x.shape[-1] // channels, y.shape[-1] // (x.shape[-1] // channels)
    out = np.zeros(c.extents)
    for i, t, p in _elements(c, x.shape[1:-1], c.extents[:-2], y.shape[1:-1]):
        for g in range(groups):
            columns = slice(g * per_group, (g + 1) * per_group)
            rows = slice(g * channels, (g + 1) * channels)
            out[t][:, columns] += x[i][:, rows].T @ y[p][:, columns]
    return out


def _routes(experts: np.ndarray, places: np.ndarray, y_shape: tuple[int, ...]) -> np.ndarray:
    """(groups, tokens, choices, experts, capacity): 1 where a choice is."""
    eyes = [np.eye(8)[i][..., :n] for i, n in zip((experts, places), y_shape[1:3])]
    found: np.ndarray = np.einsum("gske,gskc->gskec", *eyes)
    return found


def _dispatch(c: Call, x: np.ndarray, e: np.ndarray, p: np.ndarray, *w: np.ndarray) -> np.ndarray:
    weights = w[0] if w else np.ones(e.shape)
    found: np.ndarray = np.einsum("gsm,gskec,gsk->gecm", x, _routes(e, p, c.extents), weights)
    return found


def _combine(c: Call, y: np.ndarray, e: np.ndarray, p: np.ndarray, *w: np.ndarray) -> np.ndarray:
    weights = w[0] if w else np.ones(e.shape)
    found: np.ndarray = np.einsum("gecm,gskec,gsk->gsm", y, _routes(e, p, y.shape), weights)
    return found


def _pool(c: Call, x: np.ndarray) -> np.ndarray:
    largest = c.params["kind"] == "max"
    out = np.full(c.extents, -np.inf if largest else 0.0)
    for i, _, p in _elements(c, x.shape[1:-1], c.params["window"], c.extents[1:-1]):
        out[p] = np.maximum(out[p], x[i]) if largest else out[p] + x[i]
    return out


def _unpool(c: Call, y: np.ndarray) -> np.ndarray:
    out = np.zeros(c.extents)
    for i, _, p in _elements(c, c.extents[1:-1], c.params["window"], y.shape[1:-1]):
        out[i] += y[p]
    return out


def _is_largest(c: Call, x: np.ndarray, windows: tuple[int, ...]) -> Iterator[tuple[Any, ...]]:
    """(place in x, window, whether the window's maximum is there); random values have no ties."""
    elements = list(_elements(c, x.shape[1:-1], c.params["window"], windows))
    top = np.full((x.shape[0], *windows, x.shape[-1]), -np.inf)
    for i, _, p in elements:
        top[p] = np.maximum(top[p], x[i])
    for i, _, p in elements:
        yield i, p, x[i] == top[p]


def _pool_pick(c: Call, x: np.ndarray, v: np.ndarray) -> np.ndarray:
    out = np.zeros(c.extents)
    for i, p, taken in _is_largest(c, x, c.extents[1:-1]):
        out[p] += v[i] * taken
    return out


def _pool_unpick(c: Call, x: np.ndarray, ct: np.ndarray) -> np.ndarray:
    out = np.zeros(c.extents)
    for i, p, taken in _is_largest(c, x, ct.shape[1:-1]):
        out[i] += ct[p] * taken
    return out


def _batch_normal(x: np.ndarray, s: np.ndarray) -> np.ndarray:
    normal: np.ndarray = (x - s[0]) * (s[1] + 1e-5) ** -0.5
    return normal


def _batch_statistics(c: Call, m: np.ndarray) -> np.ndarray:
    mean, square = np.moveaxis(m / c.params["count"], -2, 0)
    return np.stack([mean, np.where(square > mean**2, square - mean**2, 0)], -2)


def _batch_norm_grad(
    c: Call, x: np.ndarray, s: np.ndarray, scale: np.ndarray, ct: np.ndarray, sums: np.ndarray
) -> np.ndarray:
    steep, level = sums / c.params["count"]
    grad: np.ndarray = scale * (s[1] + 1e-5) ** -0.5 * (ct - level - _batch_normal(x, s) * steep)
    return grad


def _grouped(operands: str, oracle: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """The oracle on each group: its rows of x, its pairs p, and all of other operands."""

    def run(c: Call, *xs: np.ndarray) -> np.ndarray:
        rows = c.params.get("rows")
        if rows is None:
            return oracle(c, *xs)
        made = []
        for g in range(len(xs[0]) // rows):
            of: dict[str, Any] = {"x": slice(g * rows, (g + 1) * rows), "p": g, ".": slice(None)}
            made.append(oracle(c, *(x[of[kind]] for x, kind in zip(xs, operands, strict=True))))
        return np.stack(made).reshape(c.extents)

    return run


def _over_rows(*values: np.ndarray) -> np.ndarray:
    """Sums over all dims but the last."""
    return np.array([v.reshape(-1, v.shape[-1]).sum(0) for v in values])


def _tiles(c: Call, x: np.ndarray) -> list[np.ndarray]:
    return np.split(x, c.params["tiles"], c.params["dim"])


def _halo_edges(c: Call, x: np.ndarray) -> np.ndarray:
    dim, before, after = (c.params[k] for k in ("dim", "before", "after"))
    made = []
    for tile in _tiles(c, x):
        rows = [*range(tile.shape[dim] - before, tile.shape[dim]), *range(after)]
        made.append(np.take(tile, rows, dim))
    return np.stack(made, dim)


def _halo_fold(c: Call, x: np.ndarray, *edges: np.ndarray) -> np.ndarray:
    """Slices of the whole, padded, where the edges are those of x; else as the operator says."""
    dim, before, after = (c.params[k] for k in ("dim", "before", "after"))
    tiles, made = _tiles(c, x), []
    for k, tile in enumerate(tiles):
        shape = list(tile.shape)
        parts = [tile]
        for count, there, place in ((before, k - 1, 0), (after, k + 1, 1)):
            shape[dim] = count
            rows = np.full(shape, 0 if c.params["fill"] == "zero" else -np.inf)
            if edges and 0 <= there < len(tiles):
                own = np.take(edges[0], there, dim)
                rows = np.split(own, [before], dim)[place]
            parts.insert(place * 2, rows)
        made.append(np.concatenate(parts, dim))
    return np.concatenate(made, 0)


def _halo_unfold(c: Call, x: np.ndarray) -> np.ndarray:
    dim, before, after = (c.params[k] for k in ("dim", "before", "after"))
    kept = np.take(x, range(before, x.shape[dim] - after), dim)
    return np.concatenate(np.split(kept, c.params["tiles"], 0), dim)


def _one_hot(shape: tuple[int, ...], indices: np.ndarray) -> np.ndarray:
    """The product with it picks: (rows, classes), or (rows, picks, classes)."""
    return np.eye(shape[-1])[indices]


def _pick(c: Call, x: np.ndarray, i: np.ndarray) -> np.ndarray:
    rows = x if i.ndim < x.ndim else x[..., None, :]
    picked: np.ndarray = (_one_hot(x.shape, i) * rows).sum(-1)
    return picked


def _unpick(c: Call, ct: np.ndarray, i: np.ndarray) -> np.ndarray:
    spread = _one_hot(c.extents, i) * ct[..., None]
    return spread if i.ndim < len(c.extents) else spread.sum(-2)


def _top_k(c: Call, x: np.ndarray) -> np.ndarray:
    def row(values: np.ndarray) -> list[int]:
        return sorted(range(len(values)), key=lambda k: (-values[k], k))[: c.params["k"]]

    return np.apply_along_axis(row, -1, x).astype(np.int64)


def _iota(c: Call) -> np.ndarray:
    return _loop(lambda *i: i[c.params["dim"]], c.extents)


def _random(c: Call, seed: np.ndarray, step: np.ndarray) -> np.ndarray:
    out = np.empty(c.extents, numpy_dtype(c.type.dtype))
    kind = "bits32" if c.params["kind"] == "bits" else str(c.params["kind"])
    random_values(kind, int(seed), int(step), c.params["key"], c.starts, c.extents, out=out)
    return out


def _max_mask(c: Call, x: np.ndarray) -> np.ndarray:
    top = x == x.max(axis=c.params["dims"], keepdims=True)
    return top / top.sum(axis=c.params["dims"], keepdims=True)


def _softmax(c: Call, x: np.ndarray) -> np.ndarray:
    z = x * c.params["scale"]
    if c.params["causal"]:
        z = np.where(np.tri(*z.shape[-2:]) > 0, z, -np.inf)
    return special.softmax(z, axis=-1)


def _softmax_grad(c: Call, y: np.ndarray, ct: np.ndarray) -> np.ndarray:
    jacobian = y[..., :, None] * (np.eye(y.shape[-1]) - y[..., None, :])
    return c.params["scale"] * np.einsum("...ij,...i->...j", jacobian, ct)


def _normal(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def _layer_norm_grad(c: Call, x: np.ndarray, scale: np.ndarray, ct: np.ndarray) -> np.ndarray:
    # The Jacobian, written out: (I - 1/n - n n'/n) / deviation.
    n, width = _normal(x), x.shape[-1]
    jacobian = np.eye(width) - 1 / width - n[..., :, None] * n[..., None, :] / width
    flow = np.einsum("...ij,...i->...j", jacobian, ct * scale)
    return flow / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def _layer_norm_grad_scale(c: Call, x: np.ndarray, ct: np.ndarray) -> np.ndarray:
    return (_normal(x) * ct).reshape(-1, x.shape[-1]).sum(0)


def _cross_entropy_grad(
    c: Call, logits: np.ndarray, labels: np.ndarray, ct: np.ndarray
) -> np.ndarray:
    return (special.softmax(logits, axis=-1) - np.eye(logits.shape[1])[labels]) * ct[:, None]


def _gelu(x: np.ndarray) -> np.ndarray:
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _gelu_grad(c: Call, x: np.ndarray, ct: np.ndarray) -> np.ndarray:
    return ct * (_gelu(x + 1e-6) - _gelu(x - 1e-6)) / 2e-6


ORACLES: dict[str, Callable[..., Any]] = {  # alphabetical
    "add": lambda c, x, y: x + y,
    "argmax": lambda c, x: np.argmax(x, c.params["dim"]),
    "batch_moments": _grouped("x", lambda c, x: _over_rows(x, x**2)),
    "batch_norm": _grouped("xp..", lambda c, x, s, a, b: _batch_normal(x, s) * a + b),
    "batch_norm_grad": _grouped("xp.xp", _batch_norm_grad),
    "batch_norm_grad_sums": _grouped(
        "xpx", lambda c, x, s, ct: _over_rows(_batch_normal(x, s) * ct, ct)
    ),
    "batch_statistics": _batch_statistics,
    "broadcast": _broadcast,
    "cast": lambda c, x: x.astype(c.params["dtype"]),
    "combine": _combine,
    "combine_grad_weights": lambda c, y, e, p, x: np.einsum(
        "gecm,gskec,gsm->gsk", y, _routes(e, p, y.shape), x
    ),
    "compare": lambda c, x, y: getattr(x, f"__{c.params['direction']}__")(y),
    "concatenate": lambda c, *xs: np.concatenate(xs, c.params["dim"]),
    "conv": _conv,
    "conv_grad_input": _conv_grad_input,
    "conv_grad_weight": _conv_grad_weight,
    "cross_entropy": lambda c, x, i: -np.log(special.softmax(x, -1))[np.arange(len(i)), i],
    "cross_entropy_grad": _cross_entropy_grad,
    "cumsum": lambda c, x: np.cumsum(x, c.params["dim"]),
    "dispatch": _dispatch,
    "div": lambda c, x, y: x / y,
    "dot_general": lambda c, x, y: np.einsum(c.params["equation"], x, y),
    "erf": lambda c, x: np.vectorize(math.erf, otypes=[float])(x),
    "exp": lambda c, x: math.e**x,
    "full": lambda c: np.zeros(c.extents) + c.params["value"],
    "gather": lambda c, table, i: table[i],
    "gelu": lambda c, x: _gelu(x),
    "gelu_grad": _gelu_grad,
    "halo_edges": _halo_edges,
    "halo_fold": _halo_fold,
    "halo_unfold": _halo_unfold,
    "iota": _iota,
    "layer_norm": lambda c, x, scale, bias: _normal(x) * scale + bias,
    "layer_norm_grad": _layer_norm_grad,
    "layer_norm_grad_scale": _layer_norm_grad_scale,
    "log": lambda c, x: np.log2(x) * math.log(2),
    "max": lambda c, x, y: np.where(x > y, x, y),
    "max_mask": _max_mask,
    "min": lambda c, x, y: np.where(x > y, y, x),
    "mul": lambda c, x, y: x * y,
    "neg": lambda c, x: -x,
    "pad": _pad,
    "pick": _pick,
    "pool": _pool,
    "pool_pick": _pool_pick,
    "pool_unpick": _pool_unpick,
    "pow": lambda c, x, y: np.exp(y * np.log(x)),
    "random_bits": _random,
    "reduce_max": lambda c, x: np.max(x, c.params["dims"]),
    "reduce_min": lambda c, x: np.min(x, c.params["dims"]),
    "reduce_sum": lambda c, x: np.sum(x, c.params["dims"]),
    "reshape": lambda c, x: np.array(list(x.flat)).reshape(c.extents),
    "rsqrt": lambda c, x: x**-0.5,
    "scatter_add": _scatter_add,
    "select": lambda c, mask, x, y: np.where(mask, x, y),
    "slice": _slice,
    "softmax": _softmax,
    "softmax_grad": _softmax_grad,
    "sqrt": lambda c, x: x**0.5,
    "stop_gradient": lambda c, x: x,
    "sub": lambda c, x, y: x - y,
    "sum_squares": lambda c, x: np.sum(x**2),
    "tanh": lambda c, x: 1 - 2 / (np.exp(2 * x) + 1),
    "top_k": _top_k,
    "transpose": lambda c, x: np.moveaxis(x, c.params["perm"], range(x.ndim)),
    "unpick": _unpick,
    "unpool": _unpool,
}


def test_every_row_has_random_equations_and_an_oracle() -> None:
    assert set(EQUATIONS) == set(ORACLES) == set(TABLE) - BOUNDARY
    assert list(EQUATIONS) == sorted(EQUATIONS) and list(ORACLES) == sorted(ORACLES)


@pytest.mark.parametrize("name", EQUATIONS)
def test_the_reference_computes_what_the_oracle_does(name: str) -> None:
    for seed in range(40):
        drawn = random_equation(name, seed)
        graph = verify(drawn.graph)
        assert parse(str(graph)) == graph
        (e,) = graph.eqns
        (got,) = evaluate(graph, drawn.arrays)
        call = Call.whole(e.params_dict, e.output.type, {})
        want = np.asarray(ORACLES[name](call, *drawn.arrays))
        assert isinstance(got, np.ndarray)
        assert got.shape == want.shape == e.output.type.shape, str(e)
        assert got.dtype.name == e.output.type.dtype, str(e)
        tolerance = 1e-6 if name == "gelu_grad" else 1e-12  # the oracle is a difference quotient
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance, err_msg=str(e))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_reference_keeps_a_narrow_dtype(dtype: str) -> None:
    tolerance = {"float32": 1e-5, "float16": 3e-2, "bfloat16": 2e-1}[dtype]
    for name, seed in itertools.product(
        sorted(set(EQUATIONS) - {"argmax", "compare", "top_k"}), range(4)
    ):
        drawn, wide = random_equation(name, seed, dtype), random_equation(name, seed)
        (got,) = evaluate(verify(drawn.graph), drawn.arrays)
        type = drawn.graph.outputs[0].type
        assert (got.shape, got.dtype.name) == (type.shape, type.dtype), name
        if name in ("max_mask", "random_bits"):
            continue  # equal maxima, and bits of another length
        (want,) = evaluate(wide.graph, wide.arrays)
        scale = np.abs(want).max(initial=1, where=np.isfinite(want))
        np.testing.assert_allclose(
            got.astype("float64") / scale, want / scale, atol=tolerance, err_msg=f"{name} {seed}"
        )


@pytest.mark.parametrize("name", FUSED)
def test_a_fused_row_equals_the_graph_it_stands_for(name: str) -> None:
    for seed in range(40):
        drawn = random_equation(name, seed)
        (e,) = drawn.graph.eqns
        inner = verify(expanded(e))
        assert [v.type for v in inner.inputs] == list(e.input_types)
        assert all(i.op.expand is None for i in inner.eqns)
        (got,), (want,) = evaluate(inner, drawn.arrays), evaluate(drawn.graph, drawn.arrays)
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12, err_msg=str(e))


@pytest.mark.parametrize("name", EQUATIONS)
def test_flops_and_the_rule_fit_the_shapes(name: str) -> None:
    for seed in range(20):
        (e,) = random_equation(name, seed).graph.eqns
        flops = e.op.flops(e.input_types, e.output.type, e.params_dict)
        assert isinstance(flops, float) and flops >= 0
        rule = e.op.rule(e.input_types, e.output.type, e.params_dict)
        shapes = [*(t.shape for t in e.input_types), e.output.type.shape]
        for dims, shape in zip((*rule.inputs, rule.output), shapes, strict=True):
            assert tuple(math.prod(rule.sizes[f] for f in dim) for dim in dims) == shape
        for operands in (*rule.sums, *rule.maxima):
            assert all(0 <= k < len(e.inputs) for k in operands)


def test_a_matrix_product_counts_its_flops() -> None:
    (e,) = next(
        drawn.graph.eqns
        for drawn in (random_equation("dot_general", seed) for seed in range(99))
        if len(drawn.graph.eqns[0].params_dict["equation"]) > 9
    )
    left, right = e.params_dict["equation"].split("->")[0].split(",")
    extents = dict(zip(left + right, e.inputs[0].type.shape + e.inputs[1].type.shape))
    assert e.op.flops(e.input_types, e.output.type, e.params_dict) == 2 * math.prod(
        extents.values()
    )


@pytest.mark.parametrize("name", EQUATIONS)
def test_products_of_matrices_are_priced_by_their_dims(name: str) -> None:
    for seed in range(10):
        (e,) = random_equation(name, seed).graph.eqns
        given = e.input_types, e.output.type, e.params_dict
        dims = product_dims(name, *given)
        assert bool(dims) == (e.op.cost == "dot_general")
        assert not dims or 2 * math.prod(dims) == e.op.flops(*given)


# ------------------------------------------------------------------------ edges of single operators
def test_indices_outside_the_table_give_zero_split_or_not() -> None:
    gather, pick = TABLE["gather"].reference, TABLE["pick"].reference
    type = random_equation("gather", 0).graph.outputs[0].type.with_shape((3, 2))
    table = np.ones((4, 2))
    call = Call({}, type, (0, 0), (3, 2), {"v": 4})  # the second half of a table of 8 rows
    assert gather(call, table, np.array([3, 4, 8])).tolist() == [[0, 0], [1, 1], [0, 0]]
    assert pick(call, table.T, np.array([7, -1])).tolist() == [1, 0]
