"""Every spec of a shape, found without the moves that a test may be about."""

from __future__ import annotations

import itertools
from typing import Any

from hpc_alpa.sharding import ShardingSpec, num_tiles
from hpc_alpa.sharding.spec import MAX, SUM, MeshShape


def all_specs(shape: tuple[int, ...], mesh: MeshShape) -> list[ShardingSpec]:
    """Specs whose tiles are even: each axis splits a dim, is partial or does nothing."""
    found: set[Any] = set()
    ndim = len(shape)
    for order in itertools.permutations(range(len(mesh))):
        for uses in itertools.product(range(-2, ndim), repeat=len(mesh)):
            dims = tuple(tuple(a for a in order if uses[a] == d) for d in range(ndim))
            if any(n % num_tiles(axes, mesh) for n, axes in zip(shape, dims, strict=True)):
                continue
            partial = tuple(a for a in range(len(mesh)) if uses[a] == -1)
            found.update(
                ShardingSpec(dims, partial, kind if partial else "") for kind in (SUM, MAX)
            )
    return sorted(found)
