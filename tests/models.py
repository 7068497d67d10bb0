"""The graphs of the acceptance cases of the intra-operator planner, by their numbers there.

Each returns (train step, example state, example batch); the steps return the new state only, as a
returned loss would ride in the gradients' bucket.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hpc_alpa.models import AdamW, MLPConfig, adamw, initial_state, make_train_step, mlp
from hpc_alpa.models import layers as part

Case = tuple[Callable[[Any, Any], Any], Any, Any]


def mlp_case(batch: int, hidden: int, layers: int = 6) -> Case:
    """Dense, bias and relu in each layer; mean squared error; Adam; float32."""
    config, optimizer = MLPConfig(layers, hidden), adamw(AdamW())
    step = mlp.train_step(optimizer)
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(batch, hidden)).astype("float32") for _ in range(2))
    return _state_only(step), mlp.init(config, optimizer)(0), {"x": x, "y": y}


def s1() -> Case:
    """Small weights, large batch: data parallel."""
    return mlp_case(batch=256, hidden=32)


def s5() -> Case:
    """Large weights, small batch: tensor parallel."""
    return mlp_case(batch=32, hidden=256)


def s7() -> Case:
    """S1's graph, on (2, 2) with a fast axis."""
    return s1()


def s10() -> Case:
    """S5's graph, with the batch dim pinned to mesh axis 0."""
    return s5()


def encoder_layer(params: dict[str, Any], x: Any, num_heads: int) -> Any:
    """A post-norm encoder layer (Devlin et al. 2019), without dropout."""
    mixed = part.attention(params["attention"], x, num_heads, causal=False)
    x = part.norm(params["norm1"], x + mixed)
    return part.norm(params["norm2"], x + part.feed_forward(params["feed_forward"], x))


def bert_case(batch: int, sequence: int, hidden: int, heads: int, layers: int = 2) -> Case:
    """Encoder layers alone, from hidden states to hidden states; feed-forward 4x; Adam; float32."""

    def init_params(seed: Any) -> Any:
        return {
            "layers": [
                {
                    "attention": part.init_attention(seed, f"{k}/attention", hidden, "float32"),
                    "norm1": part.init_norm(hidden, "float32"),
                    "feed_forward": part.init_feed_forward(
                        seed, f"{k}/feed_forward", hidden, 4 * hidden, "float32"
                    ),
                    "norm2": part.init_norm(hidden, "float32"),
                }
                for k in range(layers)
            ]
        }

    def loss(params: Any, batch: Any, step: Any) -> Any:
        x = batch["x"]
        for layer in params["layers"]:
            x = encoder_layer(layer, x, heads)
        difference = x - batch["y"]
        return np.mean(difference * difference)

    optimizer = adamw(AdamW())
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(batch, sequence, hidden)).astype("float32") for _ in range(2))
    step = make_train_step(loss, optimizer)
    return _state_only(step), initial_state(init_params, optimizer)(0), {"x": x, "y": y}


def s12() -> Case:
    """2 layers on few tokens of large hidden states: tensor parallel (Megatron)."""
    return bert_case(batch=8, sequence=8, hidden=128, heads=8)


CASES: dict[str, Callable[[], Case]] = {"S1": s1, "S5": s5, "S7": s7, "S10": s10, "S12": s12}


def _state_only(step: Callable[..., tuple[Any, Any]]) -> Callable[[Any, Any], Any]:
    return lambda state, batch: step(state, batch)[0]
