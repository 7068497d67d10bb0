"""Layers whose forward values are made again in backward instead of being kept for it.

Chen et al. 2016, "Training deep nets with sublinear memory cost", Sec. 4.1, with the user's layers
(`hpc_alpa.layer`) as the segments:

    kept      x -> [ layer 0 ] -> y -> [ layer 1 ] -> z -> loss        x, y, z and all inside
    made again                 -> y -> [ layer 1 ]' -> gradients       x, y, z alone

What is made again are ordinary equations of the backward phase, so whatever reads a step (planner,
memory rows, lowering, simulator) counts and runs them as it does any other. Random values are keyed
by what they are for, so they come out the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

from hpc_alpa.errors import PlanError
from hpc_alpa.ir.graph import Eqn, Graph, Var
from hpc_alpa.step.microbatch import StepGraph
from hpc_alpa.step.phase import BACKWARD, FINISHED, FORWARD
from hpc_alpa.step.stages import assign, movable


def marked_layers(graph: Graph) -> tuple[int, ...]:
    """The numbers of the layers that the user has marked in the forward pass, rising."""
    found = {e.layer for e in graph.eqns if e.phase == FORWARD}
    return tuple(sorted(k for k in found if k is not None))


def recompute(step: StepGraph, layers: Collection[int], cuts: Sequence[int] = ()) -> StepGraph:
    """The step whose backward makes again what it reads of some layers.

    An equation is repeated in front of the first backward equation that needs its value. What
    enters a layer, what leaves it for another layer, and what crosses a border between stages is
    kept. What no backward equation needs is not repeated: a block's last product, for one.

    Args:
        layers: numbers of layers that the user has marked.
        cuts: where stages start, as `split_stages` takes them: a value of one stage is never made
            again for the backward of another one, which would have to wait for it.

    Raises:
        PlanError: the step has no layer of such a number.
    """
    wanted = frozenset(layers)
    if not wanted:
        return step
    known = marked_layers(step.graph)
    if not known:
        raise PlanError(
            f"layers {sorted(wanted)} cannot be recomputed: no layer of the model is marked. Write "
            "`with hpc_alpa.layer(k):` around each layer of its forward pass"
        )
    if missing := sorted(wanted.difference(known)):
        raise PlanError(
            f"layers {missing} cannot be recomputed: the model has marked layers "
            f"{', '.join(map(str, known))}"
        )
    return _Writer(step, _inside(step, wanted, cuts)).step(tuple(sorted(wanted)))


def _inside(step: StepGraph, layers: AbstractSet[int], cuts: Sequence[int]) -> set[Var]:
    """Forward values of the layers that nothing outside of their layer and stage reads."""
    home = assign(step, cuts)
    free = movable(step)
    readers = step.graph.readers

    def alone(e: Eqn) -> bool:
        return all(
            home.get(r.output) == home[e.output] and (r.phase != FORWARD or r.layer == e.layer)
            for r in readers[e.output]
        )

    return {
        e.output
        for e in step.graph.eqns
        if e.phase == FORWARD
        and e.layer in layers
        and e.op.name not in FINISHED
        # Without an origin its stage would be a guess.
        and (e.output in free or (e.origin is not None and alone(e)))
    }


class _Writer:
    """Writes the step again: `again` has the second value of each that has one so far."""

    def __init__(self, step: StepGraph, inside: AbstractSet[Var]) -> None:
        self.before, self.inside = step, inside
        self.next_id = max(v.id for v in step.graph.values()) + 1
        self.again: dict[Var, Var] = {}
        self.place = {e.output: k for k, e in enumerate(step.graph.eqns)}

    def step(self, layers: tuple[int, ...]) -> StepGraph:
        graph = self.before.graph
        eqns = tuple(written for e in graph.eqns for written in self._equation(e))
        roles = self.before.roles
        repeated = {w: roles[v] for v, w in self.again.items() if v in roles}
        return replace(
            self.before,
            graph=replace(graph, eqns=eqns),
            roles={**roles, **repeated},
            recomputed=layers,
        )

    def _equation(self, e: Eqn) -> Iterator[Eqn]:
        if e.phase != BACKWARD:
            yield e
            return
        for repeated in self._needed(e):
            self.again[repeated.output] = Var(self.next_id, repeated.output.type)
            self.next_id += 1
            yield replace(
                repeated,
                inputs=self._read(repeated),
                output=self.again[repeated.output],
                phase=BACKWARD,
            )
        yield replace(e, inputs=self._read(e))

    def _read(self, e: Eqn) -> tuple[Var, ...]:
        return tuple(self.again.get(v, v) for v in e.inputs)

    def _needed(self, e: Eqn) -> list[Eqn]:
        """What is to be repeated before a backward equation, in the order of the forward pass."""
        graph = self.before.graph
        found: set[Var] = set()
        waiting = list(e.inputs)
        while waiting:
            v = waiting.pop()
            if v in self.inside and v not in self.again and v not in found:
                found.add(v)
                waiting += graph.producer[v].inputs
        return sorted((graph.producer[v] for v in found), key=lambda r: self.place[r.output])
