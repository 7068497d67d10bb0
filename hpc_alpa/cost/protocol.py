"""The cost model that planner and simulator ask."""

from dataclasses import dataclass
from typing import Protocol

from hpc_alpa.cluster import Cluster
from hpc_alpa.cost.work import Work
from hpc_alpa.errors import CostError

# alphabetical
COLLECTIVES = ("all_gather", "all_reduce", "all_to_all", "broadcast", "reduce_scatter")


class Cost(Protocol):
    """Seconds of work and of messages on a cluster.

    `nbytes` of a collective is the full tensor on its group: the gathered result of all_gather, the
    input of reduce_scatter, the buffer of all_reduce and broadcast, n times one rank's share in
    all_to_all. A model that lacks a number raises CostError; none falls back to another model.
    """

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def cluster(self) -> Cluster: ...

    @property
    def in_seconds(self) -> bool:
        """Whether compute is priced and all numbers are seconds, as whole steps need them.

        Else they are units that only compare conversions, each alone, of one stage.
        """
        ...

    def compute(self, work: Work) -> float:
        """Seconds of one equation alone on one device; CPU seconds where ranks outnumber cores."""
        ...

    def collective(self, kind: str, nbytes: float, devices: tuple[int, ...]) -> float:
        """Seconds of one collective over `devices`; 0 for a single device."""
        ...

    def point_to_point(self, nbytes: float, source: int, destination: int) -> float:
        """Seconds of one message; 0 from a device to itself."""
        ...


@dataclass(frozen=True)
class Spread:
    """A measured number with its quartiles, all in seconds."""

    p25: float
    median: float
    p75: float

    def scaled(self, factor: float) -> "Spread":
        return Spread(self.p25 * factor, self.median * factor, self.p75 * factor)

    def __add__(self, other: "Spread") -> "Spread":
        return Spread(self.p25 + other.p25, self.median + other.median, self.p75 + other.p75)


ZERO = Spread(0.0, 0.0, 0.0)


def check_collective(kind: str, nbytes: float, devices: tuple[int, ...]) -> None:
    """Refuse an unknown kind, negative bytes, and a group that is empty or names a device twice."""
    if kind not in COLLECTIVES:
        raise CostError(f"unknown collective {kind!r}; choose one of {', '.join(COLLECTIVES)}.")
    if nbytes < 0:
        raise CostError(f"{kind} of {nbytes} bytes over {devices}: bytes must be at least 0.")
    if not devices or len(set(devices)) != len(devices):
        raise CostError(f"{kind} over devices {devices}: name each device once, and at least one.")
