"""A multilayer perceptron: dense, bias and relu, `layers` times, with the mean squared error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc_alpa import nn
from hpc_alpa.models.layers import dense, init_dense
from hpc_alpa.models.optimizers import Optimizer
from hpc_alpa.models.training import Metrics, State, initial_state, make_train_step


@dataclass(frozen=True)
class MLPConfig:
    """Every layer is hidden x hidden."""

    layers: int
    hidden: int
    dtype: str = "float32"


def init_params(config: MLPConfig, seed: Any) -> dict[str, Any]:
    """Weights of deviation sqrt(2 / hidden), which keeps the size of relu's outputs (He 2015)."""
    h, deviation = config.hidden, (2.0 / config.hidden) ** 0.5
    return {
        "layers": [
            init_dense(seed, f"layers/{k}", h, h, config.dtype, deviation)
            for k in range(config.layers)
        ]
    }


def forward(params: dict[str, Any], x: Any) -> Any:
    """(batch, hidden) -> the same."""
    for layer in params["layers"]:
        x = nn.relu(dense(layer, x))
    return x


def loss(params: dict[str, Any], batch: dict[str, Any]) -> Any:
    """Mean over batch and hidden of the squared difference to `batch["y"]`, from `batch["x"]`."""
    difference = forward(params, batch["x"]) - batch["y"]
    return np.mean(difference * difference)


def init(config: MLPConfig, optimizer: Optimizer) -> Callable[[Any], State]:
    """`init(seed)` of the whole state."""
    return initial_state(lambda seed: init_params(config, seed), optimizer)


def train_step(optimizer: Optimizer) -> Callable[..., tuple[State, Metrics]]:
    """`train_step(state, batch, learning_rate=None)`; a batch is `{"x": ..., "y": ...}`."""
    return make_train_step(lambda params, batch, step: loss(params, batch), optimizer)
