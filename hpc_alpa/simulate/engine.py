"""Discrete-event run of all ranks' programs, in modelled seconds.

    run          lasts what the cost model says of its kernels; a host's busy ranks share its cores
    collective   starts when the last rank of its group comes, lasts `cost.collective`
    message      starts when both of its sides have started, lasts `cost.point_to_point`
    wait         ends when its message does

A rank that waits uses no core. Messages and collectives slow neither each other nor computation.
Where ranks share no cores nothing but messages and collectives ties them together: `clocks`. Else
one queue has the events of all: `sharing`.
"""

from __future__ import annotations

from collections.abc import Sequence

from hpc_alpa.cost import Cost
from hpc_alpa.lower.check import check
from hpc_alpa.lower.messages import match
from hpc_alpa.lower.program import Program
from hpc_alpa.simulate import clocks, sharing
from hpc_alpa.simulate.cores import shared_cores
from hpc_alpa.simulate.memory import peaks
from hpc_alpa.simulate.recorder import Recorder
from hpc_alpa.simulate.simulation import Simulation
from hpc_alpa.simulate.steps import AllRanks, Prices
from hpc_alpa.simulate.timeline import Timeline


def simulate(
    programs: Sequence[Program],
    cost: Cost,
    *,
    cores: Sequence[int | None] | None = None,
    launch_overhead: float = 0.0,
    timeline: bool = True,
) -> Simulation:
    """Run one step in modelled time.

    Args:
        programs: of all ranks; rank r runs on device r of the cost model's cluster.
        cores: that the ranks of each host share, None where each has its own; without it, the
            cluster's.
        launch_overhead: seconds of a rank per kernel, besides what the cost model says of it.
        timeline: whether to keep the events.

    Raises:
        ProgramError: the programs do not fit together.
        CostError: the cost model lacks a number.
        ClusterError: a rank is no device of the cluster.
    """
    by_rank = {p.rank: p for p in programs}
    messages = match(by_rank)
    recorder = Recorder() if timeline else None
    shared = shared_cores(list(by_rank), cost.cluster, cores)
    prices, partners = Prices(cost, launch_overhead), AllRanks(messages)
    if shared:
        made = sharing.run(by_rank, partners, prices, shared, recorder)
    else:
        made = clocks.run(by_rank, partners, prices, recorder)
    if not all(c.ended for c in made.values()):
        check(programs)
        raise AssertionError("the checker passed programs that the simulator cannot finish")
    in_order = [made[p.rank] for p in programs]
    return Simulation(
        Timeline(recorder.finish() if recorder else (), "predicted"),
        max((c.time for c in in_order), default=0.0),
        peaks(programs),
        tuple(c.busy for c in in_order),
        tuple(c.time - c.busy for c in in_order),
        tuple(c.waited for c in in_order),
        tuple((p.rank,) for p in programs),
    )
