"""Random equations of every operator, on inputs that keep their values tame."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import hpc_alpa.ops  # noqa: F401  (fills the table)
from hpc_alpa.ir import Builder, Graph, TensorType, Var
from hpc_alpa.ir.op import NARROW
from hpc_alpa.ir.types import numpy_dtype
from hpc_alpa.ops.batch_norm import working_dtype

CLASSES = 8


@dataclass(frozen=True)
class Drawn:
    """A graph, arrays for its inputs, and which inputs may be differentiated."""

    graph: Graph
    arrays: tuple[np.ndarray, ...]

    @property
    def floating(self) -> list[int]:
        return [k for k, v in enumerate(self.graph.inputs) if v.type.is_floating]


class Drawing:
    """A graph under construction with random choices from one seed."""

    def __init__(
        self,
        seed: int,
        extents: tuple[int, ...] = (1, 2, 4, 4, 6, 8),
        dtype: str = "float64",
    ) -> None:
        self.rng = random.Random(seed)
        self.np = np.random.default_rng(seed)
        self.b = Builder()
        self.arrays: list[np.ndarray] = []
        self.extents = extents
        self.dtype = dtype

    def extent(self) -> int:
        return self.rng.choice(self.extents)

    def shape(self, low: int = 0, high: int = 3) -> tuple[int, ...]:
        return tuple(self.extent() for _ in range(self.rng.randint(low, high)))

    def input(self, shape: tuple[int, ...], kind: str = "normal", dtype: str = "") -> Var:
        """A new graph input; kinds: normal, positive, nonzero, bool, int, index."""
        x: np.ndarray = self.np.normal(size=shape)
        dtype = dtype or self.dtype
        if kind == "bool":
            dtype = "bool"
            x = x < 0
        elif kind in ("int", "index"):
            dtype = "int64"
            x = self.np.integers(0, CLASSES, shape)
        elif kind == "positive":
            x = np.abs(x) + 0.5
        elif kind == "nonzero":
            x = x + np.where(x >= 0, 0.5, -0.5)
        self.arrays.append(np.asarray(x, numpy_dtype(dtype)))
        return self.b.input(TensorType(shape, dtype))

    def operands(self, count: int, kind: str = "normal") -> list[Var]:
        """Operands of an elementwise operator: one shape, or 0-d."""
        shape = self.shape()
        return [self.input(self.rng.choice([shape, shape, ()]), kind) for _ in range(count)]

    def some_dims(self, ndim: int, low: int = 1) -> tuple[int, ...]:
        return tuple(sorted(self.rng.sample(range(ndim), self.rng.randint(low, ndim))))

    def drawn(self, *outputs: Var) -> Drawn:
        return Drawn(self.b.build(outputs), tuple(self.arrays))


# ------------------------------------------------------------------------- one equation of each row
Draw = Callable[[Drawing], Var]


def _elementwise(name: str, count: int, kind: str = "normal") -> Draw:
    return lambda d: d.b.emit(name, *d.operands(count, kind))


def _compare(d: Drawing) -> Var:
    return d.b.compare(*d.operands(2), direction=d.rng.choice(["eq", "ge", "gt", "le", "lt", "ne"]))


def _select(d: Drawing) -> Var:
    shape = d.shape()
    shapes = [d.rng.choice([shape, shape, ()]) for _ in range(3)]
    return d.b.select(d.input(shapes[0], "bool"), d.input(shapes[1]), d.input(shapes[2]))


def _cast(d: Drawing) -> Var:
    kind, target = d.rng.choice(
        [("normal", "float32"), ("normal", "float64"), ("bool", "float64"), ("int", "float64")]
    )
    return d.b.cast(d.input(d.shape(), kind), dtype=target)


def _broadcast(d: Drawing) -> Var:
    shape = d.shape(0, 3)
    dims = d.some_dims(len(shape), 0)
    source = tuple(d.rng.choice([shape[k], shape[k], 1]) for k in dims)
    return d.b.broadcast(d.input(source), type=TensorType(shape, d.dtype), dims=dims)


def reshapes(rng: random.Random, size: int, ndim: int) -> tuple[int, ...]:
    """A random shape of a size."""
    shape = []
    for _ in range(ndim - 1):
        shape.append(rng.choice([n for n in range(1, size + 1) if size % n == 0]))
        size //= shape[-1]
    return (*shape, size)


def _reshape(d: Drawing) -> Var:
    shape = d.shape()
    size = math.prod(shape)
    target = reshapes(d.rng, size, d.rng.randint(1, 4)) if size > 1 or d.rng.random() < 0.5 else ()
    return d.b.reshape(d.input(shape), type=TensorType(target, d.dtype))


def _transpose(d: Drawing) -> Var:
    shape = d.shape(0, 4)
    perm = tuple(d.rng.sample(range(len(shape)), len(shape)))
    return d.b.transpose(d.input(shape), perm=perm)


def _window(d: Drawing) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """A shape, a shape inside it and where that starts."""
    shape = d.shape()
    starts, inner = [], []
    for n in shape:
        cut = d.rng.random() < 0.6
        starts.append(d.rng.randrange(n) if cut else 0)
        inner.append(d.rng.randint(1, n - starts[-1]) if cut else n)
    return shape, tuple(inner), tuple(starts)


def _slice(d: Drawing) -> Var:
    shape, inner, starts = _window(d)
    return d.b.slice(d.input(shape), type=TensorType(inner, d.dtype), starts=starts)


def _pad(d: Drawing) -> Var:
    shape, inner, starts = _window(d)
    return d.b.pad(d.input(inner), type=TensorType(shape, d.dtype), starts=starts)


def _concatenate(d: Drawing) -> Var:
    shape = d.shape(1)
    dim = d.rng.randrange(len(shape))
    parts = [
        d.input(tuple(d.extent() if k == dim else n for k, n in enumerate(shape)))
        for _ in range(d.rng.randint(1, 3))
    ]
    return d.b.concatenate(*parts, dim=dim)


def _reduce(name: str) -> Draw:
    def draw(d: Drawing) -> Var:
        shape = d.shape()
        return d.b.emit(name, d.input(shape), dims=d.some_dims(len(shape), 0))

    return draw


def _max_mask(d: Drawing) -> Var:
    shape = d.shape(1)
    return d.b.max_mask(d.input(shape), dims=d.some_dims(len(shape)))


def _along_dim(name: str) -> Draw:
    def draw(d: Drawing) -> Var:
        shape = d.shape(1)
        return d.b.emit(name, d.input(shape), dim=d.rng.randrange(len(shape)))

    return draw


def _dot_general(d: Drawing) -> Var:
    letters = d.rng.sample("abcdef", d.rng.randint(0, 4))
    extents = {x: d.extent() for x in letters}
    place = {x: d.rng.choice(["batch", "contracted", "left", "right"]) for x in letters}
    left = [x for x in letters if place[x] != "right"]
    right = [x for x in letters if place[x] != "left"]
    out = [x for x in letters if place[x] != "contracted"]
    for side in (left, right, out):
        d.rng.shuffle(side)
    x, y = (d.input(tuple(extents[k] for k in side)) for side in (left, right))
    return d.b.dot_general(x, y, equation=f"{''.join(left)},{''.join(right)}->{''.join(out)}")


@dataclass(frozen=True)
class Sliding:
    """Windows over spatial dims, drawn so that they fit: extents, and the operator's parameters."""

    spatial: tuple[int, ...]
    window: tuple[int, ...]
    windows: tuple[int, ...]
    params: dict[str, Any]


def _sliding(d: Drawing) -> Sliding:
    """Windows that tile a dim, that reach into the next tile, and such as allow no split."""
    rows = []
    for _ in range(d.rng.choice([1, 2, 2, 2, 3])):
        if d.rng.random() < 0.4:
            k, stride = d.rng.choice([(1, 1), (1, 2), (2, 2), (2, 3)])
            count = d.rng.choice([1, 2, 4, 6])
            rows.append((count * stride, k, count, stride, (0, 0)))
            continue
        k, stride = d.rng.randint(1, 5), d.rng.randint(1, 3)
        if d.rng.random() < 0.6 and k > stride:
            # As many rows as strides: a split dim exchanges the edges of its tiles.
            count, before = d.rng.choice([2, 4, 6, 8]), d.rng.randint(0, k - stride)
            padding = (before, k - stride - before)
            rows.append((count * stride, k, count, stride, padding))
            continue
        k, n = min(k, 3), d.rng.randint(3, 7)
        padding = (d.rng.randrange(k), d.rng.randrange(k))
        rows.append((n, k, (n + sum(padding) - k) // stride + 1, stride, padding))
    spatial, window, windows, strides, paddings = (tuple(x) for x in zip(*rows, strict=True))
    return Sliding(spatial, window, windows, {"strides": strides, "padding": paddings})


def _conv(name: str) -> Draw:
    def draw(d: Drawing) -> Var:
        s, groups, batch = _sliding(d), d.rng.choice([1, 1, 2, 4]), d.rng.choice([1, 2, 4])
        channels, out = d.rng.choice([1, 2, 4]), d.rng.choice([1, 2, 4])
        x = (batch, *s.spatial, groups * channels)
        w = (*s.window, channels, groups * out)
        y = (batch, *s.windows, groups * out)
        if name == "conv":
            return d.b.conv(d.input(x), d.input(w), **s.params)
        made, inputs = (x, (y, w)) if name == "conv_grad_input" else (w, (x, y))
        type = TensorType(made, d.dtype)
        return d.b.emit(name, *map(d.input, inputs), type=type, **s.params)

    return draw


def _experts(name: str) -> Draw:
    """Indices of 8 experts and places into 8 or fewer: some choices are dropped, some meet."""

    def draw(d: Drawing) -> Var:
        groups, tokens, width = (d.rng.choice([1, 2, 4, 6]) for _ in range(3))
        experts, capacity = d.rng.choice([2, 4, 8]), d.rng.choice([2, 4, 8])
        choices = (groups, tokens, d.rng.choice([1, 2, 4]))
        x, y = (groups, tokens, width), (groups, experts, capacity, width)
        first = d.input(x if name == "dispatch" else y)
        routes = [d.input(choices, "index") for _ in range(2)]
        if name == "combine_grad_weights":
            return d.b.combine_grad_weights(first, *routes, d.input(x))
        weights = [d.input(choices)] if d.rng.random() < 0.6 else []
        type = TensorType(y, d.dtype) if name == "dispatch" else None
        return d.b.emit(name, first, *routes, *weights, type=type)

    return draw


def _pool(name: str) -> Draw:
    def draw(d: Drawing) -> Var:
        s, batch, channels = _sliding(d), d.rng.choice([1, 2, 4]), d.rng.choice([1, 2, 4])
        x, y = (batch, *s.spatial, channels), (batch, *s.windows, channels)
        if name == "pool":
            return d.b.pool(
                d.input(x), kind=d.rng.choice(["max", "sum"]), window=s.window, **s.params
            )
        if name == "unpool":
            return d.b.unpool(d.input(y), type=TensorType(x, d.dtype), window=s.window, **s.params)
        inputs = [x, x if name == "pool_pick" else y]
        return d.b.emit(name, *map(d.input, inputs), window=s.window, **s.params)

    return draw


def _gather(d: Drawing) -> Var:
    return d.b.gather(d.input((CLASSES, d.extent())), d.input(d.shape(0, 2), "index"))


def _scatter_add(d: Drawing) -> Var:
    shape, h = d.shape(0, 2), d.extent()
    out = TensorType((CLASSES, h), d.dtype)
    return d.b.scatter_add(d.input((*shape, h)), d.input(shape, "index"), type=out)


def _rows_and_picks(d: Drawing) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Leading dims, and the shape of indices into a last dim: one index a row or several."""
    rows = d.shape(0, 2)
    return rows, rows if d.rng.random() < 0.5 else (*rows, d.rng.choice([1, 2, 4]))


def _pick(d: Drawing) -> Var:
    rows, picks = _rows_and_picks(d)
    return d.b.pick(d.input((*rows, CLASSES)), d.input(picks, "index"))


def _unpick(d: Drawing) -> Var:
    rows, picks = _rows_and_picks(d)
    out = TensorType((*rows, CLASSES), d.dtype)
    return d.b.unpick(d.input(picks), d.input(picks, "index"), type=out)


def _top_k(d: Drawing) -> Var:
    shape = d.shape(1)
    return d.b.top_k(d.input(shape), k=d.rng.randint(1, shape[-1]))


def _full(d: Drawing) -> Var:
    return d.b.full(type=TensorType(d.shape(), d.dtype), value=d.rng.choice([0.5, -2.0]))


def _iota(d: Drawing) -> Var:
    shape = d.shape(1)
    return d.b.iota(type=TensorType(shape, d.dtype), dim=d.rng.randrange(len(shape)))


def _random_bits(d: Drawing) -> Var:
    kind, dtype = d.rng.choice([("bits", "uint32"), ("uniform", "float64"), ("normal", "float64")])
    seed, step = d.input((), "int"), d.input((), "int")
    key = d.rng.randrange(1 << 32)
    return d.b.random_bits(seed, step, type=TensorType(d.shape(), dtype), kind=kind, key=key)


def _softmax(count: int) -> Draw:
    def draw(d: Drawing) -> Var:
        causal = d.rng.random() < 0.5
        shape = d.shape(2 if causal else 1)
        name = "softmax" if count == 1 else "softmax_grad"
        x = [d.input(shape) for _ in range(count)]
        return d.b.emit(name, *x, scale=d.rng.choice([1.0, 0.5]), causal=causal)

    return draw


def _halo(name: str) -> Draw:
    def draw(d: Drawing) -> Var:
        dim, tiles, rows = d.rng.randint(1, 2), d.rng.choice([1, 2, 4, 6]), d.rng.randint(2, 4)
        before, after = d.rng.randint(0, 2), d.rng.randint(0, 2)
        params = {"dim": dim, "tiles": tiles, "before": before, "after": after}
        width, shape = before + after, [d.rng.choice([1, 2, 4]) for _ in range(4)]
        if name == "halo_unfold":
            shape[0], shape[dim] = shape[0] * tiles, rows + width
            return d.b.halo_unfold(d.input(tuple(shape)), **params)
        shape[dim] = rows * tiles
        x = d.input(tuple(shape))
        if name == "halo_edges":
            return d.b.halo_edges(x, **params)
        edges = [d.input((*shape[:dim], tiles, width, *shape[dim + 1 :]))] if width else []
        return d.b.halo_fold(x, *edges, fill=d.rng.choice(["lowest", "zero"]), **params)

    return draw


def _norm(name: str, parts: str) -> Draw:
    """`x` stands for an operand of the whole shape, `v` for a vector of the last dim."""

    def draw(d: Drawing) -> Var:
        shape = (*d.shape(0, 2), d.rng.choice([2, 4, 6, 8]))
        inputs = [d.input(shape if p == "x" else shape[-1:]) for p in parts]
        return d.b.emit(name, *inputs, eps=1e-5)

    return draw


def _batch_norm(name: str, parts: str) -> Draw:
    """x: the whole shape; c: one number a channel; s: statistics; g: the sums of a gradient.

    Of the whole batch, or of groups of its rows.
    """

    def draw(d: Drawing) -> Var:
        shape = (*d.shape(1, 3), d.rng.choice([1, 2, 4, 6]))
        pair: tuple[int, ...] = (2, shape[-1])
        count, groups = math.prod(shape[:-1]), d.rng.choice([None, 1, 2, 4])
        grouped: dict[str, Any] = {}
        if groups is not None:
            rows, shape = shape[0], (shape[0] * groups, *shape[1:])
            pair, grouped = (groups, *pair), {"rows": rows}
        if name == "batch_statistics":
            return d.b.batch_statistics(d.input(pair, "positive", "float64"), count=count)
        if name == "batch_moments":
            return d.b.batch_moments(d.input(shape), **grouped)
        operands = {
            "c": lambda: d.input(shape[-1:]),
            "g": lambda: d.input(pair, "normal", working_dtype(d.dtype)),
            "s": lambda: d.input(pair, "positive", "float64"),
            "x": lambda: d.input(shape),
        }
        params: dict[str, Any] = {"count": count} if name == "batch_norm_grad" else {}
        return d.b.emit(name, *(operands[p]() for p in parts), eps=1e-5, **params, **grouped)

    return draw


def _cross_entropy(name: str) -> Draw:
    def draw(d: Drawing) -> Var:
        rows = d.extent()
        inputs = [d.input((rows, CLASSES)), d.input((rows,), "index")]
        if name == "cross_entropy_grad":
            inputs.append(d.input((rows,), dtype=NARROW.get(d.dtype, d.dtype)))
        return d.b.emit(name, *inputs)

    return draw


EQUATIONS: dict[str, Draw] = {  # alphabetical
    "add": _elementwise("add", 2),
    "argmax": _along_dim("argmax"),
    "batch_moments": _batch_norm("batch_moments", "x"),
    "batch_norm": _batch_norm("batch_norm", "xscc"),
    "batch_norm_grad": _batch_norm("batch_norm_grad", "xscxg"),
    "batch_norm_grad_sums": _batch_norm("batch_norm_grad_sums", "xsx"),
    "batch_statistics": _batch_norm("batch_statistics", ""),
    "broadcast": _broadcast,
    "cast": _cast,
    "combine": _experts("combine"),
    "combine_grad_weights": _experts("combine_grad_weights"),
    "compare": _compare,
    "concatenate": _concatenate,
    "conv": _conv("conv"),
    "conv_grad_input": _conv("conv_grad_input"),
    "conv_grad_weight": _conv("conv_grad_weight"),
    "cross_entropy": _cross_entropy("cross_entropy"),
    "cross_entropy_grad": _cross_entropy("cross_entropy_grad"),
    "cumsum": _along_dim("cumsum"),
    "dispatch": _experts("dispatch"),
    "div": _elementwise("div", 2, "nonzero"),
    "dot_general": _dot_general,
    "erf": _elementwise("erf", 1),
    "exp": _elementwise("exp", 1),
    "full": _full,
    "gather": _gather,
    "gelu": _elementwise("gelu", 1),
    "gelu_grad": _elementwise("gelu_grad", 2),
    "halo_edges": _halo("halo_edges"),
    "halo_fold": _halo("halo_fold"),
    "halo_unfold": _halo("halo_unfold"),
    "iota": _iota,
    "layer_norm": _norm("layer_norm", "xvv"),
    "layer_norm_grad": _norm("layer_norm_grad", "xvx"),
    "layer_norm_grad_scale": _norm("layer_norm_grad_scale", "xx"),
    "log": _elementwise("log", 1, "positive"),
    "max": _elementwise("max", 2),
    "max_mask": _max_mask,
    "min": _elementwise("min", 2),
    "mul": _elementwise("mul", 2),
    "neg": _elementwise("neg", 1),
    "pad": _pad,
    "pick": _pick,
    "pool": _pool("pool"),
    "pool_pick": _pool("pool_pick"),
    "pool_unpick": _pool("pool_unpick"),
    "pow": _elementwise("pow", 2, "positive"),
    "random_bits": _random_bits,
    "reduce_max": _reduce("reduce_max"),
    "reduce_min": _reduce("reduce_min"),
    "reduce_sum": _reduce("reduce_sum"),
    "reshape": _reshape,
    "rsqrt": _elementwise("rsqrt", 1, "positive"),
    "scatter_add": _scatter_add,
    "select": _select,
    "slice": _slice,
    "softmax": _softmax(1),
    "softmax_grad": _softmax(2),
    "sqrt": _elementwise("sqrt", 1, "positive"),
    "stop_gradient": _elementwise("stop_gradient", 1),
    "sub": _elementwise("sub", 2),
    "sum_squares": lambda d: d.b.sum_squares(d.input(d.shape())),
    "tanh": _elementwise("tanh", 1),
    "top_k": _top_k,
    "transpose": _transpose,
    "unpick": _unpick,
    "unpool": _pool("unpool"),
}


def random_equation(name: str, seed: int, dtype: str = "float64") -> Drawn:
    """A graph of one equation of an operator, on random shapes."""
    d = Drawing(seed, dtype=dtype)
    return d.drawn(EQUATIONS[name](d))
