"""How values lie on a mesh, and what changing that takes."""

from hpc_alpa.sharding.conversions import Conversions, Move, moves
from hpc_alpa.sharding.local import local_call, local_type, local_types
from hpc_alpa.sharding.phases import interior, phases, runs_in_phases
from hpc_alpa.sharding.spec import (
    ShardingSpec,
    all_coords,
    index_along,
    local_shape,
    num_tiles,
    tile_starts,
)
from hpc_alpa.sharding.steps import Exchange, Interior, Phase
from hpc_alpa.sharding.strategies import Strategy, apply_roles, rule_of, strategies

__all__ = [
    "Conversions", "Exchange", "Interior", "Move", "Phase", "ShardingSpec", "Strategy",
    "all_coords", "apply_roles", "index_along", "interior", "local_call", "local_shape",
    "local_type", "local_types", "moves", "num_tiles", "phases", "rule_of", "runs_in_phases",
    "strategies", "tile_starts",
]  # fmt: skip
