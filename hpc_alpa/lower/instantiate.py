"""One device's kernels and collectives from the items that all devices of a mesh share."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from hpc_alpa.cluster import DeviceMesh
from hpc_alpa.cost.work import Work
from hpc_alpa.ir.graph import Eqn, Var
from hpc_alpa.ir.op import Params, op
from hpc_alpa.ir.types import TensorType
from hpc_alpa.lower.program import (
    AllGather,
    AllReduce,
    AllToAll,
    Kernel,
    ReduceScatter,
    at,
)
from hpc_alpa.lower.spmd import Compute, Convert
from hpc_alpa.plan.pricing import local_work
from hpc_alpa.sharding import Strategy, index_along, local_shape
from hpc_alpa.sharding.conversions import FREE
from hpc_alpa.sharding.local import local_call
from hpc_alpa.sharding.spec import Coords, MeshShape
from hpc_alpa.sharding.strategies import Signature

Starts = tuple[int, ...]
Collective = AllGather | AllReduce | AllToAll | ReduceScatter
REDUCTION = {"+": "sum", ">": "max"}
_BOUNDARY = ("accumulate", "accumulate_max", "slot", "stack")


def kernel(item: Compute, mesh: DeviceMesh, device: int) -> Kernel:
    """One equation on one device."""
    e = item.eqn
    fields = _fields(item.signature, item.strategy, mesh.shape, mesh.coords(device))
    return Kernel(e.op, item.inputs, item.output, *fields, e.phase)


# The fields of a kernel between its output and its phase.
Fields = tuple[
    Params, TensorType, Starts, Starts, Mapping[str, int], tuple[tuple[int, int], ...], Work
]


@lru_cache(maxsize=65536)
def _fields(s: Signature, strategy: Strategy, mesh: MeshShape, coords: Coords) -> Fields:
    """Of the kernels of equal equations on one device: equal layers ask for the same."""
    row, inputs, output, frozen = s
    e = Eqn(row, tuple(Var(k, t) for k, t in enumerate(inputs)), Var(len(inputs), output), frozen)
    call = local_call(e, strategy, mesh, coords)
    params = dict(call.params)
    extents = list(call.extents)
    strides: tuple[tuple[int, int], ...] = ()
    if "slot_dim" in params:
        dim, slots = params.pop("slot_dim"), params.pop("slots")
        strides = ((dim, extents[dim]),)
        extents[dim] *= slots
    elif "slots" in params and e.op.name not in _BOUNDARY:
        del params["slots"]
    work = local_work(e, strategy, mesh)
    return params, call.type, call.starts, tuple(extents), call.offsets, strides, work


def local_move(item: Convert, mesh: DeviceMesh, device: int, phase: str) -> Kernel:
    """A conversion that needs no other device."""
    move, type, source, target = item.moves[0], item.types[0], item.inputs[0], item.outputs[0]
    coords = mesh.coords(device)
    have = type.with_shape(local_shape(type.shape, move.source, mesh.shape))
    want = type.with_shape(local_shape(type.shape, move.target, mesh.shape))
    name = "enter"
    params: dict[str, object] = {}
    inputs: tuple[str, ...] = (source,)
    if move.kind == "slice":
        index = index_along(coords, move.axes, mesh.shape)
        starts = [0] * type.ndim
        starts[move.dim] = index * want.shape[move.dim]
        name, params = "slice", {"starts": tuple(starts)}
    elif move.kind == "to_partial_sum" and index_along(coords, move.axes, mesh.shape):
        # The value stays on the first device of the axis and is zero on the others.
        name, params, inputs = "full", {"value": 0}, ()
    row = op(name)
    nbytes = 0.0 if row.view else float(have.nbytes)
    work = Work(name, 0.0, nbytes, type.dtype)
    return Kernel(
        row, inputs, target, params, want, (0,) * type.ndim, want.shape, {}, (), work, phase
    )


def collective(item: Convert, mesh: DeviceMesh, device: int) -> Collective:
    """A conversion that needs the other devices along some axes, under a body's names."""
    move = item.moves[0]
    group = mesh.group(device, move.axes)
    sources, targets = item.inputs, item.outputs
    nbytes = nbytes_of(item, mesh)
    dims = tuple(m.dim for m in item.moves)
    if move.kind == "all_reduce":
        return AllReduce(sources, targets, group, REDUCTION[move.source.kind], nbytes)
    if move.kind == "all_gather":
        return AllGather(sources, targets, dims, group, nbytes, item.runs)
    if move.kind == "reduce_scatter":
        return ReduceScatter(sources, targets, dims, group, REDUCTION[move.source.kind], nbytes)
    assert move.kind == "all_to_all", move
    return AllToAll(sources[0], targets[0], move.to_dim, move.dim, group, nbytes, item.runs[0])


def nbytes_of(item: Convert, mesh: DeviceMesh) -> int:
    """Bytes of the whole tensors of a conversion on its group."""
    return sum(
        int(m.nbytes(t.nbytes, mesh.shape)) for m, t in zip(item.moves, item.types, strict=True)
    )


def in_microbatch(i: Collective, microbatch: int | None) -> Collective:
    """A collective under the names of one microbatch."""
    if microbatch is None:
        return i
    if isinstance(i, AllToAll):
        source, target = at(i.source, microbatch), at(i.target, microbatch)
        return AllToAll(source, target, i.split_dim, i.concat_dim, i.group, i.nbytes, i.runs)
    sources = tuple([at(n, microbatch) for n in i.sources])
    targets = tuple([at(n, microbatch) for n in i.targets])
    if isinstance(i, AllReduce):
        return AllReduce(sources, targets, i.group, i.op, i.nbytes)
    if isinstance(i, AllGather):
        return AllGather(sources, targets, i.dims, i.group, i.nbytes, i.runs)
    return ReduceScatter(sources, targets, i.dims, i.group, i.op, i.nbytes)


def is_local(item: Convert) -> bool:
    """Whether a conversion needs no other device."""
    return item.moves[0].kind in FREE
