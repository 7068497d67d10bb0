"""Every public NumPy function on a traced array: the right answer or a TracingError."""

from __future__ import annotations

import contextlib
import io
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.testing import overrides
from scipy import special

from hpc_alpa.errors import TracingError
from hpc_alpa.pytree import flatten
from hpc_alpa.trace import (
    TracedArray,
    contractions,
    creation,
    elementwise,
    hints,
    indexing,
    joining,
    movement,
    reductions,
)
from hpc_alpa.trace.protocol import FUNCTIONS
from tests.helpers.traced import recorded, require_equal

# Settings, files, memory, text, types, the test suite, and np.matrix: they take no numeric array.
LEFT_OUT = {
    "bmat", "bytes_", "errstate", "frombuffer", "fromstring", "get_include", "info", "load",
    "memmap", "printoptions", "promote_types", "save", "savetxt", "savez", "savez_compressed",
    "set_printoptions", "setbufsize", "seterr", "seterrcall", "show_config", "show_runtime", "str_",
    "test",
}  # fmt: skip


def public_functions() -> dict[str, Callable[..., Any]]:
    found: dict[str, Callable[..., Any]] = {}
    modules: dict[str, types.ModuleType] = {"": np, "linalg.": np.linalg, "fft.": np.fft}
    for prefix, module in modules.items():
        for name in module.__all__:
            function = getattr(module, name)
            scalar_type = isinstance(function, type) and issubclass(function, np.generic)
            if name not in LEFT_OUT and callable(function):
                if not isinstance(function, type) or scalar_type:
                    found[prefix + name] = function
    for name in special.__all__:
        ufunc = getattr(special, name)
        # Some of several arguments take minutes.
        if isinstance(ufunc, np.ufunc) and ufunc.nin == 1:
            found[f"special.{name}"] = ufunc
    for function in overrides.get_overridable_numpy_array_functions():
        if function.__name__ not in LEFT_OUT and function not in found.values():
            if not function.__name__.startswith("_"):
                found[f"{function.__module__}.{function.__name__}"] = function
    return found


# Arguments that some function takes; y is plain.
CALLS: tuple[Callable[[Any, Any], tuple[Any, ...]], ...] = (
    lambda x, y: (x,), lambda x, y: (x, x), lambda x, y: (x, 1), lambda x, y: (x, 0),
    lambda x, y: (2, x), lambda x, y: (x, None), lambda x, y: ([x, x],), lambda x, y: ((x, y),),
    lambda x, y: (x, y), lambda x, y: (y, x), lambda x, y: (x, (4, 3)), lambda x, y: (x, -1),
    lambda x, y: (x, 0, 1), lambda x, y: (x, x, x), lambda x, y: (x, 0.5, 2.5),
    lambda x, y: (y, y, x), lambda x, y: (x > 0, x, x), lambda x, y: ("ij->ji", x),
    lambda x, y: ("ij,kj->ik", x, x), lambda x, y: (y, [0], x),
)  # fmt: skip


FLOATS = np.linspace(-0.9, 1.7, 12, dtype=np.float32).reshape(3, 4)
SAMPLES: dict[str, Any] = {
    "float32": FLOATS,
    "int64": np.arange(12).reshape(3, 4) % 5,
    "bool": FLOATS > 0,
    "square": FLOATS[:, :3] + np.eye(3, dtype=np.float32),
    "vector": np.array([0.5, 0.25, 0.125]),
    "0-d": np.float32(0.75),
}
PUBLIC = public_functions()


def outcome(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """The result, or the exception."""
    try:
        return function(*args)
    except Exception as error:
        return error


@pytest.mark.parametrize("sample", SAMPLES)
def test_every_public_function(sample: str) -> None:
    plain = SAMPLES[sample]
    other = (np.asarray(plain) * 3 // 2).astype(plain.dtype)
    right, wrong = set(), []
    silent = io.StringIO()
    with warnings.catch_warnings(), np.errstate(all="ignore"), contextlib.redirect_stdout(silent):
        warnings.simplefilter("ignore")
        for name, function in PUBLIC.items():
            answers = compared(function, plain, other)
            right |= {name} if any(a is None for a in answers) else set()
            wrong += [f"{name}, call {k}: {a}" for k, a in enumerate(answers) if a]
    assert not wrong, "\n".join(wrong)
    assert len(right) > 60, sorted(right)


def compared(function: Callable[..., Any], plain: Any, other: Any) -> list[str | None]:
    """For each call: what is wrong, "" when it was refused, None when the answer was right."""
    expected = [outcome(function, call(np.array(plain), np.array(other))) for call in CALLS]
    results: list[Any] = []

    def traced(x: Any) -> Any:
        results.extend(outcome(function, call(x, np.array(other))) for call in CALLS)
        kept = [r for r in results if not isinstance(r, Exception)]
        return [v for v in values_of(kept) if isinstance(v, TracedArray)]

    values = iter(recorded(traced, plain).evaluate(plain))
    return [judged(e, r, values) for e, r in zip(expected, results)]


def judged(expected: Any, result: Any, values: Iterator[Any]) -> str | None:
    """One call; `values` continues with those of the traced arrays in its result."""
    if isinstance(result, Exception):
        # NumPy itself turns a failing __index__ of an axis into a TypeError.
        errors = (result, result.__cause__)
        if isinstance(expected, Exception) or any(isinstance(e, TracingError) for e in errors):
            return ""
        return f"{type(result).__name__}: {result}"
    found = [next(values) if isinstance(v, TracedArray) else v for v in values_of(result)]
    if isinstance(expected, Exception):
        # We may take more than NumPy, but nothing that is not a number.
        return next((f"{v!r}" for v in found if np.asarray(v).dtype == object), "")
    wanted = values_of(expected)
    if len(found) != len(wanted):
        return f"{found} instead of {wanted}"
    for x, y in zip(wanted, found):
        try:
            # count_nonzero was a Python int before NumPy 2.1
            require_equal(np.asarray(x), y) if np.asarray(
                x
            ).dtype.kind in "biuf" else np.array_equal(x, y)
        except AssertionError as error:
            return f"{str(error):.300}"
    return None


def values_of(result: Any) -> list[Any]:
    """Leaves and static values in order."""
    if result is None or isinstance(result, (bool, str)):
        return [result]
    if isinstance(result, dict | list | tuple):
        items = result.values() if isinstance(result, dict) else result
        return [v for item in items for v in values_of(item)]
    return list(flatten(result)[0])


def test_the_tables_are_alphabetical_and_current() -> None:
    tables: list[Any] = [
        contractions.ROWS, creation.ROWS, elementwise.ROWS, elementwise.SPECIAL, indexing.ROWS,
        joining.ROWS, movement.ROWS, reductions.ROWS,
    ]  # fmt: skip
    for table in tables:
        assert list(table) == sorted(table)
    names = [name for table in tables for name in table]
    assert len(names) == len(set(names))
    assert len(FUNCTIONS) >= 80
    assert all(list(found) == sorted(found) for found in hints._REASONS.values())
    lowered = {name for name, _ in FUNCTIONS.values()} | set(elementwise.ROWS)
    assert not lowered & set(hints.HINTS)
