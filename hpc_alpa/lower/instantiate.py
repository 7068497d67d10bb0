"""One device's kernels and collectives from the items that all devices of a mesh share."""

from __future__ import annotations

from hpc_alpa.cluster import DeviceMesh
from hpc_alpa.cost.work import Work
from hpc_alpa.ir.op import op
from hpc_alpa.lower.program import (
    AllGather,
    AllReduce,
    AllToAll,
    Instruction,
    Kernel,
    ReduceScatter,
    at,
)
from hpc_alpa.lower.spmd import Compute, Convert
from hpc_alpa.plan.pricing import local_work
from hpc_alpa.sharding import index_along, local_shape
from hpc_alpa.sharding.conversions import FREE
from hpc_alpa.sharding.local import local_call

REDUCTION = {"+": "sum", ">": "max"}
_BOUNDARY = ("accumulate", "accumulate_max", "slot", "stack")


def kernel(item: Compute, mesh: DeviceMesh, device: int) -> Kernel:
    """One equation on one device."""
    e, coords = item.eqn, mesh.coords(device)
    call = local_call(e, item.strategy, mesh.shape, coords)
    params = dict(call.params)
    extents = list(call.extents)
    strides: tuple[tuple[int, int], ...] = ()
    if "slot_dim" in params:
        dim, slots = params.pop("slot_dim"), params.pop("slots")
        strides = ((dim, extents[dim]),)
        extents[dim] *= slots
    elif "slots" in params and e.op.name not in _BOUNDARY:
        del params["slots"]
    return Kernel(
        e.op,
        item.inputs,
        item.output,
        params,
        call.type,
        call.starts,
        tuple(extents),
        call.offsets,
        strides,
        local_work(e, item.strategy, mesh.shape),
        e.phase,
    )


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


def collective(item: Convert, mesh: DeviceMesh, device: int, microbatch: int | None) -> Instruction:
    """A conversion that needs the other devices along some axes."""
    move = item.moves[0]
    group = mesh.group(device, move.axes)
    sources = tuple(at(n, microbatch) for n in item.inputs)
    targets = tuple(at(n, microbatch) for n in item.outputs)
    nbytes = sum(
        int(m.nbytes(t.nbytes, mesh.shape)) for m, t in zip(item.moves, item.types, strict=True)
    )
    dims = tuple(m.dim for m in item.moves)
    if move.kind == "all_reduce":
        return AllReduce(sources, targets, group, REDUCTION[move.source.kind], nbytes)
    if move.kind == "all_gather":
        return AllGather(sources, targets, dims, group, nbytes, item.runs)
    if move.kind == "reduce_scatter":
        return ReduceScatter(sources, targets, dims, group, REDUCTION[move.source.kind], nbytes)
    assert move.kind == "all_to_all", move
    return AllToAll(sources[0], targets[0], move.to_dim, move.dim, group, nbytes, item.runs[0])


def is_local(item: Convert) -> bool:
    """Whether a conversion needs no other device."""
    return item.moves[0].kind in FREE
