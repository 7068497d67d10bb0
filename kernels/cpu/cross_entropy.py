"""Cross entropy of logits with one label per row, and its gradient."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_alpa.kernels.cpu.compile import compiled
from hpc_alpa.kernels.cpu.elementary import exp, larger
from hpc_alpa.kernels.reference.cross_entropy import label_error


@compiled(inline=True)
def _top(row: Any) -> Any:
    top = row.dtype.type(-np.inf)
    for j in range(row.size):
        top = larger(top, row[j])
    return top


@compiled()
def _cross_entropy(logits: Any, labels: Any, out: Any) -> int:
    n, v = logits.shape
    for i in range(n):
        row = logits[i]
        label = np.int64(labels[i])
        if label < 0 or label >= v:
            return i
        top = _top(row)
        total = row.dtype.type(0)
        for j in range(v):
            total += exp(row[j] - top)
        out[i] = math.log(total) + (top - row[label])
    return -1


@compiled()
def _cross_entropy_grad(logits: Any, labels: Any, ct: Any, out: Any) -> int:
    n, v = logits.shape
    buffer = np.empty(v, logits.dtype)
    for i in range(n):
        row = logits[i]
        target = out[i]
        label = np.int64(labels[i])
        if label < 0 or label >= v:
            return i
        top = _top(row)
        total = row.dtype.type(0)
        for j in range(v):
            e = exp(row[j] - top)
            buffer[j] = e
            total += e
        share = ct[i] / total
        for j in range(v):
            target[j] = buffer[j] * share
        target[label] -= ct[i]
    return -1


def cross_entropy(logits: NDArray[Any], labels: NDArray[np.integer], out: NDArray[Any]) -> None:
    """out (n,) = log(sum(exp(logits))) - logits[label], per row of logits (n, v).

    Raises:
        DataError: a label is outside 0..v-1.
    """
    _check(_cross_entropy(logits, labels, out), logits, labels)


def cross_entropy_grad(
    logits: NDArray[Any], labels: NDArray[np.integer], ct: NDArray[Any], out: NDArray[Any]
) -> None:
    """out (n, v) = ct (n,) times (softmax(logits) - one_hot(labels)).

    Raises:
        DataError: a label is outside 0..v-1.
    """
    _check(_cross_entropy_grad(logits, labels, ct, out), logits, labels)


def _check(bad_row: int, logits: NDArray[Any], labels: NDArray[np.integer]) -> None:
    if bad_row >= 0:
        raise label_error(bad_row, int(labels[bad_row]), logits.shape[1])
