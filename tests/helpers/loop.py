"""The loop over microbatches, interpreted: the oracle of `split_batch` and `split_stages`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from hpc_alpa.ir import Eqn, Graph, Var
from hpc_alpa.ir.evaluate import whole_call
from hpc_alpa.ir.op import Call
from hpc_alpa.step import APPLY, BACKWARD, FORWARD, PREPARE, StepGraph

Values = dict[Var, np.ndarray]
FINISH = {"accumulate": np.add, "accumulate_max": np.maximum}


def run_loop(step: StepGraph, inputs: Sequence[Any]) -> tuple[np.ndarray, ...]:
    """Outputs of a step: prepare, forward of every slot, backward of every slot, apply."""
    loop = Loop(step, step.graph)
    for v, x in zip(step.graph.inputs, inputs, strict=True):
        loop.once[v] = np.asarray(x)
    loop.phase(PREPARE)
    for phase in (FORWARD, BACKWARD):
        for m in range(step.num_microbatches):
            loop.phase(phase, m)
    loop.phase(APPLY)
    return tuple(loop.once[v] for v in step.graph.outputs)


class Loop:
    """What one graph of a step holds: `once` a step, and `slots` once a microbatch."""

    def __init__(self, step: StepGraph, graph: Graph) -> None:
        self.step, self.graph = step, graph
        self.once: Values = {}
        self.slots: list[Values] = [{} for _ in range(step.num_microbatches)]

    def phase(self, phase: str, m: int | None = None) -> None:
        self.run((e for e in self.graph.eqns if e.phase == phase), m)

    def run(self, eqns: Iterable[Eqn], m: int | None) -> None:
        for e in eqns:
            operands = [self.value(v, m) for v in e.inputs]
            if m is None:
                self.once[e.output] = e.op.reference(whole_call(e), *operands)
            elif e.op.name in FINISH:
                total = self.once.get(e.output)
                reduce = FINISH[e.op.name]
                self.once[e.output] = operands[0] if total is None else reduce(total, operands[0])
            elif e.op.name == "stack":
                place = self.once.setdefault(
                    e.output, np.full(e.output.type.shape, 0, operands[0].dtype)
                )
                place[rows(e.params_dict, e.inputs[0], m)] = operands[0]
            elif e.op.name == "slot":
                self.slots[m][e.output] = operands[0][rows(e.params_dict, e.output, m)]
            else:
                self.slots[m][e.output] = e.op.reference(call_in_slot(e, m), *operands)

    def value(self, v: Var, m: int | None) -> np.ndarray:
        """A value as a slot sees it; outside the loop the slots' values are out of reach."""
        if m is not None and v in self.slots[m]:
            return self.slots[m][v]
        return self.once[v]


def rows(params: dict[str, Any], part: Var, m: int) -> tuple[slice, ...]:
    dim = params["dim"]
    extent = part.type.shape[dim]
    return (slice(None),) * dim + (slice(m * extent, (m + 1) * extent),)


def call_in_slot(e: Eqn, m: int) -> Call:
    """The call of an equation of slot m: where its tile lies in the whole batch."""
    whole = whole_call(e)
    params = dict(whole.params)
    if "slot_dim" not in params:
        return whole
    dim, slots = params.pop("slot_dim"), params.pop("slots")
    starts, extents = [0] * e.output.type.ndim, list(e.output.type.shape)
    starts[dim], extents[dim] = m * extents[dim], slots * extents[dim]
    return Call(params, whole.type, tuple(starts), tuple(extents), whole.offsets)
