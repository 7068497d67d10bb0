"""Copies of arrays on the host: what packing a message costs.

`hot` copies the same array again, `streamed` another one each time; `strided` copies every second
column. Bytes are those read and those written.
"""

from collections.abc import Callable, Iterator

import numpy as np

from hpc_alpa.cost import parameters
from hpc_alpa.ir.types import TensorType
from hpc_alpa.profiler.arena import sets_of
from hpc_alpa.profiler.operators import LEVELS
from hpc_alpa.profiler.point import Call, Point, busy_ranks, together
from hpc_alpa.profiler.setting import Setting


def _copy(variant: str, nbytes: int) -> Callable[[], Call]:
    def prepare() -> Call:
        columns = 2 if variant == "strided" else 1
        shape = (nbytes // 4, columns)
        sets = sets_of((TensorType(shape, "float32"),), nbytes)
        sources = [x[:, 0] for (x,) in (sets[:1] if variant == "hot" else sets)]
        targets = [np.zeros(nbytes // 4, np.float32) for _ in sources]

        def call(i: int) -> None:
            np.copyto(targets[i % len(targets)], sources[i % len(sources)])

        return call

    return prepare


def points(setting: Setting) -> Iterator[Point]:
    """A point per variant, size and load."""
    for variant in ("hot", "streamed", "strided"):
        for nbytes, level in LEVELS.items():
            for turn, load in enumerate(setting.loads):
                values = parameters(
                    "copies", variant=variant, nbytes=2 * nbytes, threads=load.threads,
                    busy=load.busy, clock=setting.clock_name(load),
                )  # fmt: skip
                measure = together(load, _copy(variant, nbytes))
                ranks = busy_ranks(setting, load)
                yield Point("copies", "copy", values, level, ranks, measure, turn)
