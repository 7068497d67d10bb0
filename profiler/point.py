"""One thing to measure, and how it is timed."""

from collections.abc import Callable
from dataclasses import dataclass

from hpc_alpa.comm import Communicator
from hpc_alpa.cost import Load, Quantiles, Sample
from hpc_alpa.cost.sample import Parameter
from hpc_alpa.profiler.clock import repeat
from hpc_alpa.profiler.setting import Setting

Measure = Callable[[Setting, Communicator], list[float] | None]
Call = Callable[[int], object]


@dataclass(frozen=True)
class Point:
    """A sample to be taken by `ranks`, of which the first is 0.

    `level` 0 is the coarse grid that every database should have; higher levels refine it. Within a
    level lower `turn`s come first. `measure` runs on all `ranks` with their communicator and gives
    rank 0 the seconds of single runs.
    """

    group: str
    name: str
    parameters: tuple[Parameter, ...]
    level: int
    ranks: tuple[int, ...]
    measure: Measure
    turn: int = 0

    @property
    def key(self) -> tuple[str, str, tuple[Parameter, ...]]:
        return self.group, self.name, self.parameters

    def sample(self, seconds: list[float]) -> Sample:
        return Sample(self.group, self.name, self.parameters, Quantiles.of(seconds))

    def __str__(self) -> str:
        shown = " ".join(str(p) for p in self.parameters if p not in ("", 0))
        return f"{self.group}/{self.name} {shown}"


def busy_ranks(setting: Setting, load: Load) -> tuple[int, ...]:
    """The ranks that compute at once under `load`: the first of the first host."""
    return setting.ranks_by_host[0][: load.busy]


def together(load: Load, prepare: Callable[[], Call], warm: int = 1) -> Measure:
    """Measure a local computation on all ranks of the load at once, and pool their seconds.

    `prepare` makes the operands, outside the timing, and returns the call; up to `warm` calls come
    before those that count.
    """

    def measure(setting: Setting, group: Communicator) -> list[float] | None:
        call = prepare()
        with setting.limited(load):
            group.barrier()
            found = repeat(call, setting.seconds, setting.now(load), warm)
        every = group.gather_objects(found)
        return None if every is None else [s for part in every for s in part]

    return measure
