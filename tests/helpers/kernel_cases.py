"""Random arguments for every kernel, for comparing one target with another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hpc_alpa.kernels import Kernel

Arguments = tuple[Any, ...]
Maker = Callable[[np.random.Generator, str], Iterator[Arguments]]

CUBES = [(1, 1, 1), (2, 3, 5), (1, 7, 33), (3, 2, 64), (2, 1, 131), (0, 2, 3), (2, 0, 3), (1, 2, 0)]
MATRICES = [(1, 1), (3, 5), (33, 7), (2, 64), (5, 129), (0, 4)]
FLAT = [(0,), (1,), (7,), (1024,), (1025,), (3, 5, 7)]
# offsets of a tile's rows and columns under a causal mask: some rows wholly masked, none, all seen
OFFSETS = [(0, 0), (2, 1), (0, 3), (200, 0), (0, 200)]
# (array, starts, tile): rows, a part of the last dim, one column, nothing
TILES = [
    ((7,), (2,), (4,)),
    ((5, 6), (1, 0), (3, 6)),
    ((5, 6), (0, 3), (5, 1)),
    ((3, 4, 5), (1, 1, 1), (2, 2, 3)),
    ((3, 2, 4, 8), (0, 1, 0, 4), (3, 1, 4, 4)),
    ((2, 3, 4, 5), (0, 0, 0, 0), (2, 3, 4, 5)),
    ((4, 5), (2, 2), (0, 3)),
]


def normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, scale: float = 1.0) -> Any:
    return (scale * rng.standard_normal(shape)).astype(dtype)


def garbage(shape: tuple[int, ...], dtype: str) -> Any:
    """An output that a kernel has to write wholly."""
    return np.full(shape, np.nan, dtype)


def _softmax(rng: np.random.Generator, dtype: str) -> Iterator[Arguments]:
    for shape in CUBES:
        for causal, (row, column) in [(False, (0, 0)), *((True, offsets) for offsets in OFFSETS)]:
            x = normal(rng, shape, dtype, 3)
            yield x, 0.7, causal, row, column, garbage(shape, dtype)


def _softmax_grad(rng: np.random.Generator, dtype: str) -> Iterator[Arguments]:
    for shape in CUBES:
        y = rng.random(shape).astype(dtype)
        yield y, normal(rng, shape, dtype), 0.7, garbage(shape, dtype)


def _layer_norm(rng: np.random.Generator, dtype: str) -> Iterator[Arguments]:
    for n, h in MATRICES:
        x, scale, bias = (normal(rng, shape, dtype, 2) for shape in ((n, h), (h,), (h,)))
        yield x, scale, bias, 1e-5, garbage((n, h), dtype)


def _layer_norm_grad(rng: np.random.Generator, dtype: str) -> Iterator[Arguments]:
    for n, h in MATRICES:
        x, scale, ct = (normal(rng, shape, dtype, 2) for shape in ((n, h), (h,), (n, h)))
        yield x, scale, ct, 1e-2, garbage((n, h), dtype)


def _layer_norm_grad_scale(rng: np.random.Generator, dtype: str) -> Iterator[Arguments]:
    for n, h in MATRICES:
        x, ct = normal(rng, (n, h), dtype), normal(rng, (n, h), dtype)
        yield x, ct, 1e-2, garbage((h,), dtype)


def _gelu(rng: np.random.Generator, dtype: str) -> Iterator[Arguments]:
    for shape in FLAT:
        yield normal(rng, shape, dtype, 2), garbage(shape, dtype)


def _gelu_grad(rng: np.random.Generator, dtype: str) -> Iterator[Arguments]:
    for shape in FLAT:
        yield normal(rng, shape, dtype, 2), normal(rng, shape, dtype), garbage(shape, dtype)


def _labels(rng: np.random.Generator, shape: tuple[int, int]) -> Any:
    return rng.integers(0, shape[1], shape[0]).astype(
        rng.choice(["int32", "int64", "uint32", "uint64"])
    )


def _cross_entropy(rng: np.random.Generator, dtype: str) -> Iterator[Arguments]:
    for shape in MATRICES:
        logits = normal(rng, shape, dtype, 3)
        yield logits, _labels(rng, shape), garbage(shape[:1], dtype)


def _cross_entropy_grad(rng: np.random.Generator, dtype: str) -> Iterator[Arguments]:
    for shape in MATRICES:
        logits, ct = normal(rng, shape, dtype, 3), normal(rng, shape[:1], dtype)
        yield logits, _labels(rng, shape), ct, garbage(shape, dtype)


def _ema(rng: np.random.Generator, dtype: str) -> Iterator[Arguments]:
    for shape in FLAT:
        old, new = normal(rng, shape, dtype), normal(rng, shape, dtype)
        yield old, new, 0.999, garbage(shape, dtype)


def _adam_update(rng: np.random.Generator, dtype: str) -> Iterator[Arguments]:
    for shape in FLAT:
        p, m, v = (normal(rng, shape, dtype) for _ in range(3))
        yield p, m, v * v, 1e-2, 1 / (1 - 0.9), 1 / (1 - 0.999), 1e-8, 0.1, garbage(shape, dtype)


def _adam(rng: np.random.Generator, dtype: str) -> Iterator[Arguments]:
    for shape in FLAT:
        p, g, m, v = (normal(rng, shape, dtype) for _ in range(4))
        yield p, g, m, v * v, 1e-2, 0.9, 0.999, 1 / (1 - 0.9**3), 1 / (1 - 0.999**3), 1e-8, 0.1


def _pack(rng: np.random.Generator, dtype: str) -> Iterator[Arguments]:
    for shape, starts, tile in TILES:
        yield normal(rng, shape, dtype), starts, garbage(tile, dtype)


def _unpack(rng: np.random.Generator, dtype: str) -> Iterator[Arguments]:
    for shape, starts, tile in TILES:
        yield normal(rng, tile, dtype), starts, normal(rng, shape, dtype)


def _ids(rng: np.random.Generator, count: int, offset: int, extent: int) -> Any:
    """Indices on both sides of a shard as well as inside it."""
    ids = rng.integers(max(offset - extent, 0), offset + 2 * extent + 1, count)
    return ids.astype(rng.choice(["int32", "int64", "uint32", "uint64"]))


def _gather(rng: np.random.Generator, dtype: str) -> Iterator[Arguments]:
    for v, h in [*MATRICES, (4, 0)]:
        yield normal(rng, (v, h), dtype), _ids(rng, 9, 3, v), 3, garbage((9, h), dtype)


def _scatter_add(rng: np.random.Generator, dtype: str) -> Iterator[Arguments]:
    for v, h in [*MATRICES, (4, 0)]:
        yield normal(rng, (9, h), dtype), _ids(rng, 9, 3, v), 3, garbage((v, h), dtype)


def _pick(rng: np.random.Generator, dtype: str) -> Iterator[Arguments]:
    for n, v in [*MATRICES, (4, 0)]:
        yield normal(rng, (n, v), dtype), _ids(rng, n, 3, v), 3, garbage((n,), dtype)


def _unpick(rng: np.random.Generator, dtype: str) -> Iterator[Arguments]:
    for n, v in [*MATRICES, (4, 0)]:
        yield normal(rng, (n,), dtype), _ids(rng, n, 3, v), 3, garbage((n, v), dtype)


# alphabetical; random has its own tests
MAKERS: dict[str, Maker] = {
    "adam": _adam,
    "adam_update": _adam_update,
    "cross_entropy": _cross_entropy,
    "cross_entropy_grad": _cross_entropy_grad,
    "ema": _ema,
    "gather": _gather,
    "gelu": _gelu,
    "gelu_grad": _gelu_grad,
    "layer_norm": _layer_norm,
    "layer_norm_grad": _layer_norm_grad,
    "layer_norm_grad_scale": _layer_norm_grad_scale,
    "pack": _pack,
    "pick": _pick,
    "scatter_add": _scatter_add,
    "softmax": _softmax,
    "softmax_grad": _softmax_grad,
    "unpack": _unpack,
    "unpick": _unpick,
}


def arguments_of(name: str, dtype: str, seed: int = 0) -> list[Arguments]:
    """Lists of arguments for a kernel, outputs included, the arrays of floats of `dtype`."""
    return list(MAKERS[name](np.random.default_rng(seed), dtype))


def map_arrays(function: Callable[[Any], Any], arguments: Arguments) -> Arguments:
    """The arguments with `function` applied to the arrays among them."""
    return tuple(function(a) if isinstance(a, np.ndarray) else a for a in arguments)


def in_float64(x: Any) -> Any:
    return x.astype("float64") if x.dtype.kind == "f" else x.copy()


def agree(actual: Arguments, expected: Arguments, digits: float) -> None:
    """Assert that all arrays, read and written ones, agree to `digits` units in the last place.

    A unit is that of the largest element, or of 1: a sum may lose so much in its smaller results.
    """
    for a, e in zip(actual, expected, strict=True):
        if isinstance(e, np.ndarray):
            largest = np.abs(e[np.isfinite(e)]).max(initial=1) if e.dtype.kind == "f" else 0
            unit = np.finfo(a.dtype).eps if a.dtype.kind == "f" else 0
            np.testing.assert_allclose(a, e, rtol=digits * unit, atol=digits * unit * largest)
    assert len(actual) == len(expected)


def compare(kernel: Kernel, oracle: Kernel, arguments: Arguments, digits: float) -> None:
    """Run a kernel, and its oracle in float64, on copies of the arguments; compare all arrays."""
    actual, expected = map_arrays(np.copy, arguments), map_arrays(in_float64, arguments)
    kernel(*actual)
    oracle(*expected)
    agree(actual, expected, digits)
