"""Movement on traced arrays, with what undoes itself left out: the blocks of the other tables."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np

from hpc_alpa.trace.array import TracedArray


def reshape_to(x: TracedArray, shape: Sequence[int]) -> TracedArray:
    """The same elements in row-major order; a reshape of a reshape becomes one."""
    target = x.type.with_shape(tuple(shape))
    e = x.recording.producer(x)
    if e is not None and e.op.name == "reshape":
        x = TracedArray(x.recording, e.inputs[0])
    if x.type == target:
        return x
    return x.recording.emit("reshape", x, type=target)


def transpose_to(x: TracedArray, perm: Sequence[int]) -> TracedArray:
    """Dims in another order; a transpose of a transpose becomes one."""
    perm = tuple(perm)
    e = x.recording.producer(x)
    if e is not None and e.op.name == "transpose":
        first = e.params_dict["perm"]
        x, perm = TracedArray(x.recording, e.inputs[0]), tuple(first[d] for d in perm)
    if perm == tuple(range(x.ndim)):
        return x
    return x.recording.emit("transpose", x, perm=perm)


def broadcast_along(x: TracedArray, shape: Sequence[int], dims: Sequence[int]) -> TracedArray:
    """Dim k of x becomes dim dims[k] of the result; a unit dim may stretch."""
    shape = tuple(map(operator.index, shape))
    if min(shape, default=0) < 0:
        raise ValueError(f"the shape {tuple(shape)} has a negative extent")
    kept = [k for k, d in enumerate(dims) if x.shape[k] == shape[d]]
    x = reshape_to(x, [x.shape[k] for k in kept])
    target = x.type.with_shape(shape)
    if x.type == target:
        return x
    return x.recording.emit("broadcast", x, type=target, dims=tuple(dims[k] for k in kept))


def broadcast_to(x: TracedArray, shape: Sequence[int]) -> TracedArray:
    """As `numpy.broadcast_to`."""
    shape = tuple(shape)
    if np.broadcast_shapes(x.shape, shape) != shape:
        raise ValueError(f"shape {x.shape} does not broadcast to {shape}")
    lead = len(shape) - x.ndim
    return broadcast_along(x, shape, range(lead, len(shape)))


def spread(xs: Sequence[TracedArray]) -> tuple[TracedArray, ...]:
    """Operands of one shape, or 0-d, as elementwise operators take them."""
    shape = np.broadcast_shapes(*(x.shape for x in xs))

    def fit(x: TracedArray) -> TracedArray:
        if x.shape == shape:
            return x
        # Some operand has dims of its own to give the result its shape: one element needs none.
        return reshape_to(x, ()) if x.size == 1 else broadcast_to(x, shape)

    fitted = tuple(map(fit, xs))
    if shape and not any(x.shape == shape for x in fitted):
        fitted = (broadcast_to(fitted[0], shape), *fitted[1:])
    return fitted


def window(x: TracedArray, starts: Sequence[int], shape: Sequence[int]) -> TracedArray:
    """The elements from `starts` on."""
    if tuple(shape) == x.shape:
        return x
    return x.recording.emit("slice", x, type=x.type.with_shape(tuple(shape)), starts=tuple(starts))


def padded(x: TracedArray, starts: Sequence[int], shape: Sequence[int]) -> TracedArray:
    """Zeros of `shape` with x at `starts`."""
    if tuple(shape) == x.shape:
        return x
    return x.recording.emit("pad", x, type=x.type.with_shape(tuple(shape)), starts=tuple(starts))
