"""Memory rows of a stage's choice program: what must be held at three points of a step.

    end of forward    state, activations of the microbatches in flight, accumulators under way
    update begins     state and accumulators
    end               results

Each counts what no order of the instructions can free before, so a plan that fits meets every row;
copies that conversions make, and what a kernel needs while it runs, the simulator counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from hpc_alpa.ir.graph import Eqn, Graph, Var
from hpc_alpa.plan.solve.problem import MemoryRow, Problem
from hpc_alpa.sharding import ShardingSpec, num_tiles
from hpc_alpa.step import APPLY, BACKWARD, FORWARD, PREPARE, StageGraph
from hpc_alpa.step.phase import FINISHED

ORDER = {PREPARE: 0, FORWARD: 1, BACKWARD: 2, APPLY: 3}
END = 4
Held = tuple[int, Var, int]  # a node, the value it makes, how many of it


def memory_rows(
    draft: Problem,
    stage: StageGraph,
    produced: Callable[[int], Sequence[ShardingSpec]],
    mesh: tuple[int, ...],
    num_microbatches: int,
    in_flight: int,
    limit: float,
) -> tuple[MemoryRow, ...]:
    """The rows of one device.

    Args:
        draft: nodes are the stage graph's inputs, equations and outputs, in this order.
        produced: the specs of a node's value under its choices.
        in_flight: microbatches whose activations the stage holds at once.
        limit: bytes of the device.
    """
    points = {
        "at the end of forward": _end_of_forward(stage, num_microbatches, in_flight),
        "when the update begins": _before_update(stage),
        "at the end of a step": _results(stage),
    }
    rows = []
    for name, held in points.items():
        terms, nbytes = [np.zeros(0, np.int64)], [np.zeros(0)]
        for node, v, count in held:
            tiles = [num_tiles(s.split_axes, mesh) for s in produced(node)]
            terms.append(draft.choice_terms(node))
            nbytes.append(count * v.type.nbytes / np.array(tiles, np.float64))
        row = np.concatenate(terms), np.concatenate(nbytes)
        rows.append(MemoryRow(f"memory of a device {name}", limit, *row))
    return tuple(rows)


def last_use(graph: Graph, sent: frozenset[Var] = frozenset()) -> dict[Var, int]:
    """When each value, or a view of it, is last read: a phase's place in `ORDER`, or `END`."""
    last = dict.fromkeys(graph.values(), -1)
    for v in graph.outputs:
        last[v] = -1 if v in sent else END
    for e in reversed(graph.eqns):
        use = ORDER[e.phase]
        if _is_view(e):
            use = max(use, last[e.output])
        for v in e.inputs:
            last[v] = max(last[v], use)
    return last


def _is_view(e: Eqn) -> bool:
    return e.op.view or (e.op.name in FINISHED and e.params_dict.get("slots") == 1)


def _last(stage: StageGraph) -> dict[Var, int]:
    results = {v for _, v in stage.results}
    return last_use(stage.graph, frozenset(t.value for t in stage.sent) - results)


def _end_of_forward(stage: StageGraph, num_microbatches: int, in_flight: int) -> Iterator[Held]:
    graph, last = stage.graph, _last(stage)
    if not any(e.phase == FORWARD for e in graph.eqns):
        return
    received = {t.value for t in stage.received}
    # Where backward passes came before, their sums are under way, and more slots are to be read.
    more = num_microbatches > in_flight
    for node, v in enumerate(graph.inputs):
        if v in received:
            if last[v] >= ORDER[BACKWARD]:
                yield node, v, in_flight
        elif last[v] >= ORDER[FORWARD if more else BACKWARD]:
            yield node, v, 1
    for node, e in enumerate(graph.eqns, len(graph.inputs)):
        if _is_view(e):
            continue
        if e.op.name in FINISHED:
            if e.phase == FORWARD or more:
                yield node, e.output, 1
        elif e.phase == FORWARD and last[e.output] >= ORDER[BACKWARD]:
            yield node, e.output, in_flight


def _before_update(stage: StageGraph) -> Iterator[Held]:
    graph, last = stage.graph, _last(stage)
    received = {t.value for t in stage.received}
    for node, v in enumerate(graph.inputs):
        if last[v] >= ORDER[APPLY] and v not in received:
            yield node, v, 1
    for node, e in enumerate(graph.eqns, len(graph.inputs)):
        if e.op.name in FINISHED and last[e.output] >= ORDER[APPLY]:
            yield node, e.output, 1


def _results(stage: StageGraph) -> Iterator[Held]:
    graph = stage.graph
    first = len(graph.inputs) + len(graph.eqns)
    seen: set[Var] = set()
    for k, (_, v) in enumerate(stage.results):
        if v not in seen:
            seen.add(v)
            yield first + k, v, 1
