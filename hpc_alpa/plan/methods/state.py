"""What of a step's state is a parameter, and which equations update the state."""

from __future__ import annotations

from collections.abc import Iterable

from hpc_alpa.ir.graph import Var
from hpc_alpa.plan.updates import Updates
from hpc_alpa.step import LOOP, StepGraph, split_stages


def state(step: StepGraph) -> tuple[Var, ...]:
    """Inputs with dims that the step renews: parameters and optimizer state."""
    renewed = {step.graph.inputs[k] for k in step.renewed.values()}
    return tuple(v for v in step.graph.inputs if v in renewed and v.type.shape)


def parameters(step: StepGraph) -> tuple[Var, ...]:
    """What of the state the loop reads, or what is computed from it before the loop."""
    needed: set[Var] = set()
    for e in reversed(step.graph.eqns):
        if e.phase in LOOP or e.output in needed:
            needed.update(e.inputs)
    return tuple(v for v in state(step) if v in needed)


def from_parameters(step: StepGraph) -> frozenset[Var]:
    """Values with dims outside the loop that are made of parameters on their way into it."""
    found = set(parameters(step))
    for e in step.graph.eqns:
        if e.phase == "prepare" and e.output.type.shape and found.intersection(e.inputs):
            found.add(e.output)
    return frozenset(found)


def updated(step: StepGraph) -> frozenset[Var]:
    """What the elementwise equations make that update the state."""
    [whole] = split_stages(step, ())
    leader = Updates.of(whole, step.rows).leader
    new = {leader[w] for k in step.renewed if (w := step.graph.outputs[k]) in leader}
    return frozenset(v for v, group in leader.items() if group in new)


def sizes_text(step: StepGraph, values: Iterable[Var]) -> str:
    """Some values with their types, for a message."""
    named = [step.graph.describe(v) for v in values]
    return ", ".join(named[:4]) + (", ..." if len(named) > 4 else "")
