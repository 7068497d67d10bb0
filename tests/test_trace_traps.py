"""What a trace cannot record is a TracingError with the user's line and what to write instead."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import special

import hpc_alpa.trace as ht
from hpc_alpa.errors import TracingError
from tests.helpers.traced import recorded

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
PLAIN = np.zeros((3, 4), np.float32)
TABLE = np.arange(20.0).reshape(5, 4)


def setitem(x: Any) -> Any:
    x[0] = 1.0
    return x


def delitem(x: Any) -> Any:
    del x[0]
    return x


def plain_setitem(x: Any) -> Any:
    PLAIN[0] = x[0]
    return x


def plain_iadd(x: Any) -> Any:
    a = PLAIN
    a += x
    return a


def branch(x: Any) -> Any:
    return x if x.sum() > 0 else -x


# name: (function of a traced array, what the message says)
TRAPS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "__array__": (lambda x: np.asarray(x), r"np\.asarray.*leave np\.asarray out"),
    "__array__ of a list": (lambda x: np.array([x, x]), r"np\.stack"),
    "__bool__": (branch, r"bool\(\).*np\.where"),
    "__bool__ and": (lambda x: (x > 0) and x, r"np\.logical_and"),
    "__complex__": (lambda x: complex(x[0, 0]), r"complex\(\)"),
    "__contains__": (lambda x: 1.0 in x, r"\(x == value\)\.any\(\)"),
    "__delitem__": (delitem, "not written in place"),
    "__float__": (lambda x: float(x[0, 0]), r"float\(\).*keep the traced array"),
    "__float__ by math": (lambda x: math.sqrt(x[0, 0]), r"x \*\* 0\.5"),
    "__index__": (lambda x: [1, 2][x[0].argmax()], r"hpc_alpa\.nn\.embedding"),
    "__index__ by range": (lambda x: range(x[0].argmax()), "lengths are static"),
    "__int__": (lambda x: int(x[0, 0]), r"astype\(np\.int64\)"),
    "__iter__ of 0-d": (lambda x: list(x.sum()), "no elements to iterate"),
    "__len__ of 0-d": (lambda x: len(x.sum()), "no length"),
    "__round__": (lambda x: round(x[0, 0]), "rounding"),
    "__setitem__": (setitem, r"x = x \+ y.*np\.where"),
    "a plain array written by a traced one": (plain_setitem, "write into no plain array"),
    "a plain array += a traced one": (plain_iadd, r"write a = a \+ x"),
    "a plain table at a traced index": (
        lambda x: TABLE[x[0].argmax()], r"hpc_alpa\.nn\.embedding",
    ),
    "a plain table at traced indices": (
        lambda x: TABLE[x.argmax(axis=1)], r"hpc_alpa\.nn\.embedding",
    ),
    "an attribute of memory": (lambda x: x.strides, "no memory"),
    "a boolean mask": (lambda x: x[x > 0], r"np\.where\(mask, x, 0\)"),
    "a plain boolean mask": (lambda x: x[PLAIN == 0], r"np\.where\(mask, x, 0\)"),
    "a method in place": (lambda x: x.sort(), "not written in place"),
    "a method with values": (lambda x: x.item(), "return the array from the step"),
    "an option": (lambda x: np.sum(x, where=x > 0), "where=.*leave where out"),
    "an option of a ufunc": (lambda x: np.add(x, 1, where=PLAIN == 0), "where=.*np.where selects"),
    "an order": (lambda x: x.reshape(4, 3, order="F"), "row-major"),
    "an output": (lambda x: np.add(x, 1, out=PLAIN), "out=.*in place"),
    "an output of a function": (lambda x: np.sum(x, axis=0, out=PLAIN[0]), "out=.*in place"),
    "complex numbers": (lambda x: x * 1j, "dtype complex"),
    "dot of a plain array": (lambda x: PLAIN.T.dot(x), r"np\.asarray"),
    "np.add.at": (lambda x: np.add.at(x, [0], 1), "in place"),
    "np.copyto": (lambda x: np.copyto(PLAIN, x), "a plain array cannot hold traced values"),
    "np.empty_like": (lambda x: np.empty_like(x), r"np\.zeros_like"),
    "np.floor_divide": (lambda x: x // 2, "rounding"),
    "np.nonzero": (lambda x: np.nonzero(x), "shape of the result would depend on values"),
    "np.prod": (lambda x: x.prod(), r"np\.exp\(np\.log\(x\)\.sum\(\)\)"),
    "np.put": (lambda x: np.put(PLAIN, [0], x), "plain array cannot hold"),
    "np.put of a traced array": (lambda x: np.put(x, [0], 1), "plain array cannot hold"),
    "np.where of a condition": (lambda x: np.where(x > 0), "pass x and y"),
    "shapes that do not fit": (lambda x: x + np.ones((2, 7), np.float32), "shape"),
    "scipy.special.softmax": (lambda x: special.softmax(x), r"np\.asarray"),
    "unknown function": (lambda x: np.linalg.svd(x), "there is no operator for it"),
    "unknown ufunc": (lambda x: np.sin(x), "there is no operator for it"),
    "an object as a result": (lambda x: {"a": object()}, "is a object: arguments and results"),
    "a set as a result": (lambda x: {1, 2}, "is a set"),
}  # fmt: skip


@pytest.mark.parametrize("name", TRAPS)
def test_trap(name: str) -> None:
    function, message = TRAPS[name]
    with pytest.raises(TracingError) as caught:
        recorded(function, X)
    assert re.search(message, str(caught.value)), str(caught.value)
    if "as a result" not in name:
        assert "test_trace_traps.py:" in str(caught.value), str(caught.value)
    assert not PLAIN.any()


def line_of(error: pytest.ExceptionInfo[TracingError]) -> int:
    found = re.search(r"test_trace_traps\.py:(\d+)", str(error.value))
    assert found
    return int(found[1])


# name: (what makes float64 of a float32 value, the fix)
PROMOTIONS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "np.sqrt of a number": (lambda x: x / np.sqrt(64), "NumPy float64 scalar.*math.sqrt"),
    "a NumPy scalar": (lambda x: x * np.float64(2), "NumPy float64 scalar"),
    "np.ones": (lambda x: x + np.ones(4), "plain float64 array.*dtype=np.float32"),
    "np.tril of np.ones": (lambda x: np.tril(np.ones((3, 3))) @ x, "plain float64 array"),
    "np.where of two numbers": (lambda x: x * np.where(x > 0, 1.0, 0.0), "traced float64.*astype"),
    "np.concatenate": (lambda x: np.concatenate([x, np.zeros((1, 4))]), "plain float64 array"),
    "np.einsum": (lambda x: np.einsum("ij,j", x, np.ones(4)), "plain float64 array"),
    "np.dot": (lambda x: np.dot(x, np.arange(4.0)), "plain float64 array"),
    "an integer array": (lambda x: x * np.arange(4), "plain int64 array"),
    "np.average": (lambda x: np.average(x, weights=np.ones((3, 4))), "plain float64 array"),
}


@pytest.mark.parametrize("name", PROMOTIONS)
def test_silent_promotion_to_float64(name: str) -> None:
    function, message = PROMOTIONS[name]
    with pytest.raises(TracingError) as caught:
        recorded(function, X)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert line_of(caught) == function.__code__.co_firstlineno
    traced = recorded(function, X, allow_float64=True)
    assert traced.outputs[0].type.dtype == "float64"
    np.testing.assert_allclose(traced.evaluate(X), function(X), rtol=1e-6)
    assert recorded(function, X.astype(np.float64)).outputs[0].type.dtype == "float64"


def test_a_traced_number_stays_weak_by_operators_only() -> None:
    def adam(x: Any, step: Any) -> Any:
        return x / (1 - 0.9**step) ** 0.5

    assert recorded(adam, X, 3).outputs[0].type.dtype == "float32"
    with pytest.raises(TracingError, match=r"traced float64\[\].*v \*\* 0\.5"):
        recorded(lambda x, step: x / np.sqrt(1 - 0.9**step), X, 3)


def trace(function: Callable[..., Any], *args: Any) -> ht.Traced:
    return ht.trace(function, args, tuple(f"argument {k}" for k in range(len(args))))


COUNTER = [0]


def count(x: Any) -> Any:
    COUNTER[0] += 1
    return x * float(COUNTER[0])


def structure(x: Any) -> Any:
    COUNTER[0] += 1
    return {f"value{COUNTER[0]}": x}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x + np.random.default_rng().normal(), r"value=.*became.*value="),
        (
            lambda x: x + np.random.default_rng().normal(size=4).astype("f4"),
            r"captured/0, read at test_trace_traps.py:\d+, changed",
        ),
        (lambda x: x * time.perf_counter(), "value="),
        (count, "value="),
        (structure, "the result"),
    ],
)
def test_functions_that_differ_between_two_traces(
    function: Callable[..., Any], message: str
) -> None:
    with pytest.raises(TracingError, match="another graph when it is traced again") as caught:
        trace(function, X)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "hpc_alpa.random" in str(caught.value)


def test_large_captured_arrays_are_named() -> None:
    positions = np.arange(300_000, dtype=np.float32)
    with pytest.raises(TracingError, match=r"'positions'.*1200000 bytes.*argument of the step"):
        trace(lambda x: x + positions, positions)
    small = np.arange(4, dtype=np.float32)
    traced = trace(lambda x: (x + small, x * small), X)
    assert [leaf.path for leaf in traced.inputs] == ["argument 0", "captured/0"]
    assert traced.inputs[1].argument is None
    np.testing.assert_array_equal(traced.captured[0], small)
    # One number everywhere is no constant of its shape.
    assert not trace(lambda x: x + np.ones((1000, 1000, 3, 4), np.float32), X).captured


def test_captured_arrays_are_copied_when_they_are_read() -> None:
    def function(x: Any) -> Any:
        a = np.arange(4, dtype=np.float32)
        first = x + a
        a[0] = 100
        return first, x + a

    traced = trace(function, X)
    assert len(traced.captured) == 2
    for made, expected in zip(traced.evaluate(X), function(X)):
        np.testing.assert_array_equal(made, expected)


def test_values_that_leave_their_trace() -> None:
    kept: list[Any] = []
    trace(lambda x: kept.append(x) or x, X)  # type: ignore[func-returns-value]
    with pytest.raises(TracingError, match="after its trace ended"):
        kept[0] + 1
    with pytest.raises(TracingError, match="another trace"):
        trace(lambda x: x + kept[0], X)
    with pytest.raises(TracingError, match="another trace"):
        trace(lambda x: kept[0], X)


def test_unknown_operands_get_their_turn() -> None:
    class Other:
        def __radd__(self, other: Any) -> str:
            return "mine"

    assert trace(lambda x: x + Other(), X).out_tree.statics() == (("", "mine"),)
    with pytest.raises(TypeError):
        trace(lambda x: x + None, X)


def test_arguments() -> None:
    with pytest.raises(TracingError, match="'argument 0/a' is a function"):
        trace(lambda x: x, {"a": trace})
    with pytest.raises(TracingError, match="'argument 0' has dtype <U1|'argument 0' has dtype str"):
        trace(lambda x: x, np.array(["a"]))
    with pytest.raises(TracingError, match="does not fit int64"):
        trace(lambda x: x, 2**70)
    with pytest.raises(TracingError, match="dtype complex128"):
        trace(lambda x: x, 1j)
    with pytest.raises(TracingError, match="1 arguments, but 2 names"):
        ht.trace(lambda x: x, (1,), ("a", "b"))
