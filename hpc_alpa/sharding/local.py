"""What one device does of an equation under a strategy: its tiles' types, its kernel's call."""

from __future__ import annotations

from hpc_alpa.ir.graph import Eqn
from hpc_alpa.ir.op import Call
from hpc_alpa.ir.types import TensorType
from hpc_alpa.sharding.spec import (
    Coords,
    MeshShape,
    ShardingSpec,
    index_along,
    local_shape,
    num_tiles,
    tile_starts,
)
from hpc_alpa.sharding.strategies import Strategy, rule_of


def local_type(type: TensorType, spec: ShardingSpec, mesh: MeshShape) -> TensorType:
    """Type of one device's tile of a value."""
    return type.with_shape(local_shape(type.shape, spec, mesh))


def local_types(
    e: Eqn, strategy: Strategy, mesh: MeshShape
) -> tuple[tuple[TensorType, ...], TensorType]:
    """Types of the operands' tiles and of the output's tile; the same on every device."""
    pairs = zip(e.input_types, strategy.inputs, strict=True)
    return (
        tuple(local_type(t, s, mesh) for t, s in pairs),
        local_type(e.output.type, strategy.output, mesh),
    )


def local_call(e: Eqn, strategy: Strategy, mesh: MeshShape, coords: Coords) -> Call:
    """The call that makes the output tile of the device at `coords`."""
    rule = rule_of(e)
    offsets = {}
    for factor in rule.located:
        axes = strategy.axes_of(factor)
        offsets[factor] = index_along(coords, axes, mesh) * (
            rule.sizes[factor] // num_tiles(axes, mesh)
        )
    return Call(
        e.params_dict,
        local_type(e.output.type, strategy.output, mesh),
        tile_starts(e.output.type.shape, strategy.output, mesh, coords),
        e.output.type.shape,
        offsets,
    )
