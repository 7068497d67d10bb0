"""Tiles of a spatial dim with rows of their neighbours: how windows run on a split dim.

Only expansions of conv and pool have these rows (`sharding.halo`). Values are (batch, *spatial,
channels); a tile is what a device has of the dim:

    halo_edges   the last and the first rows of each tile, which its neighbours need
    halo_fold    each tile with rows of both neighbours, tiles becoming the major part of the batch
    halo_unfold  the reverse, without the neighbours' rows

So that an operator sees tiles as more examples of the batch, and knows nothing of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc_alpa.errors import GraphError
from hpc_alpa.ir.op import Call, Params, Types, define
from hpc_alpa.ir.types import TensorType
from hpc_alpa.ops.movement import no_flops
from hpc_alpa.ops.rule import ALL, Rule, bind, names

FILLS = {"lowest": -np.inf, "zero": 0}


@dataclass(frozen=True)
class Halos:
    """What an operator of windows needs of neighbouring tiles, and what it makes of a tile.

    Attributes:
        needs: for each operand that is in tiles (the first ones), a need of `ops.windows.NEEDS`.
        fills: for each of them, a key of `FILLS`: what lies beyond the first and the last tile.
        result: need whose rows the result has around its own tile, or None where it is a sum over
            all tiles.
        padded: whether a row of the result reaches beyond the operands' tile: the padding then says
            how far. Else what is padded is there.
    """

    needs: tuple[str, ...]
    fills: tuple[str, ...]
    result: str | None = "none"
    padded: bool = False


HALOS: dict[str, Halos] = {  # alphabetical
    "conv": Halos(("below",), ("zero",)),
    "conv_grad_input": Halos(("above",), ("zero",), padded=True),
    "conv_grad_weight": Halos(("below", "none"), ("zero", "zero"), None),
    "pool": Halos(("below",), ("lowest",)),  # zero where the kind is sum
    "pool_pick": Halos(("below", "below"), ("lowest", "zero")),
    "pool_unpick": Halos(("both", "above"), ("lowest", "zero"), "both"),
    "unpool": Halos(("above",), ("zero",), padded=True),
}


def _spatial(name: str, x: TensorType, params: Params) -> int:
    """The dim that is in tiles."""
    dim = int(params["dim"])
    if not 0 < dim < x.ndim - 1 or not x.is_floating:
        raise GraphError(f"{name} takes floating x (batch, *spatial, channels), not {x}; dim {dim}")
    return dim


def _replaced(x: TensorType, dim: int, *extents: int) -> TensorType:
    """Other extents in the place of one dim."""
    return x.with_shape((*x.shape[:dim], *extents, *x.shape[dim + 1 :]))


def _tile(name: str, extent: int, params: Params) -> int:
    """Rows of a tile, at least as many as a neighbour needs."""
    rows, rest = divmod(extent, params["tiles"])
    if rest or rows < max(params["before"], params["after"]):
        raise GraphError(f"{name}: {extent} rows do not make tiles with {dict(params)}")
    return rows


def _infer_edges(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    (x,) = inputs
    dim = _spatial("halo_edges", x, params)
    _tile("halo_edges", x.shape[dim], params)
    return _replaced(x, dim, params["tiles"], params["before"] + params["after"])


def _infer_fold(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    x, *edges = inputs
    dim = _spatial("halo_fold", x, params)
    rows, width = _tile("halo_fold", x.shape[dim], params), params["before"] + params["after"]
    if (
        edges != ([_infer_edges((x,), params, None)] if width else [])
        or params["fill"] not in FILLS
    ):
        raise GraphError(f"halo_fold of {x} with {dict(params)} does not take {edges}")
    folded = _replaced(x, dim, rows + width)
    return folded.with_shape((params["tiles"] * x.shape[0], *folded.shape[1:]))


def _infer_unfold(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    (x,), tiles = inputs, params["tiles"]
    dim = _spatial("halo_unfold", x, params)
    rows = x.shape[dim] - params["before"] - params["after"]
    if x.shape[0] % tiles or rows < 1:
        raise GraphError(f"halo_unfold of {x} does not give tiles with {dict(params)}")
    whole = _replaced(x, dim, rows * tiles)
    return whole.with_shape((x.shape[0] // tiles, *whole.shape[1:]))


# ------------------------------------------------------------------------------------ references
def _rows(ndim: int, dim: int, start: int, stop: int | None) -> tuple[slice, ...]:
    return tuple(slice(start, stop) if d == dim else slice(None) for d in range(ndim))


def _edges(c: Call, x: Any) -> Any:
    dim, before, after = (c.params[k] for k in ("dim", "before", "after"))
    tiles = c.type.shape[dim]
    split = x.reshape(*x.shape[:dim], tiles, x.shape[dim] // tiles, *x.shape[dim + 1 :])
    rows = split.shape[dim + 1]
    last = split[_rows(split.ndim, dim + 1, rows - before, rows)]
    return np.concatenate([last, split[_rows(split.ndim, dim + 1, 0, after)]], axis=dim + 1)


def _fold(c: Call, x: Any, *edges: Any) -> Any:
    dim, before, after = (c.params[k] for k in ("dim", "before", "after"))
    tiles, batch = c.type.shape[0] // x.shape[0], x.shape[0]
    first = c.starts[0] // (c.extents[0] // c.params["tiles"])
    rows = x.shape[dim] // tiles
    out = np.full_like(x, FILLS[c.params["fill"]], shape=c.type.shape)
    for k in range(tiles):
        tile, t = out[k * batch : (k + 1) * batch], first + k
        own = x[_rows(x.ndim, dim, k * rows, (k + 1) * rows)]
        tile[_rows(x.ndim, dim, before, before + rows)] = own
        for neighbour, source, target in (
            (t - 1, (0, before), (0, before)),
            (t + 1, (before, before + after), (before + rows, None)),
        ):
            if edges and 0 <= neighbour < c.params["tiles"]:
                there = edges[0].take(neighbour, axis=dim)
                tile[_rows(x.ndim, dim, *target)] = there[_rows(x.ndim, dim, *source)]
    return out


def _unfold(c: Call, x: Any) -> Any:
    dim, before, after = (c.params[k] for k in ("dim", "before", "after"))
    tiles = x.shape[0] // c.type.shape[0]
    kept = x[_rows(x.ndim, dim, before, x.shape[dim] - after)]
    split = kept.reshape(tiles, c.type.shape[0], *kept.shape[1:])
    return np.moveaxis(split, 0, dim).reshape(c.type.shape)


# ----------------------------------------------------------------------------------------- rules
def _edges_rule(inputs: Types, output: TensorType, params: Params) -> Rule:
    n, dim = names(inputs[0].ndim), params["dim"]
    left = " ".join("(t r^)" if d == dim else x for d, x in enumerate(n))
    right = " ".join("t k^" if d == dim else x for d, x in enumerate(n))
    tiles = params["tiles"]
    sizes = (("t", tiles), ("r", inputs[0].shape[dim] // tiles))
    return bind(f"{left} -> {right}", inputs, output, ALL, ALL, sizes)


def _fold_rule(inputs: Types, output: TensorType, params: Params) -> Rule:
    n, dim, tiles = names(output.ndim), params["dim"], params["tiles"]
    left = " ".join("(t r^)" if d == dim else x for d, x in enumerate(n))
    edges = " ".join("q^ k^" if d == dim else x for d, x in enumerate(n))
    right = " ".join(["(t@ a)", *["x^" if d == dim else x for d, x in enumerate(n)][1:]])
    every = (tuple(range(len(inputs))),)
    sizes = (("t", tiles), ("r", inputs[0].shape[dim] // tiles), ("a", inputs[0].shape[0]))
    operands = f"{left}, {edges}" if len(inputs) > 1 else left
    sums = every if params["fill"] == "zero" else ()
    return bind(f"{operands} -> {right}", inputs, output, sums, every, sizes)


def _unfold_rule(inputs: Types, output: TensorType, params: Params) -> Rule:
    n, dim, tiles = names(output.ndim), params["dim"], params["tiles"]
    left = " ".join(["(t a)", *["x^" if d == dim else x for d, x in enumerate(n)][1:]])
    right = " ".join("(t r^)" if d == dim else x for d, x in enumerate(n))
    sizes = (("t", tiles), ("r", output.shape[dim] // tiles), ("a", output.shape[0]))
    return bind(f"{left} -> {right}", inputs, output, ALL, ALL, sizes)


for _name, _infer, _reference, _rule in (
    ("halo_edges", _infer_edges, _edges, _edges_rule),
    ("halo_fold", _infer_fold, _fold, _fold_rule),
    ("halo_unfold", _infer_unfold, _unfold, _unfold_rule),
):
    define(
        _name,
        infer=_infer,
        reference=_reference,
        vjp=None,
        flops=no_flops,
        rule=_rule,
        cost="copy",
    )
