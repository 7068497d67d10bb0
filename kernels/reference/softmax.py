"""Softmax over the last dim, and its gradient."""

from hpc_alpa.kernels import Array
from hpc_alpa.kernels.reference import array_module


def softmax(
    x: Array, scale: float, causal: bool, row_offset: int, column_offset: int, out: Array
) -> None:
    """out = softmax(x * scale) over the last dim of x (n, q, k).

    Causal: entry (i, j) is masked where column_offset + j > row_offset + i; the offsets place a
    tile in the whole. A row that is wholly masked, or -inf throughout, gives zeros.
    """
    if out.size == 0:
        return
    xp = array_module(x)
    z = x * float(scale)
    if causal:
        rows = row_offset + xp.arange(x.shape[1])[:, None]
        columns = column_offset + xp.arange(x.shape[2])[None, :]
        z = xp.where(columns > rows, -xp.inf, z)
    top = z.max(axis=-1, keepdims=True)
    e = xp.exp(z - xp.where(top == -xp.inf, 0.0, top))
    total = e.sum(axis=-1, keepdims=True)
    out[...] = e / xp.where(total == 0, 1.0, total)


def softmax_grad(y: Array, ct: Array, scale: float, out: Array) -> None:
    """out = gradient by x of softmax(x * scale), from its value y (n, q, k) and cotangent ct."""
    out[...] = y * (ct - (y * ct).sum(axis=-1, keepdims=True)) * float(scale)
