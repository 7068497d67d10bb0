"""Gradients of a weight that is read in two places of the model, as tied embeddings are.

Their sum is the weight's gradient, and its places may become two stages:

    stage 0   accumulate(rows of the embedding)  \\
                                                  add, once a step
    stage 1   accumulate(gradient of the head)   /

Added where the chain rule adds them, in the loop, one would cross to the other stage in every
microbatch. So each is summed over the microbatches first. Where stages will start is not known
when a step is split over time; on one stage it costs one accumulator more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hpc_alpa.ir.graph import Eqn, Graph, Var
from hpc_alpa.step.phase import BACKWARD, FORWARD
from hpc_alpa.step.slots import Slots


def sums_apart(graph: Graph, slots: Slots) -> set[Var]:
    """Sums over the slots that are to be made of their parts' sums."""
    segments = _segments(graph)

    def summed(v: Var) -> bool:
        spec = slots.spec[v]
        return v in slots.role and bool(spec.partial) and spec.kind == "+"

    return {
        e.output
        for e in graph.eqns
        if _adds_parts(graph, segments, e) and all(map(summed, (*e.inputs, e.output)))
    }


def cast_apart(graph: Graph) -> Graph:
    """The graph whose parts are cast before they are added: the gradient of a weight's cast."""
    segments = _segments(graph)
    fresh = max((v.id for v in graph.values()), default=0) + 1
    eqns: list[Eqn] = []
    for e in graph.eqns:
        back = e.op.name == "cast" and e.phase == BACKWARD
        add = graph.producer.get(e.inputs[0]) if back else None
        if add is None or not _adds_parts(graph, segments, add):
            eqns.append(e)
            continue
        parts = []
        for v in add.inputs:
            parts.append(Var(fresh, e.output.type))
            origin = graph.producer[v].origin
            eqns.append(replace(e, inputs=(v,), output=parts[-1], origin=origin))
            fresh += 1
        eqns.append(replace(add, inputs=tuple(parts), output=e.output))
    return replace(graph, eqns=tuple(eqns))


def _segments(graph: Graph) -> dict[int, int]:
    """For each forward value's number: how many times the marked layer has changed before it."""
    found: dict[int, int] = {}
    segment, layer = 0, None
    for e in graph.eqns:
        if e.phase == FORWARD:
            segment += e.layer != layer
            layer = e.layer
            found[e.output.id] = segment
    return found


def _adds_parts(graph: Graph, segments: Mapping[int, int], e: Eqn) -> bool:
    """Whether an equation adds gradients that come from two places of the forward pass."""
    if e.op.name != "add" or e.phase != BACKWARD:
        return False
    made = [graph.producer[v] for v in e.inputs if v in graph.producer]
    where = {segments.get(m.origin) for m in made if m.origin is not None}
    return len(made) == 2 and len(where) == 2 and None not in where
