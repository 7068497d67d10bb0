"""GPT: a decoder of pre-norm transformer layers with learned positions (Radford et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc_alpa import nn, random
from hpc_alpa.errors import DataError
from hpc_alpa.models import layers as part
from hpc_alpa.models.optimizers import Optimizer
from hpc_alpa.models.training import Metrics, State, initial_state, make_train_step
from hpc_alpa.trace import layer as mark_layer

Params = dict[str, Any]


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of a GPT.

    Attributes:
        sequence: longest sequence, number of learned positions.
        dropout: share of elements dropped in training, of the embedding and each residual branch.
        feed_forward: width of the feed-forward's inner layer, in multiples of `hidden`.

    Raises:
        DataError: hidden is not a multiple of heads, or a size below 1.
    """

    layers: int
    hidden: int
    heads: int
    sequence: int
    vocabulary: int
    dropout: float = 0.0
    dtype: str = "float32"
    feed_forward: int = 4

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "heads", "sequence", "vocabulary", "feed_forward"):
            if getattr(self, name) < 1:
                raise DataError(f"GPTConfig: {name} is {getattr(self, name)}; it is at least 1")
        if self.hidden % self.heads:
            raise DataError(
                f"GPTConfig: hidden {self.hidden} is not a multiple of heads {self.heads}; "
                f"take {self.hidden // self.heads * self.heads or self.heads} or other heads"
            )
        if not 0 <= self.dropout < 1:
            raise DataError(f"GPTConfig: dropout is {self.dropout}, not in [0, 1)")

    @property
    def num_parameters(self) -> int:
        """Elements of all parameters."""
        h, inner = self.hidden, self.hidden * self.feed_forward
        layer = 4 * (h * h + h) + (h * inner + inner) + (inner * h + h) + 4 * h
        return self.layers * layer + (2 * self.vocabulary + self.sequence) * h + 2 * h


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


def paper_config(name: str, dtype: str = "float32") -> GPTConfig:
    """The config of a row of `SIZES`."""
    if name not in SIZES:
        raise DataError(f"there is no GPT {name!r}; the paper's are {', '.join(SIZES)}")
    hidden, layers, heads = SIZES[name]
    return GPTConfig(layers, hidden, heads, 1024, 51200, dtype=dtype)


def init_params(config: GPTConfig, seed: Any) -> Params:
    """Normal of deviation 0.02; what ends a residual branch is smaller by sqrt(2 * layers)."""
    c = config
    deviation = part.DEVIATION / (2 * c.layers) ** 0.5

    def weight(name: str, rows: int, columns: int) -> Any:
        return part.init_weight(seed, name, (rows, columns), c.dtype)

    def layer(k: int) -> Params:
        inner = c.hidden * c.feed_forward
        return {
            "norm1": part.init_norm(c.hidden, c.dtype),
            "attention": part.init_attention(
                seed, f"layers/{k}/attention", c.hidden, c.dtype, deviation
            ),
            "norm2": part.init_norm(c.hidden, c.dtype),
            "feed_forward": part.init_feed_forward(
                seed, f"layers/{k}/feed_forward", c.hidden, inner, c.dtype, deviation
            ),
        }

    return {
        "embedding": {
            "tokens": weight("embedding/tokens", c.vocabulary, c.hidden),
            "positions": weight("embedding/positions", c.sequence, c.hidden),
        },
        "layers": [layer(k) for k in range(c.layers)],
        "norm": part.init_norm(c.hidden, c.dtype),
        "head": weight("head", c.hidden, c.vocabulary),
    }


def logits(
    params: Params, tokens: Any, config: GPTConfig, *, seed: Any = None, step: Any = 0
) -> Any:
    """(batch, sequence) of integers -> (batch, sequence, vocabulary).

    Args:
        seed, step: key of the dropout; without a seed nothing is dropped.
    """
    length = np.shape(tokens)[1]
    if length > config.sequence:
        raise DataError(
            f"GPT: {length} tokens do not fit {config.sequence} positions; cut the text, or make "
            "the model with a longer sequence"
        )

    def drop(x: Any, name: str) -> Any:
        if seed is None:
            return x
        return random.dropout(x, config.dropout, seed=seed, step=step, name=name)

    positions = params["embedding"]["positions"]
    if length < config.sequence:
        positions = positions[:length]
    x = drop(nn.embedding(params["embedding"]["tokens"], tokens) + positions, "embedding")
    for k, layer in enumerate(params["layers"]):
        with mark_layer(k):
            mixed = part.attention(
                layer["attention"], part.norm(layer["norm1"], x), config.heads, causal=True
            )
            x = x + drop(mixed, f"layers/{k}/attention")
            inner = part.feed_forward(layer["feed_forward"], part.norm(layer["norm2"], x))
            x = x + drop(inner, f"layers/{k}/feed_forward")
    return part.norm(params["norm"], x) @ params["head"]


def loss(
    params: Params,
    batch: dict[str, Any],
    config: GPTConfig,
    *,
    seed: Any = None,
    step: Any = 0,
) -> Any:
    """Mean cross entropy over batch and sequence of `batch["targets"]` given `batch["tokens"]`."""
    found = logits(params, batch["tokens"], config, seed=seed, step=step)
    return np.mean(nn.cross_entropy(found, batch["targets"]))


def init(config: GPTConfig, optimizer: Optimizer) -> Callable[[Any], State]:
    """`init(seed)` of the whole state."""
    return initial_state(lambda seed: init_params(config, seed), optimizer)


def train_step(
    config: GPTConfig, optimizer: Optimizer, seed: int = 0
) -> Callable[..., tuple[State, Metrics]]:
    """`train_step(state, batch, learning_rate=None)`; a batch is `{"tokens": ..., "targets": ...}`.

    Args:
        seed: of the dropout, whose values also depend on the state's step.
    """

    def of_step(params: Params, batch: dict[str, Any], step: Any) -> Any:
        return loss(params, batch, config, seed=seed, step=step)

    return make_train_step(of_step, optimizer)


def eval_step(config: GPTConfig) -> Callable[[State, dict[str, Any]], Metrics]:
    """`eval_step(state, batch)`: the loss without dropout."""

    def evaluate(state: State, batch: dict[str, Any]) -> Metrics:
        return {"loss": loss(state["params"], batch, config)}

    return evaluate
