"""Adam and AdamW."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc_alpa.models.optimizers.optimizer import Optimizer, Tree
from hpc_alpa.pytree import tree_map


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay; a `weight_decay` of 0 is Adam.

    Attributes:
        weight_decay: of matrices only: biases and the scales of norms do not decay.
    """

    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0


def adamw(config: AdamW = AdamW()) -> Optimizer:
    """Kingma and Ba 2015, Alg. 1; Loshchilov and Hutter 2019, Alg. 2.

    State: two moments per parameter, of its shape and dtype.
    """
    c = config

    def init(params: Tree) -> Tree:
        return {"m": tree_map(np.zeros_like, params), "v": tree_map(np.zeros_like, params)}

    def update(
        gradients: Tree, state: Tree, params: Tree, step: Any, learning_rate: Any = None
    ) -> tuple[Tree, Tree]:
        rate = c.learning_rate if learning_rate is None else learning_rate
        t = step + 1
        correction1, correction2 = 1.0 / (1.0 - c.beta1**t), 1.0 / (1.0 - c.beta2**t)

        def moved(p: Any, m: Any, v: Any) -> Any:
            direction = (m * correction1) / (np.sqrt(v * correction2) + c.eps)
            if c.weight_decay and np.ndim(p) > 1:
                direction = direction + c.weight_decay * p
            return p - rate * direction

        m = tree_map(lambda m, g: c.beta1 * m + (1.0 - c.beta1) * g, state["m"], gradients)
        v = tree_map(lambda v, g: c.beta2 * v + (1.0 - c.beta2) * (g * g), state["v"], gradients)
        return tree_map(moved, params, m, v), {"m": m, "v": v}

    return Optimizer(init, update)
