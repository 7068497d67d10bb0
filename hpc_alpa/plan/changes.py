"""What two assignments of one choice program do differently: specs, and conversions by messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpc_alpa.plan.intra_op import IntraOp
from hpc_alpa.plan.memory import PHASE_OF
from hpc_alpa.plan.solve.problem import Assignment, Problem, Window, needed_cells
from hpc_alpa.sharding.conversions import FREE


@dataclass(frozen=True)
class Conversion:
    """A value that is brought from one spec to another by messages.

    Attributes:
        window: forward, backward, prepare or apply.
        kinds: the collectives, one after the other.
        times: how often in a step.
        seconds, nbytes: of all times together; bytes of the whole tensors of the collectives.
    """

    value: str
    source: str
    target: str
    window: str
    kinds: tuple[str, ...]
    times: int
    seconds: float
    nbytes: float


@dataclass(frozen=True)
class Change:
    """A value that lies otherwise."""

    value: str
    before: str
    after: str


def value_name(program: IntraOp, node: int) -> str:
    """How a text calls a node's value: an input's path, or an equation's line and operator."""
    graph = program.stage.graph
    k = node - len(graph.inputs)
    if k < 0:
        v = graph.inputs[node]
        return graph.name_of.get(v.id, str(v))
    e = graph.eqns[k]
    layer = "" if e.layer is None else f"{e.layer}/"
    return f"{layer}{e.source or e.output} {e.op.name} {e.phase}"


def conversions(
    program: IntraOp, problem: Problem, assignment: Assignment
) -> tuple[Conversion, ...]:
    """The conversions of an assignment that need messages, in the order of the program's values.

    Args:
        problem: what `program.problem()` has returned last.
    """
    mesh = program.pricing.mesh.shape
    values = list(program.stage.graph.values())
    found = []
    for window in Window:
        phase = PHASE_OF[window]
        cells = needed_cells(problem, assignment.choices, window)
        owners = np.searchsorted(problem.cell_offset, cells, side="right") - 1
        for k, cell in zip(owners.tolist(), cells.tolist(), strict=True):
            value, form = problem.values[k], program.forms[k]
            p, t = divmod(int(cell - problem.cell_offset[k]), value.conversion.shape[1])
            if window == Window.BACKWARD and (k, t) in assignment.held:
                continue
            type = values[value.producer].type
            path = program.pricing.paths.path(type, form.sources[p], form.targets[t])
            sent = [m for m in path if m.kind not in FREE]
            if sent:
                times = program.runs(phase)
                found.append(
                    Conversion(
                        value_name(program, value.producer),
                        str(form.sources[p]),
                        str(form.targets[t]),
                        phase,
                        tuple(m.kind for m in sent),
                        times,
                        float(value.conversion[p, t]),
                        times * sum(m.nbytes(type.nbytes, mesh) for m in sent),
                    )
                )
    return tuple(found)


def difference(
    before: Sequence[Conversion], after: Sequence[Conversion]
) -> tuple[tuple[Conversion, ...], tuple[Conversion, ...]]:
    """What comes, and what goes."""
    a, b = Counter(before), Counter(after)
    return tuple((b - a).elements()), tuple((a - b).elements())
