"""A step of many microbatches in modelled time, from steps of a few.

In the middle of a long step every round of microbatches takes as long as the one before it. So a
step is run with a few microbatches, with a round more, and with two: where both rounds take equally
long on every rank and hold equally many bytes, the rest is rounds of the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from hpc_alpa.cost import Cost
from hpc_alpa.lower.lower import Lowering
from hpc_alpa.simulate.quotient import simulate_plan
from hpc_alpa.simulate.simulation import Simulation
from hpc_alpa.simulate.timeline import Timeline

_SAME = 1e-9  # relative to the step
_WORTH = 2  # times the microbatches of the longest short step


def simulate_many(
    lowering: Callable[[int], Lowering], num_microbatches: int, num_submeshes: int, cost: Cost
) -> Simulation:
    """`simulate_plan` of a step of `num_microbatches`, without a timeline.

    Args:
        lowering: of the first so many microbatches of the step.

    Raises as `simulate_plan`.
    """

    def run(count: int) -> Simulation:
        return simulate_plan(lowering(count), cost, timeline=False)

    rounds = num_submeshes  # microbatches of one
    few = 2 * rounds + 2
    few += (num_microbatches - few) % rounds
    if num_microbatches <= _WORTH * (few + 2 * rounds):
        return run(num_microbatches)
    short = [run(few + k * rounds) for k in range(3)]
    changes = np.diff([_seconds(s) for s in short], axis=0)
    same = np.allclose(changes[0], changes[1], rtol=0.0, atol=_SAME * short[2].step_seconds)
    if not same or len({s.peak_bytes for s in short}) > 1:
        return run(num_microbatches)
    more = (num_microbatches - few - 2 * rounds) / rounds
    step, *ranks = (_seconds(short[2]) + more * changes[1]).tolist()
    busy, exposed, waited = (tuple(part) for part in np.split(np.array(ranks), 3))
    return replace(
        short[2],
        timeline=Timeline((), "predicted"),
        step_seconds=step,
        compute_seconds=tuple(map(float, busy)),
        exposed_communication=tuple(map(float, exposed)),
        waiting_seconds=tuple(map(float, waited)),
    )


def _seconds(found: Simulation) -> np.ndarray:
    return np.array(
        [
            found.step_seconds,
            *found.compute_seconds,
            *found.exposed_communication,
            *found.waiting_seconds,
        ]
    )
