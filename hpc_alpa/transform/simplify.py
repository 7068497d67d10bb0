"""Removes what nothing reads, and computes equal things once."""

from __future__ import annotations

from dataclasses import replace

from hpc_alpa.ir.graph import Eqn, Graph, Var


def drop_dead(graph: Graph) -> Graph:
    """Keep the equations that an output depends on."""
    live = set(graph.outputs)
    kept: list[Eqn] = []
    for e in reversed(graph.eqns):
        if e.output in live:
            kept.append(e)
            live.update(e.inputs)
    return replace(graph, eqns=tuple(reversed(kept)))


def merge_equal(graph: Graph) -> Graph:
    """Equations with the same operator, operands, parameters and phase become one.

    Equations of different phases stay apart: a forward value that backward needs again is
    recomputed there on purpose, or not at all.
    """
    replaced: dict[Var, Var] = {}
    seen: dict[object, Var] = {}
    kept: list[Eqn] = []
    for e in graph.eqns:
        inputs = tuple(replaced.get(v, v) for v in e.inputs)
        key = (e.op.name, inputs, e.params, e.output.type, e.phase)
        if key in seen:
            replaced[e.output] = seen[key]
            continue
        seen[key] = e.output
        kept.append(replace(e, inputs=inputs))
    outputs = tuple(replaced.get(v, v) for v in graph.outputs)
    return replace(graph, eqns=tuple(kept), outputs=outputs)


def simplify(graph: Graph) -> Graph:
    """Merge equal equations, then drop dead ones."""
    return drop_dead(merge_equal(graph))
