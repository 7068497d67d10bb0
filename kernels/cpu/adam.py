"""Adam with decoupled weight decay: one pass over memory per function."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_alpa.kernels.cpu.compile import BLOCK, compiled, flat, store
from hpc_alpa.kernels.scalar import adam as scalar

_average = compiled(inline=True)(scalar.average)
_step = compiled(inline=True)(scalar.step)


@compiled()
def _ema(old: Any, new: Any, decay: float, out: Any) -> None:
    real = old.dtype.type
    keep, complement = real(decay), real(1.0 - decay)
    buffer = np.empty(BLOCK, old.dtype)
    for start in range(0, old.size, BLOCK):
        before, sample = old[start : start + BLOCK], new[start : start + BLOCK]
        for i in range(before.size):
            buffer[i] = _average(before[i], sample[i], keep, complement)
        store(buffer, out[start : start + BLOCK])


@compiled()
def _adam_update(
    p: Any,
    m: Any,
    v: Any,
    learning_rate: float,
    correction1: float,
    correction2: float,
    eps: float,
    weight_decay: float,
    out: Any,
) -> None:
    real = p.dtype.type
    rate, c1, c2 = real(learning_rate), real(correction1), real(correction2)
    small, decay = real(eps), real(weight_decay)
    buffer = np.empty(BLOCK, p.dtype)
    for start in range(0, p.size, BLOCK):
        value, first = p[start : start + BLOCK], m[start : start + BLOCK]
        second = v[start : start + BLOCK]
        for i in range(value.size):
            buffer[i] = _step(value[i], first[i], second[i], rate, c1, c2, small, decay)
        store(buffer, out[start : start + BLOCK])


@compiled()
def _adam(
    p: Any,
    g: Any,
    m: Any,
    v: Any,
    learning_rate: float,
    beta1: float,
    beta2: float,
    correction1: float,
    correction2: float,
    eps: float,
    weight_decay: float,
) -> None:
    real = p.dtype.type
    rate, c1, c2 = real(learning_rate), real(correction1), real(correction2)
    small, decay = real(eps), real(weight_decay)
    keep1, complement1 = real(beta1), real(1.0 - beta1)
    keep2, complement2 = real(beta2), real(1.0 - beta2)
    for i in range(p.size):
        first = _average(m[i], g[i], keep1, complement1)
        second = _average(v[i], g[i] * g[i], keep2, complement2)
        p[i] = _step(p[i], first, second, rate, c1, c2, small, decay)
        m[i] = first
        v[i] = second


def ema(old: NDArray[Any], new: NDArray[Any], decay: float, out: NDArray[Any]) -> None:
    """out = decay * old + (1 - decay) * new: an exponential moving average, any shape."""
    _ema(flat(old), flat(new), float(decay), flat(out))


def adam_update(
    p: NDArray[Any],
    m: NDArray[Any],
    v: NDArray[Any],
    learning_rate: float,
    correction1: float,
    correction2: float,
    eps: float,
    weight_decay: float,
    out: NDArray[Any],
) -> None:
    """out = p - rate * (m * correction1 / (sqrt(v * correction2) + eps) + weight_decay * p)."""
    _adam_update(
        flat(p),
        flat(m),
        flat(v),
        float(learning_rate),
        float(correction1),
        float(correction2),
        float(eps),
        float(weight_decay),
        flat(out),
    )


def adam(
    p: NDArray[Any],
    g: NDArray[Any],
    m: NDArray[Any],
    v: NDArray[Any],
    learning_rate: float,
    beta1: float,
    beta2: float,
    correction1: float,
    correction2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """One step in place on p, m and v, from the gradient g: both averages and the update."""
    scalars = (learning_rate, beta1, beta2, correction1, correction2, eps, weight_decay)
    _adam(flat(p), flat(g), flat(m), flat(v), *map(float, scalars))
