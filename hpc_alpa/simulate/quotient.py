"""A plan's programs in modelled time, with one rank for all that do the same (`classes`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hpc_alpa.cost import Cost
from hpc_alpa.lower.check import check
from hpc_alpa.lower.lower import Lowering
from hpc_alpa.simulate import clocks
from hpc_alpa.simulate.classes import Classes, classes
from hpc_alpa.simulate.clocks import Clock
from hpc_alpa.simulate.cores import shared_cores
from hpc_alpa.simulate.engine import simulate
from hpc_alpa.simulate.memory import peaks
from hpc_alpa.simulate.recorder import Recorder
from hpc_alpa.simulate.simulation import Simulation
from hpc_alpa.simulate.steps import Prices
from hpc_alpa.simulate.timeline import Timeline


def simulate_plan(
    lowering: Lowering,
    cost: Cost,
    *,
    cores: Sequence[int | None] | None = None,
    launch_overhead: float = 0.0,
    timeline: bool = True,
) -> Simulation:
    """`simulate` of all of a lowering's programs: the same numbers, from few of them.

    Where ranks share cores, all are run.

    Raises:
        ProgramError, CostError, ClusterError: as `simulate`.
    """
    prices = Prices(cost, launch_overhead)
    if shared_cores(lowering.ranks, cost.cluster, cores):
        return simulate(
            lowering.programs(),
            cost,
            cores=cores,
            launch_overhead=launch_overhead,
            timeline=timeline,
        )
    found = classes(lowering, prices)
    thin = {there[0]: lowering.thin(there[0], found.alike) for there in found.members}
    programs = {r: program for r, (program, _) in thin.items()}
    recorder = Recorder() if timeline else None
    made = clocks.run(programs, found, prices, recorder)
    if not all(c.ended for c in made.values()):
        check(lowering.programs())
        raise AssertionError("the checker passed programs that the simulator cannot finish")
    ends = _ends(lowering, found, made, prices, recorder)
    bytes_of = dict(
        zip(programs, peaks(list(programs.values()), [c for _, c in thin.values()]), strict=True)
    )
    leaders = [found.members[found.of[r]][0] for r in lowering.ranks]
    return Simulation(
        Timeline(recorder.finish() if recorder else (), "predicted"),
        max((c.time for c in ends), default=0.0),
        tuple(bytes_of[leader] for leader in leaders),
        tuple(c.busy for c in ends),
        tuple(c.time - c.busy for c in ends),
        tuple(c.waited for c in ends),
        found.members,
    )


def _ends(
    lowering: Lowering,
    found: Classes,
    made: dict[int, Clock],
    prices: Prices,
    recorder: Recorder | None,
) -> list[Clock]:
    """The clock of every rank after the broadcasts that bring 0-d results to all.

    One rank of a stage is their root, so here each rank has a clock of its own.
    """
    ends = {r: replace(made[found.members[found.of[r]][0]]) for r in lowering.ranks}
    for group, nbytes in lowering.shared:
        seconds = prices.of(prices.cost.collective, "broadcast", nbytes, group)
        start = max(ends[r].time for r in group)
        for r in group:
            clock = ends[r]
            if start > clock.time:
                clock.waited += start - clock.time
            if recorder is not None and r in made:
                if start > clock.time:
                    recorder.note(r, "wait", 0, "apply", clock.time, start)
                recorder.note(r, "broadcast", nbytes, "apply", start, start + seconds)
            clock.time = start + seconds
    return [ends[r] for r in lowering.ranks]
