"""Which nodes of a stage's choice program make the same choice.

a new state leaf                          lies as the old one
what updates one parameter                lies alike, with its optimizer state   -> plan.updates
equal layers, and what updates these      alike, or alike in blocks              -> plan.alike
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from hpc_alpa.ir.graph import Var
from hpc_alpa.plan.alike import alike, block_of
from hpc_alpa.plan.updates import Updates
from hpc_alpa.plan.values import Choices, Specs
from hpc_alpa.step import StageGraph, StepGraph


def renews(step: StepGraph, stage: StageGraph) -> dict[int, int]:
    """Output of a stage's graph -> the input that it is the new value of, where it is one."""
    position = {v: k for k, v in enumerate(stage.graph.inputs)}
    found = {}
    for k, (at, v) in enumerate(stage.results):
        if at in step.renewed:
            old = step.graph.inputs[step.renewed[at]]
            if old in position and old.type.shape == v.type.shape:
                found[k] = position[old]
    return found


@dataclass(frozen=True)
class Ties:
    """The ties of one stage.

    Attributes:
        nodes: of the values; the stage graph's outputs have the nodes behind these.
        renews: as the function of that name gives them.
        choices, specs: what a node's choices mean, and the specs of its value under them.
        more: pairs that are tied besides.
    """

    stage: StageGraph
    nodes: Mapping[Var, int]
    renews: Mapping[int, int]
    updates: Updates
    choices: Callable[[int], Choices]
    specs: Callable[[int], Specs]
    more: Sequence[tuple[int, int]] = ()

    def of_nodes(self, blocks: int) -> tuple[int, ...]:
        """Per node, the one whose choice it shares; equal layers are alike in so many blocks."""
        nodes, specs = self.nodes, self.specs
        ties = list(range(len(nodes) + len(self.stage.graph.outputs)))
        for k, source in self.renews.items():
            ties[len(nodes) + k] = source
        for a, b in self.more:
            ties[a] = b
        for v, leader in self.updates.leader.items():
            ties[nodes[v]] = nodes[leader]
        for v, leader in self.updates.inputs.items():
            if specs(nodes[v]) == specs(nodes[leader]):
                ties[nodes[v]] = nodes[leader]
        for v, w in self._alike(blocks):
            a, b = nodes[v], nodes[w]
            if ties[a] == a and self.choices(a) == self.choices(b):
                ties[a] = b
        return tuple(ties)

    def _alike(self, blocks: int) -> Iterator[tuple[Var, Var]]:
        """Values of equal layers, their parameters, and what updates these."""
        graph, leader = self.stage.graph, self.updates.leader
        inputs = set(graph.inputs)
        for v, w in alike(graph, blocks):
            if v in graph.producer and w in graph.producer:
                yield v, w
            elif v in inputs and w in inputs:
                yield v, w
                new = [leader.get(self._renewed[p]) for p in (v, w) if p in self._renewed]
                if len(new) == 2 and new[0] is not None and new[1] is not None:
                    yield new[0], new[1]

    @cached_property
    def _renewed(self) -> dict[Var, Var]:
        """The new value of each input that has one in this stage."""
        graph = self.stage.graph
        return {graph.inputs[at]: graph.outputs[k] for k, at in self.renews.items()}

    def block_of_nodes(self, leader: Sequence[int], blocks: int) -> tuple[int, ...]:
        """The block of equal layers that each node belongs to; -1 for none.

        Args:
            leader: of each node, where equal layers are alike in so many blocks.
        """
        block: dict[int, int] = {}
        for v, b in block_of(self.stage.graph, blocks).items():
            for w in (v, self.updates.leader.get(self._renewed.get(v, v))):
                if w is not None:
                    block[leader[self.nodes[w]]] = b
        return tuple(block.get(first, -1) for first in leader)
