"""What transformers share: sizes, embeddings, layers in their two orders, and dropout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hpc_alpa import nn, random
from hpc_alpa.errors import DataError
from hpc_alpa.models import layers as part
from hpc_alpa.models.precision import require_precision

Params = dict[str, Any]
Drop = Callable[[Any, str], Any]
Branch = Callable[[Any], Any]


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a transformer.

    Attributes:
        sequence: longest sequence, number of learned positions.
        dropout: share of elements dropped in training, of the embedding and each residual branch.
        dtype: of the parameters, as the state keeps them.
        feed_forward: width of the feed-forward's inner layer, in multiples of `hidden`.
        precision: dtype that forward and backward compute in, "float16" say, with copies of the
            parameters (`models.precision`); None: `dtype`.

    Raises:
        DataError: hidden is not a multiple of heads, a size below 1, or a precision wider than the
            parameters.
    """

    layers: int
    hidden: int
    heads: int
    sequence: int
    vocabulary: int
    dropout: float = 0.0
    dtype: str = "float32"
    feed_forward: int = 4
    precision: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self._require_positive(
            "layers", "hidden", "heads", "sequence", "vocabulary", "feed_forward"
        )
        model = type(self).__name__
        if self.hidden % self.heads:
            raise DataError(
                f"{model}: hidden {self.hidden} is not a multiple of heads {self.heads}; "
                f"take {self.hidden // self.heads * self.heads or self.heads} or other heads"
            )
        if not 0 <= self.dropout < 1:
            raise DataError(f"{model}: dropout is {self.dropout}, not in [0, 1)")
        require_precision(model, self.precision, self.dtype)

    def _require_positive(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) < 1:
                raise DataError(
                    f"{type(self).__name__}: {name} is {getattr(self, name)}; it is at least 1"
                )

    @property
    def inner(self) -> int:
        """Width of the feed-forward's inner layer."""
        return self.hidden * self.feed_forward

    @property
    def num_attention_parameters(self) -> int:
        """Elements of a layer's attention and of its two norms."""
        return 4 * (self.hidden**2 + self.hidden) + 4 * self.hidden

    @property
    def num_feed_forward_parameters(self) -> int:
        """Elements of a dense feed-forward."""
        return 2 * self.hidden * self.inner + self.inner + self.hidden


# ----------------------------------------------------------------------------------------- layers
def init_layer(
    seed: Any, name: str, config: TransformerConfig, deviation: float = part.DEVIATION
) -> Params:
    """An attention and a dense feed-forward with their norms.

    Args:
        deviation: of the two weights that end a residual branch.
    """
    c = config
    return {
        **init_attention(seed, name, c, deviation),
        "feed_forward": part.init_feed_forward(
            seed, f"{name}/feed_forward", c.hidden, c.inner, c.dtype, deviation
        ),
    }


def init_attention(
    seed: Any, name: str, config: TransformerConfig, deviation: float = part.DEVIATION
) -> Params:
    """A layer without its feed-forward."""
    c = config
    return {
        "norm1": part.init_norm(c.hidden, c.dtype),
        "attention": part.init_attention(seed, f"{name}/attention", c.hidden, c.dtype, deviation),
        "norm2": part.init_norm(c.hidden, c.dtype),
    }


def post_norm(norm: Params, x: Any, branch: Branch) -> Any:
    """The sum is normalised (Vaswani et al. 2017, Sec. 3.1)."""
    return part.norm(norm, x + branch(x))


def pre_norm(norm: Params, x: Any, branch: Branch) -> Any:
    """What the branch reads is normalised, the sum is not (Radford et al. 2019, Sec. 2.3)."""
    return x + branch(part.norm(norm, x))


RESIDUALS: dict[str, Callable[[Params, Any, Branch], Any]] = {"post": post_norm, "pre": pre_norm}


def layer(
    params: Params,
    x: Any,
    num_heads: int,
    *,
    name: str,
    causal: bool,
    norm: str = "pre",
    drop: Drop = lambda x, name: x,
    feed_forward: Callable[[Params, Any], Any] = part.feed_forward,
) -> Any:
    """One layer, (batch, sequence, hidden) -> the same.

    Args:
        name: of the layer, which names its dropout.
        norm: a name of `RESIDUALS`.
        drop: (x, name) -> x with some elements zero, at the end of each branch.
        feed_forward: (params["feed_forward"], x) -> the second branch.
    """
    residual = RESIDUALS[norm]

    def mixed(x: Any) -> Any:
        found = part.attention(params["attention"], x, num_heads, causal)
        return drop(found, f"{name}/attention")

    def inner(x: Any) -> Any:
        return drop(feed_forward(params["feed_forward"], x), f"{name}/feed_forward")

    return residual(params["norm2"], residual(params["norm1"], x, mixed), inner)


# ------------------------------------------------------------------------------------- embeddings
def init_embedding(seed: Any, config: TransformerConfig) -> Params:
    """Tables of tokens and of positions."""
    c = config

    def table(name: str, rows: int) -> Any:
        return part.init_weight(seed, f"embedding/{name}", (rows, c.hidden), c.dtype)

    return {"tokens": table("tokens", c.vocabulary), "positions": table("positions", c.sequence)}


def init_head(seed: Any, config: TransformerConfig) -> Any:
    """What makes logits of hidden states, (hidden, vocabulary)."""
    return part.init_weight(seed, "head", (config.hidden, config.vocabulary), config.dtype)


def head(params: Params, x: Any) -> Any:
    """(..., hidden) -> (..., vocabulary), by the head or, without one, the embedding's table."""
    weight = params["head"] if "head" in params else params["embedding"]["tokens"].T
    return nn.matmul(x, weight)


def embed(params: Params, tokens: Any) -> Any:
    """Tokens at their positions, (batch, sequence) of integers -> (batch, sequence, hidden).

    Raises:
        DataError: more tokens than positions.
    """
    positions, length = params["positions"], np.shape(tokens)[1]
    if length > np.shape(positions)[0]:
        raise DataError(
            f"{length} tokens do not fit {np.shape(positions)[0]} positions; cut the text, or make "
            "the model with a longer sequence"
        )
    if length < np.shape(positions)[0]:
        positions = positions[:length]
    return nn.embedding(params["tokens"], tokens) + positions


def dropper(rate: float, seed: Any, step: Any) -> Drop:
    """(x, name) -> x with dropout; without a seed nothing is dropped."""

    def drop(x: Any, name: str) -> Any:
        return x if seed is None else random.dropout(x, rate, seed=seed, step=step, name=name)

    return drop
