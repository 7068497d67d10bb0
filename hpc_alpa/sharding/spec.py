"""`ShardingSpec`: how a value lies on a mesh, `S0R`, `RS01`, `S1R+P0`.

A value that is not split or partial over an axis is identical along it, each term of a partial
included.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from hpc_alpa.errors import ShardingError

SUM, MAX = "+", ">"
_LETTER = {SUM: "P", MAX: "M"}
_KIND = {v: k for k, v in _LETTER.items()}
_TEXT = re.compile(r"^(\.|(?:R|S\d+)+)(?:\+([PM])(\d+))?$")

MeshShape = tuple[int, ...]
Coords = tuple[int, ...]


@dataclass(frozen=True, slots=True, order=True)
class ShardingSpec:
    """How each dim is split over mesh axes, major first, and where the value is partial.

    Attributes:
        dims: for each tensor dim, the mesh axes that split it.
        partial: axes along which devices hold terms of a sum (`+P`) or candidates of a max (`+M`).
        kind: "+" or ">" when `partial` is not empty, else "".
    """

    dims: tuple[tuple[int, ...], ...]
    partial: tuple[int, ...] = ()
    kind: str = ""
    # A planner looks specs up millions of times. Of integers alone: the same in every process.
    _hash: int = field(init=False, repr=False, compare=False, default=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.dims, self.partial, self.kind == SUM)))
        axes = [a for d in self.dims for a in d] + list(self.partial)
        if len(set(axes)) != len(axes):
            raise ShardingError(f"spec {self} uses a mesh axis twice")
        if bool(self.partial) != bool(self.kind) or tuple(sorted(self.partial)) != self.partial:
            raise ShardingError(f"spec with partial axes {self.partial} and kind {self.kind!r}")

    def __hash__(self) -> int:
        return self._hash

    @property
    def split_axes(self) -> tuple[int, ...]:
        return tuple(a for d in self.dims for a in d)

    @property
    def is_replicated(self) -> bool:
        return not self.partial and not any(self.dims)

    def free_axes(self, mesh: MeshShape) -> tuple[int, ...]:
        """Axes along which all devices hold the same."""
        used = {*self.split_axes, *self.partial}
        return tuple(a for a in range(len(mesh)) if a not in used)

    def resolved(self) -> ShardingSpec:
        """The same split, no longer partial."""
        return ShardingSpec(self.dims)

    def with_dim(self, dim: int, axes: tuple[int, ...]) -> ShardingSpec:
        """The same, but for the axes that split one dim."""
        dims = tuple(axes if d == dim else x for d, x in enumerate(self.dims))
        return ShardingSpec(dims, self.partial, self.kind)

    def with_partial(self, axes: tuple[int, ...], kind: str) -> ShardingSpec:
        """The same split, partial along these axes; `kind` is "+" or ">"."""
        return ShardingSpec(self.dims, tuple(sorted(axes)), kind if axes else "")

    def __str__(self) -> str:
        return _text(self)

    @classmethod
    def parse(cls, text: str) -> ShardingSpec:
        """Read the form that `str` prints; raises `ShardingError` for another one."""
        match = _TEXT.match(text)
        if match is None:
            raise ShardingError(f"{text!r} is not a spec of the form S0R, RS01, S1R+P0")
        dims = tuple(tuple(map(int, part[1:])) for part in re.findall(r"R|S\d+", match[1]))
        if match[2] is None:
            return cls(dims)
        return cls(dims, tuple(map(int, match[3])), _KIND[match[2]])

    @classmethod
    def replicated(cls, ndim: int) -> ShardingSpec:
        """The same whole value on every device."""
        return cls(((),) * ndim)


@lru_cache(maxsize=4096)
def _text(spec: ShardingSpec) -> str:
    # Buffers are named by their specs, so a few of them are printed thousands of times.
    text = "".join("S" + "".join(map(str, d)) if d else "R" for d in spec.dims) or "."
    if spec.partial:
        text += f"+{_LETTER[spec.kind]}" + "".join(map(str, spec.partial))
    return text


def num_tiles(axes: tuple[int, ...], mesh: MeshShape) -> int:
    """Into how many tiles these axes split a dim."""
    return math.prod(mesh[a] for a in axes)


def index_along(coords: Coords, axes: tuple[int, ...], mesh: MeshShape) -> int:
    """Row-major index of a device along some axes, the first one major."""
    i = 0
    for a in axes:
        i = i * mesh[a] + coords[a]
    return i


def all_coords(mesh: MeshShape) -> Iterator[Coords]:
    """Coordinates of every device, row-major."""
    for i in range(math.prod(mesh)):
        coords = []
        for n in reversed(mesh):
            coords.append(i % n)
            i //= n
        yield tuple(reversed(coords))


def local_shape(shape: tuple[int, ...], spec: ShardingSpec, mesh: MeshShape) -> tuple[int, ...]:
    """Shape of one device's tile.

    Raises:
        ShardingError: when the axes do not divide a dim.
    """
    if len(shape) != len(spec.dims):
        raise ShardingError(f"spec {spec} has {len(spec.dims)} dims, the value has {len(shape)}")
    tiles = []
    for d, (extent, axes) in enumerate(zip(shape, spec.dims, strict=True)):
        n = num_tiles(axes, mesh)
        if extent % n:
            raise ShardingError(
                f"dim {d} of {shape} cannot be split over mesh axes {axes}: {extent} is not a "
                f"multiple of {n} (spec {spec} on mesh {mesh}). Pad the dimension to "
                f"{-(-extent // n) * n}, choose another mesh shape, or let the planner pick the "
                "spec."
            )
        tiles.append(extent // n)
    return tuple(tiles)


def tile_starts(
    shape: tuple[int, ...], spec: ShardingSpec, mesh: MeshShape, coords: Coords
) -> tuple[int, ...]:
    """Where the tile of the device at `coords` starts in the whole value."""
    tile = local_shape(shape, spec, mesh)
    return tuple(
        index_along(coords, axes, mesh) * n for n, axes in zip(tile, spec.dims, strict=True)
    )
