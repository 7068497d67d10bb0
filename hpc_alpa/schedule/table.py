"""Generators of schedules, by name. S stages, B microbatches.

Both take 2 (S + B - 1) ticks when a forward and a backward take one tick each. They differ in
memory: stage k of GPipe holds B microbatches at its peak, stage k of 1F1B min(S - k, B).
"""

from collections.abc import Callable

from hpc_alpa.errors import ScheduleError
from hpc_alpa.schedule.action import Action, Pass, Schedule


def gpipe(num_stages: int, num_microbatches: int) -> Schedule:
    """All forwards, then all backwards (Huang 2019, Sec. 2.3).

    S=2, B=3, a column per tick:

        0F0 0F1 0F2  .   .  0B0 0B1 0B2
         .  1F0 1F1 1F2 1B0 1B1 1B2  .
    """
    _require_positive(num_stages, num_microbatches)
    return Schedule(
        [Action(k, kind, m) for kind in Pass for m in range(num_microbatches)]
        for k in range(num_stages)
    )


def one_forward_one_backward(num_stages: int, num_microbatches: int) -> Schedule:
    """1F1B with a flush at the end of the step (Narayanan 2021, PipeDream-2BW, Sec. 2.2).

    Stage k runs min(S - 1 - k, B) forwards, then alternates, then drains.
    S=2, B=3, a column per tick:

        0F0 0F1  .  0B0 0F2 0B1  .  0B2
         .  1F0 1B0 1F1 1B1 1F2 1B2  .
    """
    _require_positive(num_stages, num_microbatches)

    def stage(k: int) -> list[Action]:
        forward, backward = ([Action(k, kind, m) for m in range(num_microbatches)] for kind in Pass)
        warmup = min(num_stages - 1 - k, num_microbatches)
        steady = zip(forward[warmup:], backward, strict=False)
        drain = backward[num_microbatches - warmup :]
        return forward[:warmup] + [action for pair in steady for action in pair] + drain

    return Schedule(map(stage, range(num_stages)))


def _require_positive(num_stages: int, num_microbatches: int) -> None:
    if num_stages < 1 or num_microbatches < 1:
        raise ScheduleError(
            f"a schedule needs at least one stage and one microbatch, not {num_stages} stages "
            f"and {num_microbatches} microbatches"
        )


SCHEDULES: dict[str, Callable[[int, int], Schedule]] = {  # alphabetical
    "1f1b": one_forward_one_backward,
    "gpipe": gpipe,
}
