"""[StepGraph] -> [Layers]: where it may be cut, balanced in seconds, few bytes crossing.

Alpa, Sec. 5.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpc_alpa.cost import Cost
from hpc_alpa.errors import CostError, InfeasibleError, PlanError
from hpc_alpa.ir.graph import Eqn
from hpc_alpa.plan.pricing import work_of
from hpc_alpa.plan.solve.layers import cluster, smallest_tolerance
from hpc_alpa.step import BACKWARD, StepGraph, anchors

HEAVY = ("attention", "conv", "dot_general")  # alphabetical
MOST_LAYERS = 16  # where nothing is marked
OWN_LAYER = 0.3  # of the mean marked layer: what unmarked equations need to be a layer
TOLERANCE = 0.3  # no layer has more than 1.3 times the mean seconds (Alpa's delta)


@dataclass(frozen=True)
class Layers:
    """Layers of a step.

    Attributes:
        starts: position among `anchors(step)` at which each layer starts, 0 first.
        seconds: compute of one microbatch of each layer on one device, forward and backward.
        nbytes: bytes of forward values that cross into each layer but the first.
    """

    starts: tuple[int, ...]
    seconds: tuple[float, ...]
    nbytes: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.starts)


def find_layers(step: StepGraph, cost: Cost, num_layers: int | None) -> Layers:
    """Cluster the forward equations into layers.

    Args:
        num_layers: None takes the layers that the user has marked (`hpc_alpa.layer`), which are
            mostly equal, and so planned once; a step without marks is cut into as
            many as it has products and convolutions, up to `MOST_LAYERS`.

    Raises:
        PlanError: more layers than equations to cut between.
    """
    chain = anchors(step)
    seconds = seconds_alone(step, cost)
    crossing = _crossing(step)
    if num_layers is None:
        marked = _marked(chain, seconds)
        if len(marked) > 1:
            return _layers(marked, seconds, crossing)
    heavy = sum(e.op.name in HEAVY for e in chain)
    wanted = num_layers or max(1, min(MOST_LAYERS, heavy, len(chain)))
    if wanted > len(chain):
        raise PlanError(
            f"{wanted} layers cannot be made of {len(chain)} forward equations: ask for fewer "
            "stages"
        )
    try:
        found = cluster(seconds, crossing, wanted, TOLERANCE)
    except InfeasibleError:
        found = cluster(seconds, crossing, wanted, smallest_tolerance(seconds, wanted) + 0.05)
    return _layers([a for a, _ in found.layers], seconds, crossing)


def _layers(starts: Sequence[int], seconds: Sequence[float], crossing: Sequence[float]) -> Layers:
    ends = [*starts[1:], len(seconds)]
    return Layers(
        tuple(starts),
        tuple(sum(seconds[a:b]) for a, b in zip(starts, ends, strict=True)),
        tuple(crossing[a - 1] for a in starts[1:]),
    )


def _marked(chain: Sequence[Eqn], seconds: Sequence[float]) -> list[int]:
    """Where the marked layers start; what stands before, between and behind them joins the layer
    before it, or the first one, unless it is long enough to be a layer of its own."""
    starts = [0]
    for k in range(1, len(chain)):
        if chain[k].layer != chain[k - 1].layer:
            starts.append(k)
    ends = [*starts[1:], len(chain)]
    totals = [sum(seconds[a:b]) for a, b in zip(starts, ends, strict=True)]
    inside = [t for a, t in zip(starts, totals, strict=True) if chain[a].layer is not None]
    if not inside:
        return [0]
    enough = OWN_LAYER * sum(inside) / len(inside)
    kept = [0]
    first_is_short = chain[0].layer is None and totals[0] < enough
    for k in range(1, len(starts)):
        joins_first = first_is_short and k == 1
        if not joins_first and (chain[starts[k]].layer is not None or totals[k] >= enough):
            kept.append(starts[k])
    return kept


def seconds_alone(step: StepGraph, cost: Cost) -> list[float]:
    """Seconds of each anchor with the backward equations that come from it, unsplit."""
    chain = anchors(step)
    at = {e.origin: k for k, e in enumerate(chain) if e.origin is not None}
    total = [_alone(e, cost) for e in chain]
    for e in step.graph.eqns:
        if e.phase == BACKWARD and e.origin in at:
            total[at[e.origin]] += _alone(e, cost)
    return total


def _alone(e: Eqn, cost: Cost) -> float:
    try:
        return cost.compute(work_of(e, e.input_types, e.output.type))
    except CostError as error:
        where = e.source or "an unknown line"
        raise CostError(f"{error} (needed for {e.op.name} at {where})") from None


def _crossing(step: StepGraph) -> list[float]:
    """Bytes of forward values made up to each anchor and read by a later one."""
    chain = anchors(step)
    at = {e.output: k for k, e in enumerate(chain)}
    last = dict(at)
    for k, e in enumerate(chain):
        for v in e.inputs:
            if v in at:
                last[v] = max(last[v], k)
    crossing = [0.0] * (len(chain) - 1)
    for v, made in at.items():
        for k in range(made, last[v]):
            crossing[k] += v.type.nbytes
    return crossing
