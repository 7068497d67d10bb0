"""What NumPy lacks: functions of neural networks, on traced and on plain arrays alike."""

from hpc_alpa.nn.activations import gelu, relu, sigmoid, silu
from hpc_alpa.nn.attention import attention
from hpc_alpa.nn.classes import cross_entropy, embedding, one_hot
from hpc_alpa.nn.experts import combine, dispatch, top_k
from hpc_alpa.nn.images import avg_pool, conv, conv2d, max_pool
from hpc_alpa.nn.normalise import (
    batch_norm,
    batch_norm_inference,
    batch_statistics,
    layer_norm,
    log_softmax,
    softmax,
    sum_squares,
)
from hpc_alpa.nn.products import einsum, matmul

__all__ = [
    "attention", "avg_pool", "batch_norm", "batch_norm_inference", "batch_statistics", "combine",
    "conv", "conv2d", "cross_entropy", "dispatch", "einsum", "embedding", "gelu", "layer_norm",
    "log_softmax", "matmul", "max_pool", "one_hot", "relu", "sigmoid", "silu", "softmax",
    "sum_squares", "top_k",
]  # fmt: skip
