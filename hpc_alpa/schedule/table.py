"""Schedules by name: how each orders the actions, and which stages each puts on a submesh."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hpc_alpa.errors import ScheduleError
from hpc_alpa.schedule.action import Schedule
from hpc_alpa.schedule.flush import eager, gpipe, one_forward_one_backward
from hpc_alpa.schedule.interleaved import inference, interleaved_1f1b
from hpc_alpa.schedule.zero_bubble import zb_h1, zb_v


@dataclass(frozen=True)
class Family:
    """The schedules of one name: call it for one of them.

    Attributes:
        generate: [submeshes, microbatches, stages of a submesh] -> the schedule.
        per_submesh: stages of a submesh where nothing else is asked for.
        allowed: [stages of a submesh, submeshes] -> whether there is such a schedule; `says` names
            what there is.
        trains: whether there are backward actions.
    """

    name: str
    generate: Callable[[int, int, int], Schedule]
    per_submesh: int = 1
    allowed: Callable[[int, int], bool] = lambda per_submesh, num_submeshes: per_submesh == 1
    says: str = "one stage"
    trains: bool = True

    def __call__(
        self, num_submeshes: int, num_microbatches: int, per_submesh: int | None = None
    ) -> Schedule:
        """The schedule of so many microbatches.

        Args:
            per_submesh: stages of each submesh; None takes the family's own number.

        Raises:
            ScheduleError: a number below one, or stages that the family does not put on a submesh.
        """
        per_submesh = self.per_submesh if per_submesh is None else per_submesh
        if num_submeshes < 1 or num_microbatches < 1 or per_submesh < 1:
            raise ScheduleError(
                f"a schedule needs at least one stage and one microbatch, not "
                f"{num_submeshes * per_submesh} stages and {num_microbatches} microbatches"
            )
        if not self.allowed(per_submesh, num_submeshes):
            raise ScheduleError(
                f"schedule {self.name} needs {self.says} on each submesh, not {per_submesh} on "
                f"each of {num_submeshes}"
            )
        return self.generate(num_submeshes, num_microbatches, per_submesh)

    def placement(self, num_submeshes: int, per_submesh: int | None = None) -> tuple[int, ...]:
        """The submesh of each stage. Raises as a call does."""
        return self(num_submeshes, 1, per_submesh).placement

    def on(self, placement: Sequence[int], num_microbatches: int) -> Schedule:
        """The schedule of stages that lie on submeshes in a given way.

        Args:
            placement: the submesh of each stage; submeshes are numbered as stages first meet them.

        Raises:
            ScheduleError: the family puts the stages elsewhere.
        """
        num_submeshes = max(placement, default=-1) + 1
        per_submesh, rest = divmod(len(placement), max(1, num_submeshes))
        if not rest:
            found = self(num_submeshes, num_microbatches, per_submesh)
            if found.placement == tuple(placement):
                return found
        raise ScheduleError(
            f"schedule {self.name} needs {self.says} on each submesh, in its own order: stages "
            f"{list(range(len(placement)))} of the plan lie on submeshes {list(placement)}"
        )


FAMILIES = (  # alphabetical
    Family("1f1b", lambda p, b, v: one_forward_one_backward(p, b)),
    Family("eager_1f1b", lambda p, b, v: eager(p, b)),
    Family("gpipe", lambda p, b, v: gpipe(p, b)),
    Family("inference", inference, 1, lambda v, p: True, "any number of stages", trains=False),
    Family("interleaved_1f1b", interleaved_1f1b, 2, lambda v, p: True, "any number of stages"),
    Family("zb_h1", lambda p, b, v: zb_h1(p, b)),
    Family(
        "zb_v",
        lambda p, b, v: zb_v(p, b) if v == 2 else zb_h1(p, b),
        2,
        lambda v, p: v == 2 or v == p == 1,  # one stage on all devices is no pipeline
        "two stages",
    ),
)
SCHEDULES = {family.name: family for family in FAMILIES}
