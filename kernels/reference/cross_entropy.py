"""Cross entropy of logits with one label per row, and its gradient."""

from hpc_alpa.errors import DataError
from hpc_alpa.kernels import Array
from hpc_alpa.kernels.reference import array_module


def label_error(row: int, label: int, num_classes: int) -> DataError:
    """The error for a label that is no column of the logits."""
    return DataError(
        f"cross_entropy: label {label} in row {row} is none of the {num_classes} classes "
        f"0..{num_classes - 1} of the logits.\n"
        "  Check the labels, or give the logits a column for it."
    )


def _check(logits: Array, labels: Array) -> None:
    outside = (labels < 0) | (labels >= logits.shape[1])
    if outside.any():
        row = int(outside.argmax())
        raise label_error(row, int(labels[row]), logits.shape[1])


def cross_entropy(logits: Array, labels: Array, out: Array) -> None:
    """out (n,) = log(sum(exp(logits))) - logits[label], per row of logits (n, v).

    Raises:
        DataError: a label is outside 0..v-1.
    """
    if out.size == 0:
        return
    _check(logits, labels)
    xp = array_module(logits)
    z = logits - logits.max(axis=-1, keepdims=True)
    chosen = xp.take_along_axis(z, labels[:, None], axis=-1)[:, 0]
    out[...] = xp.log(xp.exp(z).sum(axis=-1)) - chosen


def cross_entropy_grad(logits: Array, labels: Array, ct: Array, out: Array) -> None:
    """out (n, v) = ct (n,) times (softmax(logits) - one_hot(labels)).

    Raises:
        DataError: a label is outside 0..v-1.
    """
    if out.size == 0:
        return
    _check(logits, labels)
    xp = array_module(logits)
    e = xp.exp(logits - logits.max(axis=-1, keepdims=True))
    p = e / e.sum(axis=-1, keepdims=True)
    p[xp.arange(len(labels)), labels] -= 1
    out[...] = p * ct[:, None]
