"""Layers that are equal make equal choices: what the user's layer markers say once.

A model of 24 equal layers is as large a choice program as one layer, and plans of real models
repeat their layers' specs anyway. Only marked layers (`hpc_alpa.layer`) are compared; a model whose
best plan alternates between layers (column- and row-split products) marks them in pairs, or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hpc_alpa.ir.graph import Eqn, Graph, Var
from hpc_alpa.plan.solve.problem import Value

Pair = tuple[Var, Var]  # a value, and the one of an earlier layer that plays its part


def alike(graph: Graph) -> Iterator[Pair]:
    """Values of marked layers, with those of the first equal layer; layers' inputs too."""
    layers: dict[int, list[Eqn]] = {}
    for e in graph.eqns:
        if e.layer is not None:
            layers.setdefault(e.layer, []).append(e)
    first: dict[object, tuple[Var, ...]] = {}
    for _, eqns in sorted(layers.items()):
        form, values = _form(eqns)
        if form in first:
            yield from ((v, w) for v, w in zip(values, first[form], strict=True) if v != w)
        else:
            first[form] = values


def same_holds(
    values: Sequence[Value], forms: Sequence[object], leader: Sequence[int]
) -> tuple[int, ...]:
    """Per value, the first that is made and read alike by tied nodes: they hold the same copies.

    Args:
        forms: of the values; equal values share one object (`plan.values`).
        leader: of each node.
    """
    first: dict[object, int] = {}
    found = []
    for k, (value, form) in enumerate(zip(values, forms, strict=True)):
        readers = tuple((leader[r.node], r.window) for r in value.readers)
        found.append(first.setdefault((id(form), leader[value.producer], readers), k))
    return tuple(found)


def _form(eqns: Sequence[Eqn]) -> tuple[object, tuple[Var, ...]]:
    """What a layer computes, whatever its values are called; and its values in order."""
    number: dict[Var, int] = {}
    lines = []
    for e in eqns:
        operands = tuple((number.setdefault(v, len(number)), v.type) for v in e.inputs)
        made = number.setdefault(e.output, len(number)), e.output.type
        params = tuple((k, x) for k, x in e.params if k != "key")  # of random values
        lines.append((e.op.name, e.phase, params, operands, made))
    return tuple(lines), tuple(number)
