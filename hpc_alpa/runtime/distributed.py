"""`DistributedArray`: a value whose tiles lie on the ranks of a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc_alpa.arrays.protocol import Array, Arrays
from hpc_alpa.comm.protocol import Communicator
from hpc_alpa.errors import DataError
from hpc_alpa.ir.types import TensorType, numpy_dtype
from hpc_alpa.lower.program import Placed, Region
from hpc_alpa.runtime.runner import Runner


@dataclass(frozen=True)
class Layout:
    """Which tile of a value each rank holds; ranks may hold the same one, or none."""

    type: TensorType
    tiles: Mapping[int, Placed]

    def owners(self) -> dict[Region, int]:
        """Each distinct tile and the lowest rank that holds it."""
        found: dict[Region, int] = {}
        for rank in sorted(self.tiles):
            found.setdefault(self.tiles[rank].region, rank)
        return found


class DistributedArray:
    """A value of a step, in tiles on the ranks.

    Attributes:
        type: shape and dtype of the whole value.
        weak: it stands for a Python number.
    """

    def __init__(
        self,
        type: TensorType,
        runner: Runner,
        arrays: Arrays,
        layout: Layout | None = None,
        shards: dict[int, Array] | None = None,
        weak: bool = False,
        pending: Callable[[], Any] | None = None,
    ) -> None:
        self.type, self.runner, self.arrays = type, runner, arrays
        self.layout, self.shards, self.weak = layout, shards, weak
        # Not made yet: a function that gives the whole value.
        self.pending = pending

    @property
    def shape(self) -> tuple[int, ...]:
        return self.type.shape

    @property
    def ndim(self) -> int:
        return self.type.ndim

    @property
    def size(self) -> int:
        return self.type.size

    @property
    def dtype(self) -> np.dtype:
        return numpy_dtype(self.type.dtype)

    def tiles(self) -> dict[int, Array]:
        """This process's tiles by rank.

        Raises:
            DataError: the value was given to a step, which reuses its memory.
        """
        if self.shards is None:
            if self.pending is not None:
                raise DataError(
                    f"{self!r} is made when its step first runs; fetch it, or run the step"
                )
            raise DataError(
                f"{self!r} was given to a step as its state, which reuses the memory: use the "
                "state that the step returned, or fetch the value before"
            )
        return self.shards

    def donate(self) -> dict[int, Array]:
        """Hand the tiles over; the value can no longer be used."""
        tiles = self.tiles()
        self.shards = None
        return tiles

    def scalar(self) -> float | int | bool:
        """The value of a 0-d array; every rank has it. Local."""
        if self.type.shape:
            raise DataError(f"{self!r} is not 0-d; use hpc_alpa.fetch(x) for the whole array")
        if self.pending is not None and self.shards is None:
            return np.asarray(self.pending()).item()
        tiles = self.tiles()
        return self.arrays.to_host(next(iter(tiles.values()))).item()

    def __float__(self) -> float:
        return float(self.scalar())

    def __int__(self) -> int:
        return int(self.scalar())

    def __repr__(self) -> str:
        return f"DistributedArray({self.type})"

    def __array__(self, *args: Any, **options: Any) -> np.ndarray:
        if not self.type.shape:
            return np.asarray(self.scalar(), dtype=self.dtype)
        raise DataError(
            f"{self!r} lies on several ranks: hpc_alpa.fetch(x), on all ranks, gives a NumPy array"
        )


def gather(x: DistributedArray) -> np.ndarray:
    """The whole value on every rank. Collective over all ranks of its plan."""
    if x.shards is None and x.pending is not None:
        return np.asarray(x.pending(), dtype=x.dtype)
    tiles, layout = x.tiles(), x.layout
    assert layout is not None
    owners = layout.owners()

    def collect(comm: Communicator) -> np.ndarray:
        whole = np.empty(x.type.shape, x.dtype)
        mine = x.arrays.to_host(tiles[comm.rank]) if comm.rank in tiles else None
        for owner in owners.values():
            placed = layout.tiles[owner]
            part = np.empty(placed.type.shape, x.dtype)
            if comm.rank == owner:
                part[...] = mine
            if comm.size > 1:
                comm.broadcast(part, owner)
            whole[window(placed)] = part
        return whole

    return next(iter(x.runner.each(collect).values()))


def window(placed: Placed) -> tuple[slice | np.ndarray, ...]:
    """Index of a tile in the whole array; a batch's rows are the runs of its microbatches."""
    inside: list[slice | np.ndarray] = [slice(a, b) for a, b in placed.region]
    if placed.runs:
        inside[0] = np.concatenate([np.arange(a, b) for a, b in placed.runs])
    return tuple(inside)


def cut(x: np.ndarray, placed: Placed) -> np.ndarray:
    """One rank's tile of a whole array."""
    return np.array(x[window(placed)], order="C")


def cut_rows(rows: np.ndarray, placed: Placed) -> np.ndarray:
    """One rank's tile of a batch, from the rows that the rank reads."""
    rest = tuple(slice(a, b) for a, b in placed.region[1:])
    return np.ascontiguousarray(rows[(slice(None), *rest)])
