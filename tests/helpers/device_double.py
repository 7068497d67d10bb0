"""A double of CuPy's arrays: NumPy inside, but it never becomes a NumPy array unasked.

Code written for either library runs on it; code that would copy a device array to the host behind
the caller's back, or mix host arrays into a device computation, fails.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

MODULE = "device_double"  # the top-level module that arrays of this kind say they are from


class DeviceArray(NDArrayOperatorsMixin):
    """An array that refuses implicit conversion."""

    __module__ = MODULE

    def __init__(self, values: Any) -> None:
        self.values = values

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("implicit conversion to a NumPy array")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        _none_on_host(inputs)
        named = {name: to_host(value) for name, value in options.items()}
        return _wrap(getattr(ufunc, method)(*map(to_host, inputs), **named))

    def __getattr__(self, name: str) -> Any:
        member = getattr(self.values, name)
        return _lift(member) if callable(member) and not isinstance(member, np.dtype) else member

    def __getitem__(self, index: Any) -> Any:
        return _wrap(self.values[to_host(index)])

    def __setitem__(self, index: Any, values: Any) -> None:
        _none_on_host((values,))
        self.values[to_host(index)] = to_host(values)

    def __len__(self) -> int:
        return len(self.values)

    def __int__(self) -> int:
        return int(self.values)

    def __bool__(self) -> bool:
        return bool(self.values)


class DeviceModule:
    """NumPy's functions for `DeviceArray`s alone."""

    __file__ = __file__  # tools that walk sys.modules take it for a path

    class add:
        at = staticmethod(lambda *a: np.add.at(*map(to_host, a)))

    def __getattr__(self, name: str) -> Any:
        member = getattr(np, name)
        return member if isinstance(member, (type, float, str)) else _lift(member)


def _wrap(x: Any) -> Any:
    return DeviceArray(x) if isinstance(x, (np.ndarray, np.generic)) else x


def to_host(x: Any) -> Any:
    if isinstance(x, (tuple, list)):
        return type(x)(map(to_host, x))
    return x.values if isinstance(x, DeviceArray) else x


def _lift(function: Any) -> Any:
    def lifted(*arguments: Any, **named: Any) -> Any:
        _none_on_host(arguments)
        unwrapped = {name: to_host(value) for name, value in named.items()}
        return _wrap(function(*map(to_host, arguments), **unwrapped))

    return lifted


def _none_on_host(arguments: tuple[Any, ...]) -> None:
    assert not any(isinstance(x, np.ndarray) and x.ndim for x in arguments), "a host array"


sys.modules[MODULE] = DeviceModule()  # type: ignore[assignment]
