"""Adafactor: second moments of a matrix kept as one number for each row and each column."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc_alpa.models.optimizers.optimizer import Optimizer, Tree
from hpc_alpa.pytree import flatten, tree_map


@dataclass(frozen=True)
class Adafactor:
    """The hyperparameters of Shazeer and Stern 2018, Sec. 9, with the paper's values.

    Attributes:
        learning_rate: with `relative` the largest relative step size, else the step size.
        relative: a step of max(eps2, RMS(parameter)) * min(learning_rate, 1 / sqrt(t)) in step t.
        decay: the share of the new squares in step t is t ** -decay.
        clip: largest root mean square of an update before it is scaled by the step size.
        eps1: added to squared gradients.
        eps2: smallest root mean square that a parameter counts with.
    """

    learning_rate: float = 1e-2
    relative: bool = True
    decay: float = 0.8
    clip: float = 1.0
    eps1: float = 1e-30
    eps2: float = 1e-3


def adafactor(config: Adafactor = Adafactor()) -> Optimizer:
    """Shazeer and Stern 2018, Alg. 4 for matrices, Alg. 5 for vectors and numbers.

    A parameter of more than two dims is a stack of matrices of its last two: an expert, or the
    place in a convolution's window, has rows and columns of its own.

    State: {"rows", "columns"} for each parameter of two dims or more, of its shape without the last
    dim and without the one before; {"squares"} of its shape for the others.
    """
    c = config

    def init(params: Tree) -> Tree:
        return tree_map(_no_squares, params)

    def update(
        gradients: Tree, state: Tree, params: Tree, step: Any, learning_rate: Any = None
    ) -> tuple[Tree, Tree]:
        rate = c.learning_rate if learning_rate is None else learning_rate
        t = step + 1.0
        leaves, tree = flatten(params)
        kept, kept_tree = flatten(state)
        # The leaves of the state lie in the order of the parameters that they belong to.
        rest = iter(kept)
        moved, squares = [], []
        for p, g in zip(leaves, flatten(gradients)[0], strict=True):
            means = [_mixed(next(rest), m, t**-c.decay) for m in _means(g * g + c.eps1)]
            direction = g / _root(*means)
            size = rate
            if c.relative:
                size = np.minimum(rate, t**-0.5).astype(p.dtype) * np.maximum(c.eps2, _rms(p))
            moved.append(p - size / np.maximum(1.0, _rms(direction) / c.clip) * direction)
            squares += means
        return tree.unflatten(moved), kept_tree.unflatten(squares)

    return Optimizer(init, update)


def _no_squares(p: Any) -> Tree:
    names = ("columns", "rows") if np.ndim(p) > 1 else ("squares",)
    return {name: np.zeros_like(mean) for name, mean in zip(names, _means(p), strict=True)}


def _means(squares: Any) -> tuple[Any, ...]:
    """What is kept of them: means of columns and of rows, or all if they are no matrix.

    Means in the place of the paper's sums: the updates are the same, and do not overflow.
    """
    if np.ndim(squares) < 2:
        return (squares,)
    return np.mean(squares, axis=-2), np.mean(squares, axis=-1)


def _mixed(old: Any, new: Any, share: Any) -> Any:
    return (1.0 - share) * old + share * new


def _root(columns: Any, rows: Any = None) -> Any:
    """The root of the second moments: of rows columns / mean(rows), if they are factored."""
    if rows is None:
        return np.sqrt(columns)
    shares = rows / np.mean(rows, axis=-1, keepdims=True)
    return np.sqrt(shares)[..., None] * np.sqrt(columns)[..., None, :]


def _rms(x: Any) -> Any:
    return np.sqrt(np.mean(x * x))
