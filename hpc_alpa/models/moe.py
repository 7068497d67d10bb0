"""A mixture of experts: a GPT whose every second feed-forward is one of experts (GShard).

Lepikhin et al. 2020: each token goes to two of the experts, tokens that find no place pass by on
the residual. Tokens are sent by index: no product with one-hot arrays is computed.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hpc_alpa import nn
from hpc_alpa.errors import DataError
from hpc_alpa.models import layers as part
from hpc_alpa.models import transformer
from hpc_alpa.models.gating import top2
from hpc_alpa.models.optimizers import Optimizer
from hpc_alpa.models.precision import LossScale, widened
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
class MoEConfig(TransformerConfig):
    """Sizes of a mixture of experts.

    Attributes:
        experts: of each layer that has them, at least 2.
        group: tokens that are gated together; divides the tokens of a microbatch.
        capacity_factor: places of all experts of a group, in multiples of its tokens.
        balance: weight of the loss that spreads tokens over experts.
        tied: the head is the embedding's table.

    Raises:
        DataError: as `TransformerConfig`, fewer than 2 layers or experts, or no place for a token.
    """

    experts: int = field(kw_only=True)
    group: int = field(kw_only=True)
    capacity_factor: float = 2.0
    balance: float = 0.01
    tied: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers < 2:
            raise DataError("MoEConfig: layers is 1; every second layer has experts")
        if self.experts < 2:
            raise DataError(f"MoEConfig: experts is {self.experts}; a token goes to two")
        if self.capacity < 1:
            raise DataError(
                f"MoEConfig: a group of {self.group} tokens and a capacity factor of "
                f"{self.capacity_factor} leave {self.experts} experts no place; take a larger group"
            )

    @property
    def capacity(self) -> int:
        """Places of an expert in a group."""
        return int(self.capacity_factor * self.group / self.experts)

    def has_experts(self, layer: int) -> bool:
        return layer % 2 == 1

    @property
    def num_parameters(self) -> int:
        """Elements of all parameters."""
        h = self.hidden
        experts = h * self.experts + self.experts * 2 * h * self.inner
        with_experts = sum(map(self.has_experts, range(self.layers)))
        layers = self.layers * self.num_attention_parameters + with_experts * experts
        layers += (self.layers - with_experts) * self.num_feed_forward_parameters
        tables = (1 if self.tied else 2) * self.vocabulary + self.sequence
        return layers + (tables + 2) * h


# As Alpa evaluates it (OSDI 2022, Sec. 8.1): name -> hidden, layers, heads, experts; sequence 1024,
# vocabulary 32000, groups of 2048 tokens, feed-forward of 8 times hidden.
SIZES: dict[str, tuple[int, int, int, int]] = {
    "380M": (768, 8, 16, 8),
    "690M": (768, 8, 16, 16),
    "1.3B": (768, 16, 16, 16),
    "2.4B": (1024, 16, 16, 16),
    "10B": (1536, 16, 16, 32),
    "27B": (2048, 16, 16, 48),
    "70B": (2048, 32, 16, 64),
}


def paper_config(name: str, dtype: str = "float32", precision: str | None = None) -> MoEConfig:
    """The config of a row of `SIZES`."""
    if name not in SIZES:
        raise DataError(f"there is no MoE {name!r}; the paper's are {', '.join(SIZES)}")
    hidden, layers, heads, experts = SIZES[name]
    return MoEConfig(
        layers,
        hidden,
        heads,
        sequence=1024,
        vocabulary=32000,
        dtype=dtype,
        precision=precision,
        feed_forward=8,
        experts=experts,
        group=2048,
    )


# ---------------------------------------------------------------------------------------- experts
def init_experts(seed: Any, name: str, config: MoEConfig, deviation: float) -> Params:
    """A gate, and the two matrices of each expert's feed-forward, without biases."""
    c = config
    up = part.init_weight(seed, f"{name}/up", (c.experts, c.hidden, c.inner), c.dtype)
    shape = (c.experts, c.inner, c.hidden)
    return {
        "gate": part.init_weight(seed, f"{name}/gate", (c.hidden, c.experts), c.dtype),
        "up": up,
        "down": part.init_weight(seed, f"{name}/down", shape, c.dtype, deviation),
    }


def experts(params: Params, x: Any, config: MoEConfig) -> tuple[Any, Any]:
    """relu between the two matrices of the two experts of each token, weighted by their gates.

    Args:
        x: (batch, sequence, hidden).

    Returns:
        The same shape, zeros for tokens that found no place; and the balance loss, 0-d.

    Raises:
        DataError: tokens that do not fill whole groups.
    """
    shape = np.shape(x)
    tokens = shape[0] * shape[1]
    if tokens % config.group:
        raise DataError(
            f"MoE: {shape[0]} x {shape[1]} tokens are not a multiple of the group of "
            f"{config.group}; take a batch that fills whole groups"
        )
    groups = x.reshape(tokens // config.group, config.group, shape[2])
    # In 16 bits two gates are often equal, and means of many lose their digits.
    gates = nn.softmax(widened(nn.matmul(groups, params["gate"])))
    routes = top2(gates)
    taken = nn.dispatch(groups, routes.experts, routes.places, config.experts, config.capacity)
    inner = nn.relu(nn.einsum("gecm,emh->gech", taken, params["up"]))
    made = nn.einsum("gech,ehm->gecm", inner, params["down"])
    weights = routes.weights.astype(made.dtype)
    out = nn.combine(made, routes.experts, routes.places, weights)
    return out.reshape(shape), routes.balance


# ------------------------------------------------------------------------------------------ model
def init_params(config: MoEConfig, seed: Any) -> Params:
    """Normal of deviation 0.02; what ends a residual branch is smaller by sqrt(2 * layers)."""
    c = config
    deviation = part.DEVIATION / (2 * c.layers) ** 0.5

    def layer(k: int) -> Params:
        name = f"layers/{k}"
        if not c.has_experts(k):
            return transformer.init_layer(seed, name, c, deviation)
        inner = init_experts(seed, f"{name}/feed_forward", c, deviation)
        return {
            **transformer.init_attention(seed, name, c, deviation),
            "feed_forward": inner,
        }

    params = {
        "embedding": transformer.init_embedding(seed, c),
        "layers": [layer(k) for k in range(c.layers)],
        "norm": part.init_norm(c.hidden, c.dtype),
    }
    return params if c.tied else {**params, "head": transformer.init_head(seed, c)}


def logits(
    params: Params, tokens: Any, config: MoEConfig, *, seed: Any = None, step: Any = 0
) -> tuple[Any, Any]:
    """(batch, sequence) of integers -> (batch, sequence, vocabulary), and the mean balance loss.

    Args:
        seed, step: key of the dropout; without a seed nothing is dropped.
    """
    drop = transformer.dropper(config.dropout, seed, step)
    x = drop(transformer.embed(params["embedding"], tokens), "embedding")
    balances = []

    def of_experts(p: Params, x: Any) -> Any:
        made, balance = experts(p, x, config)
        balances.append(balance)
        return made

    for k, layer in enumerate(params["layers"]):
        with mark_layer(k):
            x = transformer.layer(
                layer,
                x,
                config.heads,
                name=f"layers/{k}",
                causal=True,
                drop=drop,
                feed_forward=of_experts if config.has_experts(k) else part.feed_forward,
            )
    # Not by `sum`: 0 + x would be one more equation.
    balance = functools.reduce(operator.add, balances) / len(balances)
    return transformer.head(params, part.norm(params["norm"], x)), balance


def loss(
    params: Params,
    batch: dict[str, Any],
    config: MoEConfig,
    *,
    seed: Any = None,
    step: Any = 0,
    reduction: str = "mean",
) -> Any:
    """Mean cross entropy of `batch["targets"]` given `batch["tokens"]`, and the weighted balance.

    The balance is a mean over groups, so microbatches of whole groups do not change it.

    Args:
        reduction: of the cross entropy: "sum", or "weighted" by `batch["weights"]`, in the place
            of the mean.
    """
    found, balance = logits(params, batch["tokens"], config, seed=seed, step=step)
    losses = nn.cross_entropy(found, batch["targets"])
    return reduced(losses, batch, reduction) + config.balance * balance.astype(losses.dtype)


def init(
    config: MoEConfig, optimizer: Optimizer, loss_scale: LossScale | None = None
) -> Callable[[Any], State]:
    """`init(seed)` of the whole state; `loss_scale` as `train_step` gets it."""
    training = Training(config.precision, loss_scale=loss_scale)
    return initial_state(lambda seed: init_params(config, seed), optimizer, training)


def train_step(
    config: MoEConfig,
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


def eval_step(config: MoEConfig) -> Callable[[State, dict[str, Any]], Metrics]:
    """`eval_step(state, batch)`: the cross entropy alone, without dropout."""

    def cross_entropy(params: Params, batch: dict[str, Any]) -> Any:
        found, _ = logits(params, batch["tokens"], config)
        return np.mean(nn.cross_entropy(found, batch["targets"]))

    return make_eval_step(cross_entropy, config.precision)
