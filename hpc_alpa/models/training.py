"""The state and the train step that all models share."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc_alpa import nn
from hpc_alpa.errors import DataError
from hpc_alpa.models.optimizers import Optimizer
from hpc_alpa.models.precision import GRADIENTS, MASTERS, LossScale, cast
from hpc_alpa.pytree import tree_map
from hpc_alpa.trace import value_and_grad

State = dict[str, Any]
Metrics = dict[str, Any]


@dataclass(frozen=True)
class Training:
    """What a train step does besides the loss's gradient and the optimizer's update.

    Attributes:
        precision: dtype that forward and backward compute in; None: that of the weights.
        gradients: dtype in which gradients are summed over microbatches and devices, the precision
            or that of the weights; None takes what `models.precision` says of the precision.
        clip: largest norm of all gradients together; None does not look.
        loss_scale: None: a float16 loss has `LossScale()`, others have none.

    Raises:
        DataError: a `clip` that is not above 0, or gradients in a dtype that is neither.
    """

    precision: str | None = None
    gradients: str | None = None
    clip: float | None = None
    loss_scale: LossScale | None = None

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip > 0:
            raise DataError(f"clip is {self.clip}; it is the largest norm of gradients, above 0")
        of_weights = MASTERS.get(self.precision or "", ())
        if self.gradients not in (None, self.precision, *of_weights):
            raise DataError(
                f"gradients are summed in {self.gradients!r}, neither the precision "
                f"{self.precision!r} nor what weights are kept in beside it: "
                f"{', '.join(of_weights) or 'their own dtype'}"
            )

    @property
    def scaling(self) -> LossScale | None:
        """How the loss is scaled, if it is."""
        if self.loss_scale is None and self.precision == "float16":
            return LossScale()
        return self.loss_scale

    @property
    def differentiated(self) -> str | None:
        """dtype of the weights that the loss is differentiated by; None: as they are kept.

        Their gradients are summed in it. By the weights themselves: the cast to `precision` is
        part of the loss, and its gradient casts each microbatch's part back.
        """
        wanted = self.gradients or GRADIENTS.get(self.precision or "")
        return self.precision if wanted == self.precision else None


def initial_state(
    init_params: Callable[[Any], Any], optimizer: Optimizer, training: Training = Training()
) -> Callable[[Any], State]:
    """`init(seed)` for `ParallelStep.create`: parameters, optimizer, and a step counter at 0.

    With a scaled loss also its `loss_scale`.
    """

    def init(seed: Any) -> State:
        params = init_params(seed)
        state = {"params": params, "optimizer": optimizer.init(params), "step": 0}
        scaling = training.scaling
        return state if scaling is None else {**state, "loss_scale": scaling.init()}

    return init


def make_train_step(
    loss: Callable[[Any, Any, Any], Any],
    optimizer: Optimizer,
    training: Training = Training(),
    follow: Callable[[State, Any], State] | None = None,
) -> Callable[..., tuple[State, Metrics]]:
    """`train_step(state, batch, learning_rate=None) -> (new state, {"loss": ...})`.

    Metrics have the gradients' `norm` too where they are clipped (before it), and the loss's
    `scale` where it is scaled.

    Args:
        loss: (params, batch, step) -> 0-d, the sum over the batch of what each row adds: a mean, a
            sum, or a sum over a count that depends on the batch alone. It gets the parameters in
            the precision.
        follow: (state, aux) -> more entries of the new state; the loss then returns (0-d, aux).
    """
    t = training
    scaling = t.scaling

    def scaled(params: Any, batch: Any, step: Any, scale: Any) -> Any:
        found = loss(cast(params, t.precision), batch, step)
        value, aux = found if follow is not None else (found, None)
        return value if scale is None else value * scale.astype(value.dtype), (value, aux)

    def train_step(state: State, batch: Any, learning_rate: Any = None) -> tuple[State, Metrics]:
        step, kept = state["step"], state["params"]
        scale = state["loss_scale"]["scale"] if scaling is not None else None
        params = cast(kept, t.differentiated)
        both = value_and_grad(scaled, has_aux=True)
        (_, (value, aux)), gradients = both(params, batch, step, scale)
        metrics = {"loss": value}
        factor: Any = None
        finite: Any = None
        if t.clip is not None or scale is not None:
            norm = global_norm(gradients)
            finite = np.isfinite(norm)
            if scale is not None:
                factor = 1 / scale.astype(norm.dtype)
                norm = norm * factor
                metrics["scale"] = scale
            if t.clip is not None:
                clipped = np.minimum(1, t.clip / (norm + norm.dtype.type(1e-6)))
                factor = clipped if factor is None else clipped * factor
                metrics["norm"] = norm

        def as_kept(g: Any, p: Any) -> Any:
            g = g.astype(p.dtype)
            return g if factor is None else g * factor.astype(p.dtype)

        gradients = tree_map(as_kept, gradients, kept)
        moved, moments = optimizer.update(gradients, state["optimizer"], kept, step, learning_rate)
        made = {"params": moved, "optimizer": moments, "step": step + 1}
        if follow is not None:
            made |= follow(state, aux)
        if scaling is None:
            return made, metrics
        before = {name: state[name] for name in made}
        made = tree_map(lambda new, old: np.where(finite, new, old), made, before)
        return {**made, "loss_scale": scaling.update(state["loss_scale"], finite)}, metrics

    return train_step


def global_norm(tree: Any) -> Any:
    """Root of the sum of squares of all leaves, 0-d, float32 of 16-bit ones."""
    return np.sqrt(_sum_squares(tree))


def _sum_squares(tree: Any) -> Any:
    """Subtree by subtree: where layers are on several stages, one number leaves each."""
    if isinstance(tree, (dict, list, tuple)):
        branches = tree.values() if isinstance(tree, dict) else tree
        return functools.reduce(operator.add, map(_sum_squares, branches))
    return nn.sum_squares(tree)


def with_dropout(
    loss: Callable[..., Any], config: Any, seed: int
) -> Callable[[Any, Any, Any], Any]:
    """The loss of a train step: its dropout is keyed by the seed and by the state's step.

    Args:
        loss: (params, batch, config, *, seed, step) -> 0-d.
    """
    return lambda params, batch, step: loss(params, batch, config, seed=seed, step=step)


def _weighted(losses: Any, batch: Any) -> Any:
    weights = batch["weights"].astype(losses.dtype)
    return np.sum(losses * weights) / np.sum(weights)


# What the loss is of the losses of all tokens; each is a sum over rows, whatever the microbatches.
REDUCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "mean": lambda losses, batch: np.mean(losses),
    "sum": lambda losses, batch: np.sum(losses),
    # The sum of the weights is known before the first microbatch.
    "weighted": _weighted,
}


def reduced(losses: Any, batch: Any, reduction: str) -> Any:
    """The losses of tokens (batch, sequence) as one number.

    Args:
        batch: has `weights` (batch, sequence) where the reduction is "weighted": the loss is the
            sum of weight times loss over the sum of weights.
        reduction: a name of `REDUCTIONS`.

    Raises:
        DataError: another name.
    """
    if reduction not in REDUCTIONS:
        raise DataError(f"reduction is {reduction!r}, not {', '.join(REDUCTIONS)}")
    return REDUCTIONS[reduction](losses, batch)


def make_eval_step(
    loss: Callable[[Any, Any], Any], precision: str | None = None
) -> Callable[[State, Any], Metrics]:
    """`eval_step(state, batch) -> {"loss": ...}` of a loss (params, batch) -> 0-d.

    Args:
        precision: dtype that the loss gets the parameters in; None: as they are kept.
    """

    def evaluate(state: State, batch: Any) -> Metrics:
        return {"loss": loss(cast(state["params"], precision), batch)}

    return evaluate
