"""Adam with decoupled weight decay.

Kingma and Ba 2015, Alg. 1; Loshchilov and Hutter 2019, Alg. 2.
"""

from hpc_alpa.kernels import Array
from hpc_alpa.kernels.reference import array_module


def ema(old: Array, new: Array, decay: float, out: Array) -> None:
    """out = decay * old + (1 - decay) * new: an exponential moving average, any shape."""
    out[...] = float(decay) * old + (1.0 - float(decay)) * new


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
) -> None:
    """out = p - rate * (m * correction1 / (sqrt(v * correction2) + eps) + weight_decay * p).

    Any shape. correction = 1 / (1 - beta**t) of the first and the second moment at step t = 1, 2,
    ...
    """
    root = array_module(p).sqrt(v * float(correction2))
    direction = m * float(correction1) / (root + float(eps))
    out[...] = p - float(learning_rate) * (direction + float(weight_decay) * p)


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
) -> None:
    """One step in place on p, m and v, from the gradient g: both averages and the update."""
    ema(m, g, beta1, m)
    ema(v, g * g, beta2, v)
    adam_update(p, m, v, learning_rate, correction1, correction2, eps, weight_decay, p)
