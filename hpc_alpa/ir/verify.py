"""The checker of graphs: runs between passes in tests, and on request in production."""

from __future__ import annotations

from hpc_alpa.errors import GraphError
from hpc_alpa.ir.graph import Graph, Var


def verify(graph: Graph) -> Graph:
    """Check single assignment, order, and every equation's type; returns the graph.

    Raises:
        GraphError: with the equation's number and text.
    """
    made: dict[int, Var] = {}
    for v in graph.inputs:
        if v.id in made:
            raise GraphError(f"input {v} is listed twice")
        made[v.id] = v
    for k, e in enumerate(graph.eqns):
        where = f"equation {k}: {e}"
        for v in e.inputs:
            if made.get(v.id) != v:
                raise GraphError(f"{v} ({v.type}) is used before it is made, in {where}")
        if e.output.id in made:
            raise GraphError(f"{e.output} is assigned twice, in {where}")
        try:
            found = e.op.output_type(e.input_types, e.params_dict, e.output.type)
        except GraphError as error:
            raise GraphError(f"{error}, in {where}") from None
        if found != e.output.type:
            raise GraphError(f"the output is {found}, not {e.output.type}, in {where}")
        made[e.output.id] = e.output
    for v in graph.outputs:
        if made.get(v.id) != v:
            raise GraphError(f"output {v} ({v.type}) is not made by the graph")
    return graph
