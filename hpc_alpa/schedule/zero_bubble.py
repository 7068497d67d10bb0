"""Schedules that split the backward pass, and fill with weight gradients what was a bubble.

Only the input half B is waited for by the stage before; the weight half W may run at any time after
it.
"""

from __future__ import annotations

from itertools import count

from hpc_alpa.schedule.action import Action, Pass, Schedule
from hpc_alpa.schedule.flush import alternating


def zb_h1(num_stages: int, num_microbatches: int) -> Schedule:
    """ZB-H1: 1F1B whose stage k runs W k microbatches after B.

    Qi et al. 2023, "Zero bubble pipeline parallelism", arXiv 2401.10241, Sec. 2.3 and Table 2.
    As many microbatches await their B as in 1F1B, and as many their W as in its first stage. Where
    F, B and W take one tick each, S - 1 ticks of every submesh are a bubble; in 1F1B 3 (S - 1).
    S=2, B=3, a column per tick:

        0F0 0F1  .  0B0 0W0 0F2 0B1 0W1 0B2 0W2
         .  1F0 1B0 1F1 1B1 1W0 1F2 1B2 1W1 1W2
    """

    def row(k: int) -> list[Action]:
        made: list[Action] = []
        for action in alternating(k, num_stages - 1 - k, num_microbatches):
            made.append(action)
            if action.kind == Pass.BACKWARD and action.microbatch >= k:
                made.append(Action(k, Pass.WEIGHT, action.microbatch - k))
        late = range(max(0, num_microbatches - k), num_microbatches)
        return made + [Action(k, Pass.WEIGHT, m) for m in late]

    return Schedule(map(row, range(num_stages)))


def zb_v(num_submeshes: int, num_microbatches: int) -> Schedule:
    """ZB-V: stages k and 2P-1-k on submesh k.

    Qi et al. 2024, "Pipeline parallelism with controllable memory", arXiv 2405.15362. Stages come
    back to the submesh where they began, so that every submesh holds as much as any other: 2P
    microbatches of stages of half the size, what the first stage of 1F1B holds. Where F, B and W
    take one tick each, P - 1 ticks of every submesh are a bubble, if B is at least 2P - 1; with
    fewer the order is that of 2P - 1, less what does not exist.
    P=2, B=3, a column per tick:

        0F0 0F1 0F2 3F0 3B0 3W0 3F1 3B1 3W1 0B0 0W0 3F2 3B2 3W2 0B1 0W1 0B2 0W2  .
         .  1F0 2F0 1F1 2F1 2B0 2W0 1F2 1B0 1W0 2F2 2B1 2W1 1B1 2B2 1B2 1W1 2W2 1W2
    """
    rows = (
        _v_row(k, num_submeshes, max(num_microbatches, 2 * num_submeshes - 1))
        for k in range(num_submeshes)
    )
    return Schedule(rows).only(lambda a: a.microbatch < num_microbatches)


def _v_row(k: int, num_submeshes: int, num_microbatches: int) -> list[Action]:
    """Submesh k's row for at least 2P - 1 microbatches: fill, steady, drain."""
    down, up = k, 2 * num_submeshes - 1 - k
    to_turn = num_submeshes - k  # submeshes from this one to the turn of the V
    late = num_microbatches - num_submeshes  # microbatches that begin on `up` in the steady part
    new = num_microbatches - num_submeshes - to_turn + 1  # and on `down`
    steps = [(down, "F")] * (2 * to_turn - 1)
    steps += [(up, "F"), (down, "F")] * k
    steps += [(up, "FBW")] * to_turn
    for m in range(late):
        steps += [(down, "F")] * (m < new) + [(down, "BW"), (up, "FBW")]
    steps += [(down, "B"), (up, "B")] * k
    steps += [(down, "BW")] * to_turn
    steps += [(up, "W")] * k + [(down, "W")] * k
    number = {(stage, kind): count() for stage in (down, up) for kind in Pass}
    return [
        Action(stage, Pass(letter), next(number[stage, Pass(letter)]))
        for stage, letters in steps
        for letter in letters
    ]
