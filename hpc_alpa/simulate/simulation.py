"""What a simulated step was like."""

from __future__ import annotations

from dataclasses import dataclass

from hpc_alpa.simulate.timeline import Timeline


@dataclass(frozen=True)
class Simulation:
    """A predicted step; tuples but `classes` have one entry per rank, in the programs' order.

    Attributes:
        timeline: what each rank does when; of ranks that do the same, and of pieces of a message
            that move together, the first stands for all.
        step_seconds: until the last rank has ended.
        peak_bytes: most bytes that the rank holds at once.
        compute_seconds: in which the rank computes, at the pace that its share of the cores gives.
        exposed_communication: seconds in which it waits or communicates, and does not compute.
        waiting_seconds: those of them in which nothing moves for it.
        classes: ranks that do the same at the same times, each class in the programs' order.
    """

    timeline: Timeline
    step_seconds: float
    peak_bytes: tuple[int, ...]
    compute_seconds: tuple[float, ...]
    exposed_communication: tuple[float, ...]
    waiting_seconds: tuple[float, ...]
    classes: tuple[tuple[int, ...], ...]

    @property
    def bubble(self) -> float:
        """Share of all ranks' time in which they wait and nothing moves, or have ended."""
        step = self.step_seconds
        idle = [
            step - busy - exposed + waiting
            for busy, exposed, waiting in zip(
                self.compute_seconds,
                self.exposed_communication,
                self.waiting_seconds,
                strict=True,
            )
        ]
        return sum(idle) / (step * len(idle) or 1.0)

    @property
    def communication(self) -> float:
        """Share of all ranks' time in which they communicate and do not compute."""
        moving = [
            exposed - waiting
            for exposed, waiting in zip(
                self.exposed_communication, self.waiting_seconds, strict=True
            )
        ]
        return sum(moving) / (self.step_seconds * len(moving) or 1.0)
