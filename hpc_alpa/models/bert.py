"""BERT: an encoder that predicts masked tokens (Devlin et al. 2019).

Sequences are full: there is no mask for padding. Each is one or more segments of `sequence` tokens
in all, and every token sees every other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

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
from hpc_alpa.models.transformer import RESIDUALS, TransformerConfig
from hpc_alpa.trace import layer as mark_layer

Params = dict[str, Any]


@dataclass(frozen=True)
class BERTConfig(TransformerConfig):
    """Sizes of a BERT.

    Attributes:
        segments: number of segment embeddings: sentence A, sentence B.
        norm: "post" as in the paper, or "pre" with one more norm before the head.

    Raises:
        DataError: as `TransformerConfig`, and another norm.
    """

    segments: int = 2
    norm: str = "post"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("segments")
        if self.norm not in RESIDUALS:
            raise DataError(f"BERTConfig: norm is {self.norm!r}, not {' or '.join(RESIDUALS)}")

    @property
    def num_parameters(self) -> int:
        """Elements of all parameters."""
        h = self.hidden
        layer = self.num_attention_parameters + self.num_feed_forward_parameters
        tables = (self.vocabulary + self.sequence + self.segments) * h
        head = h * h + h + 2 * h + self.vocabulary
        return tables + 2 * h + self.layers * layer + 2 * h * (self.norm == "pre") + head


# Devlin et al. 2019, Sec. 3: name -> hidden, layers, heads; sequence 512, vocabulary 30522 of the
# published models.
SIZES: dict[str, tuple[int, int, int]] = {"base": (768, 12, 12), "large": (1024, 24, 16)}


def paper_config(name: str, dtype: str = "float32") -> BERTConfig:
    """The config of a row of `SIZES`."""
    if name not in SIZES:
        raise DataError(f"there is no BERT {name!r}; the paper's are {', '.join(SIZES)}")
    hidden, layers, heads = SIZES[name]
    return BERTConfig(layers, hidden, heads, 512, 30522, dtype=dtype)


def init_params(config: BERTConfig, seed: Any) -> Params:
    """Weights normal of deviation 0.02; the head's last matrix is the embedding's table."""
    c = config
    segments = part.init_weight(seed, "embedding/segments", (c.segments, c.hidden), c.dtype)
    params = {
        "embedding": {
            **transformer.init_embedding(seed, c),
            "segments": segments,
            "norm": part.init_norm(c.hidden, c.dtype),
        },
        "layers": [transformer.init_layer(seed, f"layers/{k}", c) for k in range(c.layers)],
        "head": {
            "dense": part.init_dense(seed, "head/dense", c.hidden, c.hidden, c.dtype),
            "norm": part.init_norm(c.hidden, c.dtype),
            "bias": np.zeros(c.vocabulary, c.dtype),
        },
    }
    return {**params, "norm": part.init_norm(c.hidden, c.dtype)} if c.norm == "pre" else params


def encode(
    params: Params,
    tokens: Any,
    segments: Any,
    config: BERTConfig,
    *,
    seed: Any = None,
    step: Any = 0,
) -> Any:
    """Tokens and their segments, (batch, sequence) of integers -> (batch, sequence, hidden).

    Args:
        seed, step: key of the dropout; without a seed nothing is dropped.
    """
    drop = transformer.dropper(config.dropout, seed, step)
    table = params["embedding"]
    x = transformer.embed(table, tokens) + nn.embedding(table["segments"], segments)
    x = drop(part.norm(table["norm"], x), "embedding")
    for k, layer in enumerate(params["layers"]):
        with mark_layer(k):
            x = transformer.layer(
                layer,
                x,
                config.heads,
                name=f"layers/{k}",
                causal=False,
                norm=config.norm,
                drop=drop,
            )
    return part.norm(params["norm"], x) if config.norm == "pre" else x


def logits(params: Params, hidden: Any) -> Any:
    """(batch, sequence, hidden) -> (batch, sequence, vocabulary)."""
    head = params["head"]
    x = part.norm(head["norm"], nn.gelu(part.dense(head["dense"], hidden)))
    return nn.matmul(x, params["embedding"]["tokens"].T) + head["bias"]


def loss(
    params: Params,
    batch: dict[str, Any],
    config: BERTConfig,
    *,
    seed: Any = None,
    step: Any = 0,
) -> Any:
    """Mean cross entropy of the masked tokens.

    Args:
        batch: four arrays (batch, sequence): `tokens` with the mask's token in some places,
            `segments`, `targets`, and `masked`, true in those places (one at least).
    """
    hidden = encode(params, batch["tokens"], batch["segments"], config, seed=seed, step=step)
    losses = nn.cross_entropy(logits(params, hidden), batch["targets"])
    return reduced(losses, {"weights": batch["masked"]}, "weighted")


def init(
    config: BERTConfig, optimizer: Optimizer, loss_scale: LossScale | None = None
) -> Callable[[Any], State]:
    """`init(seed)` of the whole state; `loss_scale` as `train_step` gets it."""
    training = Training(config.precision, loss_scale=loss_scale)
    return initial_state(lambda seed: init_params(config, seed), optimizer, training)


def train_step(
    config: BERTConfig, optimizer: Optimizer, seed: int = 0, **options: Any
) -> Callable[..., tuple[State, Metrics]]:
    """`train_step(state, batch, learning_rate=None)`; a batch as in `loss`.

    Args:
        seed: of the dropout, whose values also depend on the state's step.
        options: `clip`, `gradients` and `loss_scale`, as `Training` has them.
    """
    training = Training(config.precision, **options)
    return make_train_step(with_dropout(loss, config, seed), optimizer, training)


def eval_step(config: BERTConfig) -> Callable[[State, dict[str, Any]], Metrics]:
    """`eval_step(state, batch)`: the loss without dropout."""
    return make_eval_step(lambda params, batch: loss(params, batch, config), config.precision)
