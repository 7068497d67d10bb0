"""Run a function on plain arrays and as a traced graph, and compare."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from hpc_alpa.pytree import flatten
from hpc_alpa.trace import Signature, Traced, TracedArray
from hpc_alpa.trace.tracing import record

TOLERANCE = {"float16": 4e-3, "bfloat16": 3e-2, "float32": 2e-5, "float64": 1e-12}


def recorded(function: Callable[..., Any], *args: Any, allow_float64: bool = False) -> Traced:
    """Trace once, without the second trace that compares."""
    names = tuple(f"argument {k}" for k in range(len(args)))
    return record(function, Signature.of(args, names), allow_float64, None)


def require_equal(plain: Any, made: Any) -> None:
    """Same type (dtype included), shape and, up to rounding, values."""
    if isinstance(plain, (int, float)) and not isinstance(plain, np.generic):
        assert type(made) is type(plain), (made, plain)
    plain, made = np.asarray(plain), np.asarray(made)
    assert made.dtype == plain.dtype, (made.dtype, plain.dtype)
    assert made.shape == plain.shape, (made.shape, plain.shape)
    tolerance = TOLERANCE.get(plain.dtype.name, 0)
    wide = (plain.astype(np.float64), made.astype(np.float64)) if tolerance else (plain, made)
    np.testing.assert_allclose(wide[1], wide[0], rtol=tolerance, atol=tolerance)


def require_same(function: Callable[..., Any], *args: Any, allow_float64: bool = False) -> Traced:
    """The function gives the same on plain arrays and as a graph; returns the graph."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = function(*args)
        traced = recorded(function, *args, allow_float64=allow_float64)
        made = traced.evaluate(*args)
    expected, tree = flatten(plain)
    found, found_tree = flatten(made)
    assert tree == found_tree, (tree, found_tree)
    for x, y in zip(expected, found):
        require_equal(x, y)
    return traced


def is_traced(x: Any) -> bool:
    return isinstance(x, TracedArray)
