"""The state and the train step that all models share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hpc_alpa.models.optimizers import Optimizer
from hpc_alpa.trace import value_and_grad

State = dict[str, Any]
Metrics = dict[str, Any]


def initial_state(
    init_params: Callable[[Any], Any], optimizer: Optimizer
) -> Callable[[Any], State]:
    """`init(seed)` for `ParallelStep.create`: parameters, optimizer, and a step counter at 0."""

    def init(seed: Any) -> State:
        params = init_params(seed)
        return {"params": params, "optimizer": optimizer.init(params), "step": 0}

    return init


def make_train_step(
    loss: Callable[[Any, Any, Any], Any], optimizer: Optimizer
) -> Callable[..., tuple[State, Metrics]]:
    """`train_step(state, batch, learning_rate=None) -> (new state, {"loss": ...})`.

    Args:
        loss: (params, batch, step) -> the mean over the batch, 0-d.
    """

    def train_step(state: State, batch: Any, learning_rate: Any = None) -> tuple[State, Metrics]:
        step = state["step"]
        value, gradients = value_and_grad(loss)(state["params"], batch, step)
        params, moments = optimizer.update(
            gradients, state["optimizer"], state["params"], step, learning_rate
        )
        return {"params": params, "optimizer": moments, "step": step + 1}, {"loss": value}

    return train_step


def with_dropout(
    loss: Callable[..., Any], config: Any, seed: int
) -> Callable[[Any, Any, Any], Any]:
    """The loss of a train step: its dropout is keyed by the seed and by the state's step.

    Args:
        loss: (params, batch, config, *, seed, step) -> 0-d.
    """
    return lambda params, batch, step: loss(params, batch, config, seed=seed, step=step)


def make_eval_step(loss: Callable[[Any, Any], Any]) -> Callable[[State, Any], Metrics]:
    """`eval_step(state, batch) -> {"loss": ...}` of a loss (params, batch) -> 0-d."""

    def evaluate(state: State, batch: Any) -> Metrics:
        return {"loss": loss(state["params"], batch)}

    return evaluate
