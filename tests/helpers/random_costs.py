"""Costs that are thrown as dice: under them a planner chooses what no machine would make it."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

from hpc_alpa.cluster import Cluster
from hpc_alpa.cost import Work
from tests.helpers.equality import cluster


@dataclass(frozen=True)
class Dice:
    """Seconds that depend on everything, and on nothing in order; the same for the same question.

    Attributes:
        spread: of the logarithm of every number; 0 prices all alike.
    """

    seed: int
    spread: float = 1.5
    name: str = "dice"
    in_seconds: bool = True
    cluster: Cluster = field(default_factory=lambda: cluster(8))

    @property
    def digest(self) -> str:
        return f"dice {self.seed} {self.spread}"

    def _thrown(self, seconds: float, *asked: object) -> float:
        deviation = random.Random(f"{self.seed} {asked}").gauss(0, self.spread)
        return seconds * math.exp(deviation)

    def compute(self, work: Work) -> float:
        return self._thrown(1e-6, "compute", work)

    def collective(self, kind: str, nbytes: float, devices: tuple[int, ...]) -> float:
        # Devices of one axis are priced alike: what differs are the axes.
        return self._thrown(1e-6, kind, nbytes, devices[1] - devices[0]) if devices[1:] else 0.0

    def point_to_point(self, nbytes: float, source: int, destination: int) -> float:
        return self._thrown(1e-6, "message", nbytes, destination - source)
