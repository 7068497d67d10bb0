"""The graphs of the acceptance cases of the intra-operator planner, by their numbers there.

Each returns (train step, example state, example batch); the steps return the new state only, as a
returned loss would ride in the gradients' bucket.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hpc_alpa import nn
from hpc_alpa.models import (
    SGD,
    AdamW,
    MLPConfig,
    MoEConfig,
    Optimizer,
    adamw,
    initial_state,
    make_train_step,
    mlp,
    moe,
    sgd,
    wide_resnet,
)
from hpc_alpa.models import layers as part
from hpc_alpa.models.gating import top2
from hpc_alpa.models.transformer import post_norm
from hpc_alpa.pytree import tree_map
from hpc_alpa.trace import value_and_grad

Params = dict[str, Any]
Inner = Callable[[Params, Any], Any]
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


def init_combined(seed: Any, name: str, hidden: int) -> Params:
    """Queries, keys and values by one matrix, heads before the three: Alpa's BERT has one too."""
    return {
        "qkv": part.init_dense(seed, f"{name}/qkv", hidden, 3 * hidden, "float32"),
        "out": part.init_dense(seed, f"{name}/out", hidden, hidden, "float32"),
    }


def combined_attention(params: Params, x: Any, num_heads: int) -> Any:
    """As `layers.attention` on the three slices of one product."""
    batch, sequence, hidden = np.shape(x)
    made = part.dense(params["qkv"], x).reshape(batch, sequence, num_heads, 3, hidden // num_heads)
    q, k, v = (made[:, :, :, n].transpose(0, 2, 1, 3) for n in range(3))
    mixed = nn.attention(q, k, v, causal=False)
    return part.dense(params["out"], mixed.transpose(0, 2, 1, 3).reshape(batch, sequence, hidden))


# name -> how an attention is made, and how it is used
ATTENTIONS: dict[str, tuple[Callable[..., Params], Callable[..., Any]]] = {
    "combined": (init_combined, combined_attention),
    "three": (
        lambda seed, name, hidden: part.init_attention(seed, name, hidden, "float32"),
        lambda params, x, num_heads: part.attention(params, x, num_heads, causal=False),
    ),
}


def init_encoder_layer(
    seed: Any, name: str, hidden: int, inner: Params, attention: str = "combined"
) -> Params:
    return {
        "attention": ATTENTIONS[attention][0](seed, f"{name}/attention", hidden),
        "norm1": part.init_norm(hidden, "float32"),
        "feed_forward": inner,
        "norm2": part.init_norm(hidden, "float32"),
    }


def encoder_layer(
    params: Params,
    x: Any,
    num_heads: int,
    attention: str = "combined",
    inner: Inner = part.feed_forward,
) -> Any:
    """A post-norm encoder layer (Devlin et al. 2019), without dropout."""

    def mixed(x: Any) -> Any:
        return ATTENTIONS[attention][1](params["attention"], x, num_heads)

    x = post_norm(params["norm1"], x, mixed)
    return post_norm(params["norm2"], x, lambda x: inner(params["feed_forward"], x))


def hidden_case(
    shape: tuple[int, ...],
    init_params: Callable[[Any], Params],
    forward: Callable[[Params, Any], Any],
    optimizer: Optimizer,
) -> Case:
    """From hidden states of a shape to hidden states; mean squared error; float32."""

    def loss(params: Any, batch: Any, step: Any) -> Any:
        difference = forward(params, batch["x"]) - batch["y"]
        return np.mean(difference * difference)

    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=s).astype("float32") for s in (shape, shape))
    step = make_train_step(loss, optimizer)
    return _state_only(step), initial_state(init_params, optimizer)(0), {"x": x, "y": y}


def bert_case(
    batch: int, sequence: int, hidden: int, heads: int, attention: str = "combined", layers: int = 2
) -> Case:
    """Encoder layers alone; feed-forward 4x; Adam."""

    def init_params(seed: Any) -> Any:
        inner = (
            part.init_feed_forward(seed, f"{k}/feed_forward", hidden, 4 * hidden, "float32")
            for k in range(layers)
        )
        return {
            "layers": [
                init_encoder_layer(seed, str(k), hidden, p, attention) for k, p in enumerate(inner)
            ]
        }

    def forward(params: Any, x: Any) -> Any:
        for layer in params["layers"]:
            x = encoder_layer(layer, x, heads, attention)
        return x

    return hidden_case((batch, sequence, hidden), init_params, forward, adamw(AdamW()))


def s11() -> Case:
    """2 layers on many tokens of small hidden states: data parallel."""
    return bert_case(batch=64, sequence=64, hidden=32, heads=8)


def s12() -> Case:
    """2 layers on few tokens of large hidden states: tensor parallel (Megatron)."""
    return bert_case(batch=8, sequence=8, hidden=128, heads=8)


def s12_in_three() -> Case:
    """S12 with queries, keys and values by three matrices."""
    return bert_case(batch=8, sequence=8, hidden=128, heads=8, attention="three")


def dense_experts(params: Params, x: Any, group: int, capacity: int) -> Any:
    """Experts that get their tokens, and give them back, by products with one-hot arrays.

    Lepikhin et al. 2020, Alg. 2: (batch, sequence, hidden) -> the same.
    """
    groups = x.reshape(-1, group, np.shape(x)[-1])
    gates = nn.softmax(groups @ params["gate"])
    routes = top2(gates)
    expert = nn.one_hot(routes.experts, np.shape(gates)[-1])
    place = nn.one_hot(routes.places, capacity)
    combine = np.einsum("gske,gskc->gsec", expert * routes.weights[..., None], place)
    sent = np.einsum("gske,gskc->gsec", expert, place)
    taken = np.einsum("gsec,gsm->egcm", sent, groups)
    inner = nn.relu(np.einsum("egcm,emh->egch", taken, params["up"]))
    made = np.einsum("egch,ehm->egcm", inner, params["down"])
    return np.einsum("gsec,egcm->gsm", combine, made).reshape(np.shape(x))


def experts_case(experts: Callable[[Params, Any, MoEConfig], Any]) -> Case:
    """An encoder layer of 16 experts, top-2, in groups of 32 tokens; Adam."""
    config = MoEConfig(
        layers=2, hidden=64, heads=16, sequence=16, vocabulary=1, experts=16, group=32
    )

    def init_params(seed: Any) -> Any:
        inner = moe.init_experts(seed, "experts", config, part.DEVIATION)
        return init_encoder_layer(seed, "layer", config.hidden, inner)

    def forward(params: Any, x: Any) -> Any:
        return encoder_layer(params, x, config.heads, inner=lambda p, x: experts(p, x, config))

    return hidden_case((64, 16, config.hidden), init_params, forward, adamw(AdamW()))


def s17() -> Case:
    """Tokens sent by index: experts split between devices."""
    return experts_case(lambda p, x, config: moe.experts(p, x, config)[0])


def s17_dense() -> Case:
    """S17 with tokens sent by products with one-hot arrays, as Alpa does."""
    return experts_case(lambda p, x, config: dense_experts(p, x, config.group, config.capacity))


def convolutions_case(batch: int, size: int, channels: int, layers: int) -> Case:
    """Each a 3x3 convolution of stride 2, batch norm, relu and a 2x2 maximum; SGD with momentum.

    The state holds moving averages of the norms' statistics, as Alpa's does.
    """
    optimizer = sgd(SGD(0.1, momentum=0.9))

    def init_params(seed: Any) -> Any:
        return [
            wide_resnet.init_convolution(seed, str(k), (3, 3, channels, channels), "float32")
            for k in range(layers)
        ]

    def loss(params: Any, batch: Any) -> Any:
        x, used = batch["x"], []
        for p in params:
            made = nn.conv2d(x, p["weight"], 2)
            used.append(dict(zip(("mean", "variance"), nn.batch_statistics(made), strict=True)))
            x = nn.relu(nn.batch_norm(made, p["norm"]["scale"], p["norm"]["bias"]))
            x = nn.max_pool(x, 2, stride=1, padding="same")
        difference = x - batch["y"]
        return np.mean(difference * difference), used

    def step(state: Any, batch: Any) -> Any:
        (_, used), gradients = value_and_grad(loss, has_aux=True)(state["params"], batch)
        params, velocity = optimizer.update(
            gradients, state["optimizer"], state["params"], state["step"]
        )
        averages = tree_map(lambda old, new: 0.9 * old + 0.1 * new, state["statistics"], used)
        return {
            "params": params,
            "optimizer": velocity,
            "statistics": averages,
            "step": state["step"] + 1,
        }

    state = initial_state(init_params, optimizer)(0)
    one = {"mean": np.zeros(channels, "float32"), "variance": np.ones(channels, "float32")}
    rng = np.random.default_rng(0)
    sizes = (size, size // 2**layers)
    x, y = (rng.normal(size=(batch, n, n, channels)).astype("float32") for n in sizes)
    return step, {**state, "statistics": [one] * layers}, {"x": x, "y": y}


def s20() -> Case:
    """Few channels: data parallel."""
    return convolutions_case(batch=16, size=16, channels=4, layers=3)


CASES: dict[str, Callable[[], Case]] = {
    "S1": s1, "S5": s5, "S7": s7, "S10": s10, "S11": s11, "S12": s12,
    "S12 in three": s12_in_three, "S17": s17,
    "S17 dense": s17_dense, "S20": s20,
}  # fmt: skip


def _state_only(step: Callable[..., tuple[Any, Any]]) -> Callable[[Any, Any], Any]:
    return lambda state, batch: step(state, batch)[0]
