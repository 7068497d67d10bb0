"""Functions of class labels and tokens: integers that count from 0."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpc_alpa.errors import TracingError
from hpc_alpa.ir import TensorType, numpy_dtype
from hpc_alpa.trace import apply


def embedding(table: Any, indices: Any) -> Any:
    """Rows of a table (classes, width) at integer indices of any shape, in [0, classes).

    Traced indices cannot be checked while tracing: a row out of range is zeros, under every plan.
    """
    return apply("gather", table, indices)


def one_hot(indices: Any, num_classes: int, dtype: Any = "float32") -> Any:
    """1 at each index along a new last dim of extent `num_classes`, else 0."""
    shape = (*np.shape(indices), num_classes)
    name = np.dtype(indices.dtype).name
    classes = apply("iota", type=TensorType(shape, name), dim=len(shape) - 1)
    return (np.expand_dims(indices, -1) == classes).astype(numpy_dtype(np.dtype(dtype).name))


def cross_entropy(logits: Any, labels: Any) -> Any:
    """-log softmax(logits)[label] of each example.

    Args:
        logits: (..., classes), floating.
        labels: (...), integers in [0, classes).

    Returns:
        (...): one loss for each example; take its mean for a loss to differentiate.
    """
    lead, classes = np.shape(logits)[:-1], np.shape(logits)[-1]
    if np.shape(labels) != lead:
        raise TracingError(
            f"cross_entropy: logits of shape {np.shape(logits)} take labels of shape {lead}, not "
            f"{np.shape(labels)}"
        )
    rows = np.reshape(logits, (int(np.prod(lead, dtype=np.int64)), classes))
    return np.reshape(apply("cross_entropy", rows, np.reshape(labels, -1)), lead)
