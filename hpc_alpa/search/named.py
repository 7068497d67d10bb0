"""What a person means by the name of a value: an input's path, or a line of the model."""

from __future__ import annotations

from collections.abc import Iterator

from hpc_alpa.errors import PlanError
from hpc_alpa.ir.graph import Graph
from hpc_alpa.plan.intra_op import IntraOp
from hpc_alpa.step import FINISHED, FORWARD, PREPARE

BORDER = ("enter", "slot", *FINISHED)  # nobody has written them


def nodes_named(program: IntraOp, name: str) -> tuple[int, ...]:
    """The nodes of a stage's choice program that a name means; none where it has none.

    "params/w1"      an input, by its path or the end of it
    "gpt.py:88"      what line 88 hands on: values that no other equation of the line reads
    "3/gpt.py:88"    of the layer that is marked as number 3 (`hpc_alpa.layer`) only

    A line is looked for in the forward pass first, then in all of the step.
    """
    graph = program.stage.graph
    inputs = [k for k, v in enumerate(graph.inputs) if _is(graph.name_of.get(v.id, ""), name)]
    if inputs:
        return tuple(inputs)
    first = tuple(_lines(graph, name, (PREPARE, FORWARD)))
    return first or tuple(_lines(graph, name, None))


def require_named(programs: tuple[IntraOp, ...], name: str) -> tuple[tuple[int, int], ...]:
    """(stage, node) of all that a name means in a plan's stages.

    Raises:
        PlanError: nothing has the name.
    """
    found = [(s, k) for s, program in enumerate(programs) for k in nodes_named(program, name)]
    if not found:
        graph = programs[0].stage.graph
        inputs = ", ".join(graph.name_of.get(v.id, str(v)) for v in graph.inputs[:6])
        line = next((e.source for e in graph.eqns if e.source), "model.py:1")
        raise PlanError(
            f"{name!r} names no input of the step and no line of the model; inputs are {inputs}, "
            f"...; a line is named as {line}"
        )
    return tuple(found)


def _lines(graph: Graph, name: str, phases: tuple[str, ...] | None) -> Iterator[int]:
    eqns = [
        (k, e)
        for k, e in enumerate(graph.eqns)
        if e.source
        and e.op.name not in BORDER
        and (phases is None or e.phase in phases)
        and _is(e.source if e.layer is None else f"{e.layer}/{e.source}", name)
    ]
    inside = {(v, e.layer) for _, e in eqns for v in e.inputs}
    for k, e in eqns:
        if e.output.type.shape and (e.output, e.layer) not in inside:
            yield len(graph.inputs) + k


def _is(path: str, name: str) -> bool:
    return path == name or path.endswith("/" + name)
