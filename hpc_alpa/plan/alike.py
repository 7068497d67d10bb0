"""Layers that are equal make equal choices: what the user's layer markers say once.

A model of 24 equal layers is as large a choice program as one layer, and plans of real models
repeat their layers' specs anyway. Only marked layers (`hpc_alpa.layer`) are compared; a model whose
best plan alternates between layers (column- and row-split products) marks them in pairs, or not.
Where memory is short, half of the layers may want another plan than the rest: then equal layers are
alike in blocks only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from hpc_alpa.ir.graph import Eqn, Graph, Var
from hpc_alpa.plan.solve.problem import Value

Pair = tuple[Var, Var]  # a value, and the one of an earlier layer that plays its part


def alike(graph: Graph, blocks: int = 1) -> Iterator[Pair]:
    """Values of marked layers, with those of the first equal layer; layers' inputs too.

    Args:
        blocks: of consecutive equal layers, which are alike within each.
    """
    for found in _equal_layers(graph):
        size = -(-len(found) // blocks)
        for k, values in enumerate(found):
            first = found[k - k % size]
            yield from ((v, w) for v, w in zip(values, first, strict=True) if v != w)


def block_of(graph: Graph, blocks: int) -> dict[Var, int]:
    """The block of each value of equal layers; of what a layer reads, where it was made."""
    block: dict[Var, int] = {}
    for found in _equal_layers(graph):
        size = -(-len(found) // blocks)
        for k, values in enumerate(found):
            for v in values:
                block.setdefault(v, k // size)
    return block


def _equal_layers(graph: Graph) -> Iterable[list[tuple[Var, ...]]]:
    """Groups of equal layers, by their values in order."""
    layers: dict[int, list[Eqn]] = {}
    for e in graph.eqns:
        if e.layer is not None:
            layers.setdefault(e.layer, []).append(e)
    equal: dict[object, list[tuple[Var, ...]]] = {}
    for _, eqns in sorted(layers.items()):
        form, values = _form(eqns)
        equal.setdefault(form, []).append(values)
    return equal.values()


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
