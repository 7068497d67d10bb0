"""Floating-point operations of a training step, as Alpa counts them (OSDI 2022, Sec. 8).

A product of m x k by k x n counts 2 m k n. A transformer's are its products alone:

    layer = B S H^2 (8 + 4 F) + 4 B S^2 H       forward; F = feed_forward
    step  = f layers layer + 6 B S H V          f = 3: forward and backward; 4 with recomputation

For F = 4 that is 72 B S H^2 layers (1 + S / 6H) + 6 B S H V, with recomputation 96 in the place of
72: the head is not made again. The published TFLOPS count recomputation as useful work.

A step of other models is counted from its graph: products, and convolutions without what they
multiply by padding, as XLA counts them for the paper.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np

from hpc_alpa import nn
from hpc_alpa.ir import Eqn, Graph
from hpc_alpa.models import wide_resnet as wide_resnet_model
from hpc_alpa.models.moe import MoEConfig
from hpc_alpa.models.transformer import TransformerConfig
from hpc_alpa.models.wide_resnet import WideResNetConfig
from hpc_alpa.ops.products import product_dims
from hpc_alpa.trace import trace, value_and_grad

# What a forward pass counts: itself and a backward pass of twice its products, and itself again.
PASSES = {False: 3, True: 4}


def transformer(config: TransformerConfig, batch: int, recomputation: bool = False) -> float:
    """Of a step of a GPT or a BERT.

    Args:
        batch: rows of the whole batch, each of `config.sequence` tokens.
        recomputation: the layers' forward pass counts once more.
    """
    layers = config.layers * (_attention(config, batch) + _feed_forward(config, batch))
    return PASSES[recomputation] * layers + _head(config, batch)


def moe(
    config: MoEConfig, batch: int, recomputation: bool = False, dense_dispatch: bool = False
) -> float:
    """Of a step of a mixture of experts.

    Args:
        batch, recomputation: as of `transformer`.
        dense_dispatch: tokens are sent by products with one-hot arrays, as Alpa does; here they are
            sent by index, which multiplies nothing.
    """
    c = config
    tokens = batch * c.sequence
    # Each token passes two experts; the gate; the places of both choices in a group.
    sparse = 2 * _feed_forward(c, batch) + 2 * tokens * c.hidden * c.experts
    sparse += 2 * tokens * 2 * c.group
    if dense_dispatch:
        # As published, whatever the experts' capacity: to the experts and back.
        sparse += 2 * (2 * tokens * c.hidden * 2 * c.group)
    with_experts = sum(map(c.has_experts, range(c.layers)))
    layers = c.layers * _attention(c, batch) + with_experts * sparse
    layers += (c.layers - with_experts) * _feed_forward(c, batch)
    return PASSES[recomputation] * layers + _head(c, batch)


def wide_resnet(
    config: WideResNetConfig, batch: int, image: int, recomputation: bool = False
) -> float:
    """Of a step of a Wide-ResNet on images of `image` rows and columns, from its graph.

    Args:
        batch, recomputation: as of `transformer`.
    """
    # Every product has the batch among its dims.
    return batch * _of_one_image(replace(config, norm_rows=None), image, recomputation)


@functools.cache
def _of_one_image(config: WideResNetConfig, image: int, recomputation: bool) -> float:
    def loss(params: Any, images: Any, labels: Any) -> Any:
        found, _ = wide_resnet_model.logits(params, images, config)
        return np.mean(nn.cross_entropy(found, labels))

    made = trace(lambda seed: wide_resnet_model.init_params(config, seed), (0,), ("seed",))
    zeros = [np.broadcast_to(np.zeros((), o.type.dtype), o.type.shape) for o in made.outputs]
    images = np.broadcast_to(np.float32(0), (1, image, image, config.channels))
    example = (made.out_tree.unflatten(zeros), images, np.zeros(1, np.int32))
    step = trace(value_and_grad(loss), example, ("params", "images", "labels"))
    return counted(step.graph, recomputation)


def counted(graph: Graph, recomputation: bool = False) -> float:
    """Of the products and convolutions of a traced step.

    Args:
        recomputation: the forward pass of the marked layers counts once more.
    """
    found = 0.0
    for e in graph.eqns:
        inputs, output = tuple(v.type for v in e.inputs), e.output.type
        if product_dims(e.op.name, inputs, output, e.params_dict):
            again = recomputation and e.phase == "forward" and e.layer is not None
            made = e.op.flops(inputs, output, e.params_dict) * _share_inside(e)
            found += (1 + again) * made
    return found


def _share_inside(e: Eqn) -> float:
    """The share of a convolution's products that read no padding; 1 for other products."""
    ends = {"conv": (0, 1, 2), "conv_grad_input": (2, 1, 0), "conv_grad_weight": (0, 2, 1)}
    if e.op.name not in ends:
        return 1.0
    x, w, y = (((*e.input_types, e.output.type)[k].shape) for k in ends[e.op.name])
    strides, padding = e.params_dict["strides"], e.params_dict["padding"]
    share = 1.0
    for extent, window, windows, stride, (before, _) in zip(
        x[1:-1], w[:-2], y[1:-1], strides, padding, strict=True
    ):
        read = np.arange(windows)[:, None] * stride + np.arange(window) - before
        share *= float(np.mean((read >= 0) & (read < extent)))
    return share


def _attention(c: TransformerConfig, batch: int) -> float:
    """Four products by H x H; scores, and what they weigh."""
    return batch * c.sequence * (8.0 * c.hidden**2 + 4.0 * c.sequence * c.hidden)


def _feed_forward(c: TransformerConfig, batch: int) -> float:
    return 4.0 * batch * c.sequence * c.hidden * c.inner


def _head(c: TransformerConfig, batch: int) -> float:
    """Forward and backward."""
    return 6.0 * batch * c.sequence * c.hidden * c.vocabulary
