"""The small graph of simple operators that a fused equation stands for."""

from __future__ import annotations

from functools import lru_cache

from hpc_alpa.errors import GraphError
from hpc_alpa.ir.build import Builder
from hpc_alpa.ir.graph import Eqn, Graph
from hpc_alpa.transform.simplify import simplify


@lru_cache(maxsize=4096)
def expanded(e: Eqn) -> Graph:
    """The graph of a fused equation: input k is operand k, the last equation makes the output.

    Values are numbered anew; the equations keep the phase, origin, layer and source of `e`.

    Raises:
        GraphError: the operator is not fused.
    """
    if e.op.expand is None:
        raise GraphError(f"{e.op.name} stands for no graph, in: {e}")
    b = Builder()
    b.phase, b.origin, b.layer, b.source = e.phase, e.origin, e.layer, e.source
    inputs = tuple(b.input(t) for t in e.input_types)
    graph = simplify(b.build((e.op.expand(b, inputs, e),)))
    assert graph.eqns[-1].output == graph.outputs[0], graph
    return graph
