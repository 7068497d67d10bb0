"""Stochastic gradient descent, with momentum and Nesterov's momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc_alpa.errors import DataError
from hpc_alpa.models.optimizers.optimizer import Optimizer, Tree
from hpc_alpa.pytree import tree_map


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent; a `momentum` of 0 keeps no state.

    Attributes:
        nesterov: step along the gradient and the velocity after it, not along the velocity alone.

    Raises:
        DataError: `nesterov` without momentum.
    """

    learning_rate: float = 1e-2
    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        if self.nesterov and not self.momentum:
            raise DataError("SGD: nesterov with momentum 0 is plain descent; take momentum=0.9")


def sgd(config: SGD = SGD()) -> Optimizer:
    """p - learning_rate * velocity, velocity = momentum * velocity + gradient (Polyak 1964).

    With `nesterov` p - learning_rate * (gradient + momentum * velocity), with the new velocity:
    Nesterov's method, with the point after its half step as the parameter (Sutskever et al. 2013,
    eq. 3 and 4; Bengio et al. 2013, eq. 7).

    State: one velocity per parameter, of its shape and dtype.
    """
    c = config

    def init(params: Tree) -> Tree:
        return {"velocity": tree_map(np.zeros_like, params)} if c.momentum else {}

    def update(
        gradients: Tree, state: Tree, params: Tree, step: Any, learning_rate: Any = None
    ) -> tuple[Tree, Tree]:
        rate = c.learning_rate if learning_rate is None else learning_rate
        velocity = gradients
        if c.momentum:
            velocity = tree_map(lambda u, g: c.momentum * u + g, state["velocity"], gradients)
        direction = velocity
        if c.nesterov:
            direction = tree_map(lambda u, g: g + c.momentum * u, velocity, gradients)
        moved = tree_map(lambda p, d: p - rate * d, params, direction)
        return moved, {"velocity": velocity} if c.momentum else {}

    return Optimizer(init, update)
