"""What a train step needs of an optimizer: two pure functions on trees of parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc_alpa.pytree import flatten

Tree = Any


@dataclass(frozen=True)
class Optimizer:
    """What a train step needs of an optimizer.

    Attributes:
        init: (params) -> the optimizer's state.
        update: (gradients, state, params, step, learning_rate) -> (new params, new state). `step`
            counts from 0; a `learning_rate` of None takes the config's.
    """

    init: Callable[[Tree], Tree]
    update: Callable[..., tuple[Tree, Tree]]


def num_parameters(params: Tree) -> int:
    """Elements of all leaves."""
    return sum(int(np.prod(np.shape(p))) for p in flatten(params)[0])
