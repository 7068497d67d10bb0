"""Schedules of one stage on each submesh. S stages, B microbatches.

GPipe, 1F1B and eager 1F1B take 2 (S + B - 1) ticks when a forward and a backward take one tick
each. They differ in memory: stage k of GPipe holds B microbatches at its peak, of 1F1B S - k, of
eager 1F1B 2 (S - k) - 1, but none holds more than B.
"""

from __future__ import annotations

from hpc_alpa.schedule.action import Action, Pass, Schedule

TRAINING = (Pass.FORWARD, Pass.BACKWARD)


def gpipe(num_stages: int, num_microbatches: int) -> Schedule:
    """All forwards, then all backwards (Huang 2019, Sec. 2.3).

    S=2, B=3, a column per tick:

        0F0 0F1 0F2  .   .  0B0 0B1 0B2
         .  1F0 1F1 1F2 1B0 1B1 1B2  .
    """
    return Schedule(
        [Action(k, kind, m) for kind in TRAINING for m in range(num_microbatches)]
        for k in range(num_stages)
    )


def one_forward_one_backward(num_stages: int, num_microbatches: int) -> Schedule:
    """1F1B with a flush at the end of the step (Narayanan 2021, PipeDream-2BW, Sec. 2.2).

    Stage k runs min(S - 1 - k, B) forwards, then alternates, then drains.
    S=2, B=3, a column per tick:

        0F0 0F1  .  0B0 0F2 0B1  .  0B2
         .  1F0 1B0 1F1 1B1 1F2 1B2  .
    """
    return Schedule(alternating(k, num_stages - 1 - k, num_microbatches) for k in range(num_stages))


def eager(num_stages: int, num_microbatches: int) -> Schedule:
    """1F1B with twice the forwards before the first backward, so that messages have time.

    Stage k runs min(2 (S - 1 - k), B) forwards first: what it sends is needed a tick later than
    in 1F1B (Zhuang et al. 2023, "On optimizing the communication of model parallelism", Sec. 4).
    S=2, B=3, a column per tick:

        0F0 0F1 0F2 0B0  .  0B1  .  0B2
         .  1F0 1B0 1F1 1B1 1F2 1B2  .
    """
    return Schedule(
        alternating(k, 2 * (num_stages - 1 - k), num_microbatches) for k in range(num_stages)
    )


def alternating(stage: int, warmup: int, num_microbatches: int) -> list[Action]:
    """Some forwards, then one forward and one backward in turn, then backwards."""
    forward, backward = ([Action(stage, p, m) for m in range(num_microbatches)] for p in TRAINING)
    warmup = min(warmup, num_microbatches)
    steady = zip(forward[warmup:], backward, strict=False)
    drain = backward[num_microbatches - warmup :]
    return forward[:warmup] + [action for pair in steady for action in pair] + drain
