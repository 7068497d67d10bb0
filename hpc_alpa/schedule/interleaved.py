"""Schedules of several stages on each submesh: stage s on submesh s mod P of P submeshes.

A group of microbatches goes through the first stages of all submeshes, then through the second
ones. Groups have at least P microbatches, so that their first is back at the first submesh when
their last has left it; where P does not divide B some have one more.
"""

from __future__ import annotations

from collections.abc import Iterator

from hpc_alpa.schedule.action import Action, Pass, Schedule
from hpc_alpa.schedule.flush import one_forward_one_backward


def interleaved_1f1b(num_submeshes: int, num_microbatches: int, per_submesh: int) -> Schedule:
    """1F1B whose bubble is divided by the stages of a submesh (Narayanan 2021, SC, Sec. 2.2).

    P=2, B=2, two stages each, a column per tick:

        0F0 0F1 2F0 2F1  .  2B0  .  2B1 0B0 0B1
         .  1F0 1F1 3F0 3B0 3F1 3B1 1B0 1B1  .
    """
    if per_submesh == 1:
        return one_forward_one_backward(num_submeshes, num_microbatches)
    return Schedule(
        _row(k, num_submeshes, num_microbatches, per_submesh) for k in range(num_submeshes)
    )


def inference(num_submeshes: int, num_microbatches: int, per_submesh: int) -> Schedule:
    """Forwards alone, as an evaluation runs them.

    P=2, B=3, one stage each, a column per tick:

        0F0 0F1 0F2  .
         .  1F0 1F1 1F2
    """
    return Schedule(
        _order(Pass.FORWARD, k, num_submeshes, num_microbatches, per_submesh)
        for k in range(num_submeshes)
    )


def _row(k: int, num_submeshes: int, num_microbatches: int, per_submesh: int) -> list[Action]:
    """Forwards until the first backward can come, then one of each in turn, then backwards."""
    forward, backward = (
        list(_order(p, k, num_submeshes, num_microbatches, per_submesh))
        for p in (Pass.FORWARD, Pass.BACKWARD)
    )
    first = max(map(len, _groups(num_submeshes, num_microbatches)))
    warmup = min((per_submesh - 1) * first + 2 * (num_submeshes - 1 - k), len(forward))
    steady = zip(forward[warmup:], backward, strict=False)
    drain = backward[len(forward) - warmup :]
    return forward[:warmup] + [action for pair in steady for action in pair] + drain


def _order(
    kind: Pass, k: int, num_submeshes: int, num_microbatches: int, per_submesh: int
) -> Iterator[Action]:
    stages = [k + num_submeshes * turn for turn in range(per_submesh)]
    for group in _groups(num_submeshes, num_microbatches):
        for stage in stages if kind == Pass.FORWARD else reversed(stages):
            for m in group:
                yield Action(stage, kind, m)


def _groups(num_submeshes: int, num_microbatches: int) -> list[range]:
    """Microbatches in as many groups of at least P as there are, the longer ones first."""
    number = max(1, num_microbatches // num_submeshes)
    size, more = divmod(num_microbatches, number)
    starts = [g * size + min(g, more) for g in range(number + 1)]
    return [range(a, b) for a, b in zip(starts, starts[1:], strict=False)]
