"""Specs that the user fixes, as restrictions of the search.

{"params/w1": "RS0"}          an input, by its path or the end of it
{"batch/x": {0: 0}}           its dim 0 is split over mesh axis 0, the rest is open
{"gpt.py:88": "RS0R"}         the values that line 88 makes, in the forward pass of one slot
{"3/gpt.py:88": {1: 0}}       of the layer that is marked as number 3 (`hpc_alpa.layer`) only
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hpc_alpa.errors import PlanError, ShardingError
from hpc_alpa.ir.graph import Eqn, Graph, Var
from hpc_alpa.plan.restrictions import Restrictions
from hpc_alpa.sharding import ShardingSpec, Strategy
from hpc_alpa.step import FINISHED, FORWARD, PREPARE

Pin = str | Mapping[int, int]  # a spec, or dim -> mesh axis


def pinned(graph: Graph, pins: Mapping[str, Pin], mesh: tuple[int, ...]) -> Restrictions:
    """What the pins leave to choose from.

    A line stands for the values that it hands on: those that no other equation of the line reads. A
    mesh axis of one device splits nothing, so a pin to it is met by every spec.

    Args:
        graph: of the step over time (`step.StepGraph`).
        pins: name -> spec, or -> {dim: mesh axis}.

    Raises:
        PlanError: nothing has the name.
        ShardingError: the spec does not fit the value.
    """
    inputs: dict[Var, Pin] = {}
    values: dict[Var, Pin] = {}
    lines = dict(_handed_on(graph)) if pins else {}
    for name, pin in pins.items():
        found = [v for v in graph.inputs if _is(graph.name_of.get(v.id, ""), name)]
        made = [v for v, line in lines.items() if _is(line, name)]
        if not found and not made:
            known = ", ".join(graph.name_of.get(v.id, "") for v in graph.inputs[:6])
            line = next(iter(lines.values()), "model.py:1")
            raise PlanError(
                f"pin {name!r} names no input of the step, and no line whose values its forward "
                f"pass reads; inputs are {known}, ...; a line is named as {line}"
            )
        for v in found:
            _fits(v, name, pin, partial=False)
        for v in made:
            _fits(v, name, pin, partial=True)
        inputs |= dict.fromkeys(found, pin)
        values |= dict.fromkeys(made, pin)

    def meets(pin: Pin, spec: ShardingSpec) -> bool:
        if isinstance(pin, str):
            return str(spec) == pin
        return all(
            axis < len(mesh) and (mesh[axis] == 1 or axis in spec.dims[dim])
            for dim, axis in pin.items()
        )

    def strategy(e: Eqn, s: Strategy) -> bool:
        return e.output not in values or meets(values[e.output], s.output)

    def where(v: Var, spec: ShardingSpec) -> bool:
        return v not in inputs or meets(inputs[v], spec)

    return Restrictions(strategy, where) if pins else Restrictions()


def _handed_on(graph: Graph) -> Iterator[tuple[Var, str]]:
    """Values of the forward pass with the lines that hand them on, `gpt.py:88` or `3/gpt.py:88`."""
    border = ("enter", "slot", *FINISHED)
    forward = [
        e
        for e in graph.eqns
        if e.phase in (PREPARE, FORWARD) and e.source and e.op.name not in border
    ]
    inside = {(v, _line(e)) for e in forward for v in e.inputs}
    for e in forward:
        if e.output.type.shape and (e.output, _line(e)) not in inside:
            yield e.output, _line(e)


def _line(e: Eqn) -> str:
    return e.source if e.layer is None else f"{e.layer}/{e.source}"


def _is(path: str, name: str) -> bool:
    return path == name or path.endswith("/" + name)


def _fits(v: Var, name: str, pin: Pin, partial: bool) -> None:
    if isinstance(pin, str):
        spec = ShardingSpec.parse(pin)
        if len(spec.dims) != v.type.ndim or (spec.partial and not partial):
            raise ShardingError(
                f"pin {name!r}: spec {pin} has {len(spec.dims)} dims, the value is {v.type}; "
                "a spec has one letter per dim, and an input is not partial"
            )
    elif any(not 0 <= d < v.type.ndim for d in pin):
        raise ShardingError(f"pin {name!r}: dims {sorted(pin)} do not all exist in {v.type}")
