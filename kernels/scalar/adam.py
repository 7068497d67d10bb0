"""Adam with decoupled weight decay, per element.

Kingma and Ba 2015, Alg. 1; Loshchilov and Hutter 2019, Alg. 2.
"""

import math
from typing import Any


def average(old: Any, new: Any, decay: Any, complement: Any) -> Any:
    """decay * old + (1 - decay) * new; `complement` is 1 - decay, rounded once."""
    return decay * old + complement * new


def step(
    p: Any,
    m: Any,
    v: Any,
    learning_rate: Any,
    correction1: Any,
    correction2: Any,
    eps: Any,
    weight_decay: Any,
) -> Any:
    """The new parameter; `correction` = 1 / (1 - beta**t) of the first and the second moment."""
    direction = m * correction1 / (math.sqrt(v * correction2) + eps)
    return p - learning_rate * (direction + weight_decay * p)
