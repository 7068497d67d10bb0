"""GPT: a decoder of pre-norm transformer layers with learned positions (Radford et al. 2019)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hpc_alpa import nn
from hpc_alpa.errors import DataError
from hpc_alpa.models import layers as part
from hpc_alpa.models import transformer
from hpc_alpa.models.optimizers import Optimizer
from hpc_alpa.models.precision import LossScale
from hpc_alpa.models.training import (
    Metrics,
    State,
    Training,
    initial_state,
    make_eval_step,
    make_train_step,
    reduced,
    with_dropout,
)
from hpc_alpa.models.transformer import TransformerConfig
from hpc_alpa.trace import layer as mark_layer

Params = dict[str, Any]


@dataclass(frozen=True)
class GPTConfig(TransformerConfig):
    """Sizes of a GPT.

    Attributes:
        tied: the head is the embedding's table.
    """

    tied: bool = field(default=False, kw_only=True)

    @property
    def num_parameters(self) -> int:
        """Elements of all parameters."""
        layer = self.num_attention_parameters + self.num_feed_forward_parameters
        tables = (1 if self.tied else 2) * self.vocabulary + self.sequence
        return self.layers * layer + (tables + 2) * self.hidden


# Alpa (OSDI 2022), Table 4: name -> hidden, layers, heads; sequence 1024, vocabulary 51200, head
# not tied to the embedding.
SIZES: dict[str, tuple[int, int, int]] = {
    "350M": (1024, 24, 16),
    "760M": (1536, 24, 16),
    "1.3B": (2048, 24, 32),
    "2.6B": (2560, 32, 32),
    "6.7B": (4096, 32, 32),
    "15B": (5120, 48, 40),
    "39B": (8192, 48, 64),
    "76B": (10240, 60, 80),
}


def paper_config(name: str, dtype: str = "float32", precision: str | None = None) -> GPTConfig:
    """The config of a row of `SIZES`."""
    if name not in SIZES:
        raise DataError(f"there is no GPT {name!r}; the paper's are {', '.join(SIZES)}")
    hidden, layers, heads = SIZES[name]
    return GPTConfig(layers, hidden, heads, 1024, 51200, dtype=dtype, precision=precision)


def init_params(config: GPTConfig, seed: Any) -> Params:
    """Normal of deviation 0.02; what ends a residual branch is smaller by sqrt(2 * layers)."""
    c = config
    deviation = part.DEVIATION / (2 * c.layers) ** 0.5
    params = {
        "embedding": transformer.init_embedding(seed, c),
        "layers": [
            transformer.init_layer(seed, f"layers/{k}", c, deviation) for k in range(c.layers)
        ],
        "norm": part.init_norm(c.hidden, c.dtype),
    }
    return params if c.tied else {**params, "head": transformer.init_head(seed, c)}


def logits(
    params: Params, tokens: Any, config: GPTConfig, *, seed: Any = None, step: Any = 0
) -> Any:
    """(batch, sequence) of integers -> (batch, sequence, vocabulary).

    Args:
        seed, step: key of the dropout; without a seed nothing is dropped.
    """
    drop = transformer.dropper(config.dropout, seed, step)
    x = drop(transformer.embed(params["embedding"], tokens), "embedding")
    for k, layer in enumerate(params["layers"]):
        name = f"layers/{k}"
        with mark_layer(k):
            x = transformer.layer(layer, x, config.heads, name=name, causal=True, drop=drop)
    return transformer.head(params, part.norm(params["norm"], x))


def loss(
    params: Params,
    batch: dict[str, Any],
    config: GPTConfig,
    *,
    seed: Any = None,
    step: Any = 0,
    reduction: str = "mean",
) -> Any:
    """Mean cross entropy over batch and sequence of `batch["targets"]` given `batch["tokens"]`.

    Args:
        reduction: "sum", or "weighted" by `batch["weights"]`, in the place of the mean.
    """
    found = logits(params, batch["tokens"], config, seed=seed, step=step)
    return reduced(nn.cross_entropy(found, batch["targets"]), batch, reduction)


def init(
    config: GPTConfig, optimizer: Optimizer, loss_scale: LossScale | None = None
) -> Callable[[Any], State]:
    """`init(seed)` of the whole state; `loss_scale` as `train_step` gets it."""
    training = Training(config.precision, loss_scale=loss_scale)
    return initial_state(lambda seed: init_params(config, seed), optimizer, training)


def train_step(
    config: GPTConfig,
    optimizer: Optimizer,
    seed: int = 0,
    reduction: str = "mean",
    **options: Any,
) -> Callable[..., tuple[State, Metrics]]:
    """`train_step(state, batch, learning_rate=None)`; a batch is `{"tokens": ..., "targets": ...}`.

    Args:
        seed: of the dropout, whose values also depend on the state's step.
        reduction: of the tokens' losses, as `loss` takes it.
        options: `clip`, `gradients` and `loss_scale`, as `Training` has them.
    """
    whole = functools.partial(loss, reduction=reduction)
    training = Training(config.precision, **options)
    return make_train_step(with_dropout(whole, config, seed), optimizer, training)


def eval_step(config: GPTConfig) -> Callable[[State, dict[str, Any]], Metrics]:
    """`eval_step(state, batch)`: the loss without dropout."""
    return make_eval_step(lambda params, batch: loss(params, batch, config), config.precision)
