"""The models of Alpa's ablations of one host, by the number of GPUs that they grow with.

Sizes, batches and the one microbatch are those of the artifact
(benchmark/alpa/exp_intra_ablation.py).
There GPT and the mixture of experts are float16 and recompute; here all are float32 and keep what
they need, so that only Wide-ResNet can be compared with the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc_alpa.models import (
    SGD,
    Adafactor,
    AdamW,
    GPTConfig,
    MoEConfig,
    WideResNetConfig,
    adafactor,
    adamw,
    gpt,
    moe,
    sgd,
    wide_resnet,
)
from hpc_alpa.models.wide_resnet import DEPTHS


@dataclass(frozen=True)
class Model:
    """A train step `(state, batch)`, the `init(seed)` of its state, and an example of a batch."""

    train_step: Callable[..., Any]
    init: Callable[[Any], Any]
    batch: dict[str, np.ndarray]


def wide_resnet_model(config: WideResNetConfig, batch: int, image: int) -> Model:
    """With Nesterov's momentum, on images of `image` rows and columns."""
    optimizer = sgd(SGD(learning_rate=0.1, momentum=0.9, nesterov=True))
    images = np.zeros((batch, image, image, 3), np.float32)
    labels = np.zeros(batch, np.int32)
    return Model(
        wide_resnet.train_step(config, optimizer),
        wide_resnet.init(config, optimizer),
        {"images": images, "labels": labels},
    )


def _tokens(config: Any, batch: int) -> dict[str, np.ndarray]:
    tokens = np.zeros((batch, config.sequence), np.int32)
    return {"tokens": tokens, "targets": tokens}


def _wide_resnet(gpus: int) -> Model:
    base_channels = {1: 160, 2: 224, 4: 320, 8: 448}[gpus]
    return wide_resnet_model(WideResNetConfig(DEPTHS[50], base_channels, 2, 1024), 32, 224)


def _gpt(gpus: int) -> Model:
    hidden, heads = {1: (2048, 16), 2: (3072, 24), 4: (4096, 32), 8: (5760, 40)}[gpus]
    config = GPTConfig(8, hidden, heads, 1024, 25600, dtype="float32")
    optimizer = adamw(AdamW())
    made = gpt.train_step(config, optimizer, seed=0)
    return Model(made, gpt.init(config, optimizer), _tokens(config, 8))


def _moe(gpus: int) -> Model:
    hidden, heads, experts = {
        1: (1024, 32, 8), 2: (1280, 40, 16), 4: (1536, 24, 16), 8: (1536, 24, 32),
    }[gpus]  # fmt: skip
    config = MoEConfig(
        8, hidden, heads, 1024, 51200, dtype="float32", feed_forward=8, experts=experts, group=1024
    )
    optimizer = adafactor(Adafactor())
    made = moe.train_step(config, optimizer, seed=0)
    return Model(made, moe.init(config, optimizer), _tokens(config, 8))


MODELS: dict[str, Callable[[int], Model]] = {
    "gpt": _gpt,
    "moe": _moe,
    "wide_resnet": _wide_resnet,
}
COMPARABLE = ("wide_resnet",)  # with the paper's
