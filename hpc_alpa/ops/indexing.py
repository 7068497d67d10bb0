"""Operators that read or write at indices.

They select and never multiply by a mask: 0 x inf is NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hpc_alpa.errors import GraphError
from hpc_alpa.ir.op import NARROW, Call, Params, Types, define
from hpc_alpa.ir.types import TensorType, numpy_dtype
from hpc_alpa.ops.rule import ALL, Rule, bind, names, side


def _integer(name: str, t: TensorType) -> None:
    if not t.dtype.startswith(("int", "uint")):
        raise GraphError(f"{name} takes integer indices, not {t}")


def local_rows(indices: Any, start: int, rows: int) -> tuple[Any, Any]:
    """Indices into a tile of rows, and which of them lie in it; the others read row 0."""
    i = indices.astype(np.int64) - start
    inside = (i >= 0) & (i < rows)
    return np.where(inside, i, 0), inside


# ------------------------------------------------------------------------- gather, scatter_add
def _infer_gather(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    table, indices = inputs
    _integer("gather", indices)
    if table.ndim != 2:
        raise GraphError(f"gather reads rows of a 2-d table, not of {table}")
    return table.with_shape((*indices.shape, table.shape[1]))


def _gather(c: Call, table: Any, indices: Any) -> Any:
    i, inside = local_rows(indices, c.offsets["v"], table.shape[0])
    return np.where(inside[..., None], table[i], table.dtype.type(0))


def _gather_vjp(b: Any, e: Any, ct: Any) -> Any:
    table, indices = e.inputs
    return b.scatter_add(ct, indices, type=table.type), None


def _gather_rule(inputs: Types, output: TensorType, params: Params) -> Rule:
    i = " ".join(names(inputs[1].ndim))
    return bind(f"v@+ h, {i or '.'} -> {i} h", inputs, output, ALL, ALL)


def _gather_kernel(backend: Any, c: Call, table: Any, indices: Any) -> Any:
    out = backend.empty(c.type.shape, numpy_dtype(c.type.dtype))
    flat = backend.contiguous(indices).reshape(-1)
    # Rows are moved, not computed with, so 16-bit floats go as the integers of their bits.
    bits = np.uint16 if c.type.dtype in NARROW else out.dtype
    rows = out.view(bits).reshape(-1, c.type.shape[-1])
    backend.kernels["gather"](backend.contiguous(table).view(bits), flat, c.offsets["v"], out=rows)
    return out


def _infer_scatter(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    ct, indices = inputs
    _integer("scatter_add", indices)
    if want is None or want.ndim != 2 or ct.shape != (*indices.shape, want.shape[1]):
        raise GraphError(f"scatter_add of {ct} at {indices} cannot make {want}")
    return want.with_dtype(ct.dtype)


def _scatter_add(c: Call, ct: Any, indices: Any) -> Any:
    out = np.zeros_like(ct, shape=c.type.shape)
    i, inside = local_rows(indices, c.starts[0], c.type.shape[0])
    np.add.at(out, i[inside], ct[inside])
    return out


def _scatter_rule(inputs: Types, output: TensorType, params: Params) -> Rule:
    n = names(inputs[1].ndim)
    i = " ".join(x + "+" for x in n)
    return bind(f"{i} h, {i or '.'} -> v@ h", inputs, output, ALL)


def _scatter_kernel(backend: Any, c: Call, ct: Any, indices: Any) -> Any:
    out = backend.empty(c.type.shape, c.type.dtype)
    rows = backend.contiguous(ct).reshape(-1, c.type.shape[-1])
    flat = backend.contiguous(indices).reshape(-1)
    backend.kernels["scatter_add"](rows, flat, c.starts[0], out=out)
    return out


# --------------------------------------------------------------------------------- pick, unpick
def _many(x: TensorType, indices: TensorType) -> bool:
    """Whether indices have a last dim of their own: several picks a row."""
    return indices.ndim == x.ndim


def _infer_pick(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    x, indices = inputs
    _integer("pick", indices)
    rows = indices.shape[:-1] if _many(x, indices) else indices.shape
    if x.ndim < 1 or rows != x.shape[:-1]:
        raise GraphError(f"pick takes one index a row, or one dim of them, not {x} and {indices}")
    return x.with_shape(indices.shape)


def _at(i: Any, many: bool) -> tuple[Any, ...]:
    """The element of every index of a row, or of every row."""
    rows = np.indices(i.shape)
    return (*(rows[:-1] if many else rows), i)


def _pick(c: Call, x: Any, indices: Any) -> Any:
    i, inside = local_rows(indices, c.offsets["v"], x.shape[-1])
    return np.where(inside, x[_at(i, i.ndim == x.ndim)], x.dtype.type(0))


def _infer_unpick(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    ct, indices = inputs
    _integer("unpick", indices)
    if want is None or want.ndim < 1 or ct.shape != indices.shape:
        raise GraphError(f"unpick of {ct} at {indices} cannot make {want}")
    rows = ct.shape[:-1] if _many(want, indices) else ct.shape
    if want.shape[:-1] != rows:
        raise GraphError(f"unpick of {ct} at {indices} cannot make {want}")
    return want.with_dtype(ct.dtype)


def _unpick(c: Call, ct: Any, indices: Any) -> Any:
    out = np.zeros_like(ct, shape=c.type.shape)
    i, inside = local_rows(indices, c.starts[-1], c.type.shape[-1])
    at = tuple(x[inside] for x in _at(i, i.ndim == out.ndim))
    if i.ndim == out.ndim:
        np.add.at(out, at, ct[inside])
    else:
        out[at] = ct[inside]
    return out


def _pick_rule(inputs: Types, output: TensorType, params: Params) -> Rule:
    n = names(output.ndim)
    rows = n[:-1] if _many(*inputs) else n
    left = f"{' '.join(rows)} v@+, {side(n)}"
    return bind(f"{left} -> {side(n)}", inputs, output, ALL, ALL)


def _unpick_rule(inputs: Types, output: TensorType, params: Params) -> Rule:
    n = names(inputs[1].ndim)
    many = _many(output, inputs[1])
    rows = n[:-1] if many else n
    left = side([*rows, n[-1] + "+"] if many else rows)
    return bind(f"{left}, {left} -> {' '.join(rows)} v@", inputs, output, ALL)


def _size(inputs: Types, output: TensorType, params: Params) -> float:
    return float(output.size)


define(
    "gather",  # rows of a table (v, h) at indices of any shape
    infer=_infer_gather,
    reference=_gather,
    vjp=_gather_vjp,
    flops=_size,
    rule=_gather_rule,
    kernel=_gather_kernel,
    cost="gather",
)
define(
    "scatter_add",  # its gradient: (indices..., h) added into a table (v, h)
    infer=_infer_scatter,
    reference=_scatter_add,
    vjp=lambda b, e, ct: (b.gather(ct, e.inputs[1]), None),
    flops=lambda inputs, output, params: float(inputs[0].size),
    rule=_scatter_rule,
    kernel=_scatter_kernel,
    cost="scatter_add",
    wide=True,
)
define(
    "pick",  # x[b, indices[b]], or x[b, indices[b, k]] for every k; any leading dims
    infer=_infer_pick,
    reference=_pick,
    vjp=lambda b, e, ct: (b.unpick(ct, e.inputs[1], type=e.inputs[0].type), None),
    flops=_size,
    rule=_pick_rule,
    cost="gather",
)
define(
    "unpick",  # its gradient: equal indices of a row add up
    infer=_infer_unpick,
    reference=_unpick,
    vjp=lambda b, e, ct: (b.pick(ct, e.inputs[1]), None),
    flops=_size,
    rule=_unpick_rule,
    cost="scatter_add",
)
