"""How values lie on a mesh, and what changing that takes."""

from hpc_alpa.sharding.conversions import Conversions, Move, moves
from hpc_alpa.sharding.spec import (
    ShardingSpec,
    all_coords,
    index_along,
    local_shape,
    num_tiles,
    tile_starts,
)
from hpc_alpa.sharding.strategies import Strategy, apply_roles, rule_of, strategies

__all__ = [
    "Conversions", "Move", "ShardingSpec", "Strategy", "all_coords", "apply_roles", "index_along",
    "local_shape", "moves", "num_tiles", "rule_of", "strategies", "tile_starts",
]  # fmt: skip
