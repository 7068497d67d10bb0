"""Adam with decoupled weight decay: grid-stride loops over flat arrays, one pass over memory."""

from typing import Any

from numba import cuda, float32, float64

from hpc_alpa.kernels import Array
from hpc_alpa.kernels.cuda.block import THREADS, grid
from hpc_alpa.kernels.scalar import adam as scalar

_average = cuda.jit(device=True)(scalar.average)
_step = cuda.jit(device=True)(scalar.step)


@cuda.jit
def _ema(old: Any, new: Any, decay: Any, complement: Any, out: Any) -> None:
    for i in range(cuda.grid(1), old.size, cuda.gridsize(1)):
        out[i] = _average(old[i], new[i], decay, complement)


@cuda.jit
def _adam_update(
    p: Any,
    m: Any,
    v: Any,
    learning_rate: Any,
    correction1: Any,
    correction2: Any,
    eps: Any,
    weight_decay: Any,
    out: Any,
) -> None:
    for i in range(cuda.grid(1), p.size, cuda.gridsize(1)):
        out[i] = _step(p[i], m[i], v[i], learning_rate, correction1, correction2, eps, weight_decay)


@cuda.jit
def _adam(
    p: Any,
    g: Any,
    m: Any,
    v: Any,
    learning_rate: Any,
    beta1: Any,
    complement1: Any,
    beta2: Any,
    complement2: Any,
    correction1: Any,
    correction2: Any,
    eps: Any,
    weight_decay: Any,
) -> None:
    for i in range(cuda.grid(1), p.size, cuda.gridsize(1)):
        first = _average(m[i], g[i], beta1, complement1)
        second = _average(v[i], g[i] * g[i], beta2, complement2)
        p[i] = _step(
            p[i], first, second, learning_rate, correction1, correction2, eps, weight_decay
        )
        m[i] = first
        v[i] = second


def ema(old: Array, new: Array, decay: float, out: Array, stream: Any = 0) -> None:
    """out = decay * old + (1 - decay) * new: an exponential moving average, any shape."""
    real = old.dtype.type
    if out.size:
        kernel = _ema[grid(out.size), THREADS, stream]
        kernel(_flat(old), _flat(new), real(decay), real(1.0 - decay), _flat(out))


def adam_update(
    p: Array,
    m: Array,
    v: Array,
    learning_rate: float,
    correction1: float,
    correction2: float,
    eps: float,
    weight_decay: float,
    out: Array,
    stream: Any = 0,
) -> None:
    """out = p - rate * (m * correction1 / (sqrt(v * correction2) + eps) + weight_decay * p)."""
    scalars = map(p.dtype.type, (learning_rate, correction1, correction2, eps, weight_decay))
    if out.size:
        kernel = _adam_update[grid(out.size), THREADS, stream]
        kernel(_flat(p), _flat(m), _flat(v), *scalars, _flat(out))


def adam(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    learning_rate: float,
    beta1: float,
    beta2: float,
    correction1: float,
    correction2: float,
    eps: float,
    weight_decay: float,
    stream: Any = 0,
) -> None:
    """One step in place on p, m and v, from the gradient g: both averages and the update."""
    averages = (beta1, 1.0 - beta1, beta2, 1.0 - beta2)
    rest = (correction1, correction2, eps, weight_decay)
    if p.size:
        kernel = _adam[grid(p.size), THREADS, stream]
        kernel(*map(_flat, (p, g, m, v)), *map(p.dtype.type, (learning_rate, *averages, *rest)))


def _flat(x: Array) -> Array:
    assert x.flags.c_contiguous, f"kernels take C-contiguous arrays, got strides {x.strides}"
    return x.reshape(-1)


def entry_points() -> list[tuple[Any, tuple[Any, ...]]]:
    """(kernel, argument types) of everything that is launched here."""
    return [
        entry
        for real in (float32, float64)
        for flat in (real[::1],)
        for entry in (
            (_ema, (flat, flat, real, real, flat)),
            (_adam_update, (flat, flat, flat, *[real] * 5, flat)),
            (_adam, (*[flat] * 4, *[real] * 9)),
        )
    ]
