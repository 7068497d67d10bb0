"""Which equation belongs to which layer, and the graph of each stage.

Forward equations keep their order, so a cut of that order into runs gives layers whose values only
flow forward; a backward equation belongs to the layer of the forward equation it came from; what
updates a parameter belongs where the parameter's gradient is made. Cheap things that depend on the
batch or on scalars alone (slices of the batch, masks, random values, a learning rate) are made
wherever they are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpc_alpa.ir.graph import Eqn, Graph, Var
from hpc_alpa.sharding.places import Groups
from hpc_alpa.step.microbatch import StepGraph
from hpc_alpa.step.phase import APPLY, BACKWARD, FINISHED, FORWARD, PREPARE
from hpc_alpa.transform.simplify import drop_dead

CHEAP = (  # alphabetical
    "add", "broadcast", "cast", "compare", "div", "enter", "full", "iota", "max", "min", "mul",
    "neg", "pow", "random_bits", "reshape", "select", "slice", "slot", "sqrt", "stop_gradient",
    "sub", "transpose",
)  # fmt: skip


@dataclass(frozen=True)
class Transfer:
    """A value that one stage makes and another reads, once per run of the phase that makes it."""

    value: Var
    source: int
    target: int
    phase: str


@dataclass(frozen=True)
class StageGraph:
    """The part of a step that one stage runs.

    Attributes:
        graph: inputs are the step's inputs that it reads, then the values it receives; its outputs
            are the step's outputs that it makes, then the values it sends.
        results: (position among the step's outputs, value).
        received, sent: what crosses its borders.
    """

    index: int
    graph: Graph
    results: tuple[tuple[int, Var], ...]
    received: tuple[Transfer, ...]
    sent: tuple[Transfer, ...]


def movable(step: StepGraph) -> frozenset[Var]:
    """Values that any stage may make for itself: they depend on the batch and on scalars alone."""
    graph = step.graph
    free = {v for v in graph.inputs if v in step.batch or not v.type.shape}
    for e in graph.eqns:
        if e.op.name in CHEAP and all(v in free for v in e.inputs):
            free.add(e.output)
    return frozenset(free)


def anchors(step: StepGraph) -> tuple[Eqn, ...]:
    """The forward equations that layers are cut from, in order."""
    free = movable(step)
    return tuple(e for e in step.graph.eqns if e.phase == FORWARD and e.output not in free)


def assign(step: StepGraph, cuts: Sequence[int]) -> dict[Var, int]:
    """The stage of every value that is not movable.

    Args:
        cuts: for each stage but the first, the position among `anchors` at which it starts.
    """
    free = movable(step)
    graph = step.graph
    home: dict[Var, int] = {}
    by_origin: dict[int, int] = {}
    for k, e in enumerate(anchors(step)):
        stage = sum(k >= c for c in cuts)
        home[e.output] = stage
        if e.origin is not None:
            # The first of an origin: a sum over slots that ends the forward pass has it too.
            by_origin.setdefault(e.origin, stage)
    for e in graph.eqns:
        if e.phase != BACKWARD or e.output in free:
            continue
        known = [home[v] for v in e.inputs if v in home]
        if e.op.name == "accumulate":
            home[e.output] = known[0]
        elif e.origin in by_origin:
            home[e.output] = by_origin[e.origin]
        else:
            home[e.output] = min(known, default=0)
    _assign_updates(graph, free, home)
    return home


def _assign_updates(graph: Graph, free: frozenset[Var], home: dict[Var, int]) -> None:
    """Parameters, optimizer state and their updates stay together, with the gradient."""
    together: Groups[Var] = Groups()
    once = [e for e in graph.eqns if e.phase in (PREPARE, APPLY) and e.output not in free]
    made_once = {e.output for e in once} | {v for v in graph.inputs if v not in free}
    for e in once:
        if e.output.type.shape:
            for v in e.inputs:
                if v.type.shape and (v in made_once or v in home):
                    together.join(v, e.output)
    where: dict[Var, int] = {}
    for v, stage in list(home.items()):
        if v in together and v.type.shape:
            group = together.find(v)
            where[group] = min(stage, where.get(group, stage))
    # A value that nothing of the loop feeds lives with its first reader.
    for e in graph.eqns:
        if e.output in home:
            for v in e.inputs:
                if v in together or v in made_once:
                    where.setdefault(together.find(v), home[e.output])
    for v in graph.inputs:
        if v not in free:
            home[v] = where.get(together.find(v), 0)
    for e in once:
        if e.output.type.shape:
            home[e.output] = where.get(together.find(e.output), 0)
        else:
            home[e.output] = max((home[v] for v in e.inputs if v in home), default=0)


def split_stages(step: StepGraph, cuts: Sequence[int]) -> tuple[StageGraph, ...]:
    """The graph of each stage. Values keep their names: a transfer is one value in two graphs.

    Args:
        cuts: as `assign` takes them.
    """
    home = assign(step, cuts)
    graph = step.graph
    num_stages = len(cuts) + 1
    needs = [_needed(step, home, s) for s in range(num_stages)]
    made = graph.producer
    transfers: list[Transfer] = []
    for stage in range(num_stages):
        for v in graph.values():
            if v in needs[stage] and v in home and home[v] != stage:
                phase = made[v].phase if v in made else PREPARE
                if v in made and made[v].op.name in FINISHED:
                    phase = APPLY
                transfers.append(Transfer(v, home[v], stage, phase))
    return tuple(_stage_graph(step, home, needs[s], s, tuple(transfers)) for s in range(num_stages))


def _needed(step: StepGraph, home: dict[Var, int], stage: int) -> set[Var]:
    """What a stage makes, and everything that it reads for that."""
    needed: set[Var] = {v for v, s in home.items() if s == stage}
    # A scalar of the state is kept, and renewed, by every stage.
    needed.update(
        v for v in step.graph.outputs if v not in home and (stage == 0 or not v.type.shape)
    )
    for e in reversed(step.graph.eqns):
        if e.output in needed and home.get(e.output, stage) == stage:
            needed.update(e.inputs)
    return needed


def _stage_graph(
    step: StepGraph,
    home: dict[Var, int],
    needed: set[Var],
    stage: int,
    transfers: tuple[Transfer, ...],
) -> StageGraph:
    graph = step.graph
    received = tuple(t for t in transfers if t.target == stage)
    sent = tuple(t for t in transfers if t.source == stage)
    foreign = {t.value for t in received}
    results = tuple(
        (k, v)
        for k, v in enumerate(graph.outputs)
        if home.get(v, stage) == stage and (v in home or stage == 0 or not v.type.shape)
    )
    eqns = [e for e in graph.eqns if e.output in needed and e.output not in foreign]
    read = {v for e in eqns for v in e.inputs} | {v for _, v in results}
    inputs = [v for v in graph.inputs if v not in foreign and v in read]
    outputs = tuple(v for _, v in results) + tuple(dict.fromkeys(t.value for t in sent))
    made = Graph(
        tuple(inputs) + tuple(dict.fromkeys(t.value for t in received)),
        tuple(eqns),
        outputs,
        graph.names,
    )
    return StageGraph(stage, drop_dead(made), results, received, sent)
