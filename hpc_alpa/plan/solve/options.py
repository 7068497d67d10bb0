"""When a solver stops, and where its time went."""

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """When to stop: a proven gap, relative or absolute (seconds of objective), or wall time."""

    relative_gap: float = 1e-6
    absolute_gap: float = 0.0
    seconds: float = 60.0


class Clock:
    """Seconds that are left, and seconds per phase: its own, or also those of another clock."""

    def __init__(self, seconds: float, phases: dict[str, float] | None = None) -> None:
        self._begin = self._lap = time.perf_counter()
        self._seconds = seconds
        self.phases: dict[str, float] = {} if phases is None else phases

    @property
    def left(self) -> float:
        return max(0.0, self._seconds - (time.perf_counter() - self._begin))

    def lap(self, phase: str) -> None:
        """Charge the time since the last lap to `phase`."""
        now = time.perf_counter()
        self.phases[phase] = self.phases.get(phase, 0.0) + now - self._lap
        self._lap = now
