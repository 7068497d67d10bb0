"""The executors of this process's ranks, and values going in and out of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hpc_alpa.arrays.protocol import Array, Arrays
from hpc_alpa.comm.protocol import Communicator
from hpc_alpa.ir.types import TensorType, numpy_dtype
from hpc_alpa.lower.program import Placed, Program
from hpc_alpa.runtime.distributed import DistributedArray, Layout, cut, cut_rows, gather
from hpc_alpa.runtime.executor import Executor, Record
from hpc_alpa.runtime.runner import Runner

Rows = Callable[[np.ndarray], np.ndarray]


class Engine:
    """Runs the programs of a plan on a runner. Making one is collective.

    Args:
        programs: of all ranks; those of this process are run.
        input_types, output_types: of the step's inputs and outputs, whole.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        runner: Runner,
        arrays: Arrays,
        input_types: Sequence[TensorType],
        output_types: Sequence[TensorType],
    ) -> None:
        self.programs, self.runner, self.arrays = tuple(programs), runner, arrays
        self.input_types, self.output_types = tuple(input_types), tuple(output_types)
        self.executors = {
            r: Executor(self.programs[r], arrays) for r in runner.here if r < len(self.programs)
        }
        self.input_layouts = self._layouts([p.inputs for p in programs], self.input_types)
        self.output_layouts = self._layouts([p.outputs for p in programs], self.output_types)

    def _layouts(
        self, placed: Sequence[Sequence[Placed]], types: Sequence[TensorType]
    ) -> tuple[Layout, ...]:
        tiles: list[dict[int, Placed]] = [{} for _ in types]
        for rank, entries in enumerate(placed):
            for p in entries:
                tiles[p.position][rank] = p
        return tuple(Layout(t, found) for t, found in zip(types, tiles, strict=True))

    def place(
        self, position: int, value: Any, rows: Rows | None = None, donated: bool = True
    ) -> dict[int, Array]:
        """This process's tiles of an input. Collective where the value lies on other ranks.

        Args:
            value: a NumPy array or number, or a DistributedArray; ignored when `rows` is given.
            rows: reads the given rows of the whole batch.
            donated: a DistributedArray may not be used afterwards.
        """
        layout = self.input_layouts[position]
        if isinstance(value, DistributedArray):
            if value.shards is not None and _same(value.layout, layout):
                return value.donate() if donated else value.tiles()
            value = gather(value)
        dtype = numpy_dtype(layout.type.dtype)
        placed = {r: layout.tiles[r] for r in self.executors if r in layout.tiles}
        if rows is not None:
            return {r: self.arrays.from_host(_read(rows, p, dtype)) for r, p in placed.items()}
        whole = np.asarray(value, dtype=dtype)
        return {r: self.arrays.from_host(cut(whole, p)) for r, p in placed.items()}

    def run(
        self, inputs: Mapping[int, Mapping[int, Array]], **options: bool
    ) -> tuple[list[dict[int, Array]], dict[int, Record]]:
        """Run one step: tiles of each input by position and rank, to tiles of each output.

        Collective over the runner's ranks.

        Args:
            options: of `Executor.__call__`.
        """

        def one(comm: Communicator) -> tuple[dict[int, Array], Record]:
            executor = self.executors[comm.rank]
            executor.attach(comm)
            mine = {k: tiles[comm.rank] for k, tiles in inputs.items() if comm.rank in tiles}
            return executor(mine, **options), executor.record

        results = self.runner.each(one)
        outputs = [
            {r: made[k] for r, (made, _) in results.items() if k in made}
            for k in range(len(self.output_types))
        ]
        return outputs, {r: record for r, (_, record) in results.items()}

    def wrap(self, position: int, shards: dict[int, Array], weak: bool = False) -> DistributedArray:
        """A result as a value that users hold."""
        layout = self.output_layouts[position]
        return DistributedArray(layout.type, self.runner, self.arrays, layout, shards, weak)


def _same(a: Layout | None, b: Layout) -> bool:
    """Whether two layouts put the same region on the same ranks."""
    if a is None or a.type != b.type or a.tiles.keys() != b.tiles.keys():
        return False
    return all(
        a.tiles[r].region == b.tiles[r].region and a.tiles[r].runs == b.tiles[r].runs
        for r in a.tiles
    )


def _read(rows: Rows, placed: Placed, dtype: np.dtype) -> np.ndarray:
    """A rank's rows of the batch, from a function that reads rows."""
    wanted = np.concatenate([np.arange(a, b) for a, b in placed.runs])
    return cut_rows(np.asarray(rows(wanted), dtype=dtype), placed)
