"""[StageCode] -> [Submesh]: what the stages that share devices do together.

once a step      the items of all its stages, in an order that suits every submesh's messages
in the loop      the items of each stage; where the schedule splits it, backward in its halves
handovers        what one stage of a submesh makes for another stays where it is: the reader takes
                 the maker's buffer, or converts it
inputs           one tile of each, whatever number of stages read it
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from hpc_alpa.cluster import DeviceMesh
from hpc_alpa.errors import PlanError
from hpc_alpa.ir.graph import Var
from hpc_alpa.lower.spmd import Convert, Exchange, Item, StageCode, reads, writes
from hpc_alpa.plan.paths import Paths
from hpc_alpa.plan.plan import Plan
from hpc_alpa.sharding import Move, ShardingSpec
from hpc_alpa.sharding.conversions import FREE
from hpc_alpa.step import APPLY, BACKWARD, FORWARD, PREPARE, WEIGHT, Transfer
from hpc_alpa.step.halves import needed

ONCE = (PREPARE, APPLY)
Input = tuple[Var, str, ShardingSpec]


@dataclass
class Submesh:
    """The stages of one submesh.

    Attributes:
        once: items of the phases that run once a step, of all stages.
        looped: items of a stage (its number) in a phase of the loop.
        inputs: buffer and spec of each of the step's inputs that its stages read.
        names: other names of buffers that stages hand over -> the maker's name.
    """

    index: int
    mesh: DeviceMesh
    codes: tuple[StageCode, ...]
    once: dict[str, list[Item]] = field(default_factory=dict)
    looped: dict[tuple[int, str], list[Item]] = field(default_factory=dict)
    inputs: tuple[Input, ...] = ()
    names: dict[str, str] = field(default_factory=dict)

    @property
    def items(self) -> Iterator[Item]:
        """All of its devices' work."""
        for items in (*self.once.values(), *self.looped.values()):
            yield from items

    @property
    def exchanges(self) -> Iterator[Exchange]:
        """What goes to other submeshes, and comes from them."""
        return (i for i in self.items if isinstance(i, Exchange))


def shared_over(parts: Sequence[Submesh], k: int) -> tuple[int, ...]:
    """The first device that has a 0-d output, and those of the submeshes that do not make it."""
    makes = [any(j == k for c in s.codes for j, _ in c.stage.results) for s in parts]
    assert any(makes), f"no stage makes output {k}"
    others = (d for s, made in zip(parts, makes, strict=True) if not made for d in s.mesh.devices)
    return parts[makes.index(True)].mesh.devices[0], *others


def submeshes(codes: Sequence[StageCode], plan: Plan, split: bool) -> tuple[Submesh, ...]:
    """Join the stages of each submesh.

    Args:
        split: whether the schedule runs the halves of backward apart.

    Raises:
        PlanError: two stages of a submesh want one input under specs of which neither converts to
            the other, or a value handed over has no conversion.
    """
    place = plan.placement
    joined = tuple(
        Submesh(k, mesh, tuple(c for c, p in zip(codes, place, strict=True) if p == k))
        for k, mesh in enumerate(plan.submeshes)
    )
    for phase in ONCE:
        for submesh, items in zip(joined, _in_turn(codes, place, phase), strict=True):
            submesh.once[phase] = items
    for submesh in joined:
        for code in submesh.codes:
            stage = code.stage.index
            submesh.looped[stage, FORWARD] = code.items[FORWARD]
            backward = code.items[BACKWARD]
            early, late = _halves(backward) if split else (backward, [])
            submesh.looped[stage, BACKWARD], submesh.looped[stage, WEIGHT] = early, late
        if len(submesh.codes) > 1:
            _Handovers(submesh).make()
        _take_inputs(submesh)
    return joined


def _in_turn(codes: Sequence[StageCode], place: Sequence[int], phase: str) -> list[list[Item]]:
    """The items of a phase that runs once, on each submesh.

    Stages take turns so that a receive comes after its send: in the order in which all submeshes'
    items are written here, nobody waits for what comes later.
    """
    found: list[list[Item]] = [[] for _ in range(max(place) + 1)]
    position = [0] * len(codes)
    sent: set[Transfer] = set()
    going = True
    while going:
        going = False
        for k, code in enumerate(codes):
            items = code.items[phase]
            while position[k] < len(items):
                item = items[position[k]]
                if isinstance(item, Exchange):
                    if not item.sends and item.transfer not in sent:
                        break
                    sent.add(item.transfer)
                found[place[k]].append(item)
                position[k] += 1
                going = True
    for k, code in enumerate(codes):
        assert position[k] == len(code.items[phase]), f"stage {k} waits in {phase}"
    return found


def _halves(items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """Backward items: what other stages wait for, and what comes in for it; and the rest."""
    sent = {i.name for i in items if isinstance(i, Exchange) and i.sends}
    early = [
        first or isinstance(item, Exchange)
        for item, first in zip(items, needed(items, reads, writes, sent), strict=True)
    ]
    halves: tuple[list[Item], list[Item]] = ([], [])
    for item, first in zip(items, early, strict=True):
        halves[not first].append(item)
    return halves


# -------------------------------------------------------------------------------------- handovers
class _Handovers:
    """Replaces the exchanges between stages of one submesh."""

    def __init__(self, submesh: Submesh) -> None:
        self.submesh = submesh
        self.here = {c.stage.index: c for c in submesh.codes}
        self.paths = Paths(submesh.mesh.shape, _price)
        self.sources = {
            i.transfer: i for i in submesh.exchanges if i.sends and i.transfer.target in self.here
        }

    def make(self) -> None:
        parts = [*self.submesh.once.values(), *self.submesh.looped.values()]
        for items in parts:
            items[:] = [made for item in items for made in self.handed(item)]
        for items in parts:
            items[:] = [self.renamed(item) for item in items]
        for code in self.submesh.codes:
            code.outputs = [(v, self.name(n), spec) for v, n, spec in code.outputs]

    def handed(self, item: Item) -> Iterator[Item]:
        if not isinstance(item, Exchange) or item.transfer not in self.sources:
            yield item
        elif not item.sends:
            yield from self.received(self.sources[item.transfer], item)

    def received(self, source: Exchange, target: Exchange) -> Iterator[Item]:
        """A value as the reader wants it: the same buffer, or a conversion."""
        v, reader = target.transfer.value, self.here[target.transfer.target]
        if source.spec == target.spec:
            self.submesh.names[target.name] = source.name
            return
        path = self.paths.path(v.type, source.spec, target.spec)
        yield from conversion(v, path, source.name, target.name, reader)

    def name(self, name: str) -> str:
        return self.submesh.names.get(name, name)

    def renamed(self, item: Item) -> Item:
        names = self.submesh.names
        if names.keys().isdisjoint(reads(item)):
            return item
        if isinstance(item, Exchange):
            return replace(item, name=self.name(item.name))
        return replace(item, inputs=tuple(map(self.name, item.inputs)))


def conversion(
    v: Var, path: Sequence[Move], source: str, target: str, code: StageCode
) -> Iterator[Item]:
    """The items of a conversion from one buffer to another.

    Raises:
        PlanError: it would split rows of the batch that lie in slots.
    """
    base, each = target.removesuffix("@"), "@" * target.endswith("@")
    for k, move in enumerate(path):
        if not code.rows.converts(v, move.source, move.target):
            raise PlanError(
                f"stages on the same devices hold {v} in specs that do not convert: {move} splits "
                "rows that lie in slots; give both stages the same spec"
            )
        name = target if k + 1 == len(path) else f"{base}.h{k}{each}"
        yield Convert((move,), (v.type,), (source,), (name,), (code.rows.runs(v, move.dim),))
        source = name


def _price(move: Move, nbytes: float) -> float:
    """Of paths between stages: the fewest messages, then the fewest bytes."""
    return 1e-9 if move.kind in FREE else 1.0 + 1e-12 * nbytes


# ----------------------------------------------------------------------------------------- inputs
def _take_inputs(submesh: Submesh) -> None:
    """One tile of each input, converted before the loop for stages that want it otherwise."""
    wanted: dict[Var, dict[ShardingSpec, tuple[str, StageCode]]] = {}
    for code in submesh.codes:
        for v, name, spec in code.inputs:
            wanted.setdefault(v, {}).setdefault(spec, (name, code))
    paths = Paths(submesh.mesh.shape, _price)
    inputs: list[Input] = []
    before: list[Item] = []
    for v, specs in wanted.items():
        for spec, (name, code) in specs.items():
            others = {s: n for s, (n, _) in specs.items() if s != spec}
            try:
                before += [
                    item
                    for other, target in others.items()
                    for item in conversion(v, paths.path(v.type, spec, other), name, target, code)
                ]
            except PlanError:
                continue
            inputs.append((v, name, spec))
            break
        else:
            raise PlanError(
                f"stages {[c.stage.index for c in submesh.codes]} lie on the same devices and read "
                f"{code.stage.graph.describe(v)} as {', '.join(map(str, specs))}, of which none "
                "converts to the others; give all the same spec"
            )
    submesh.inputs = tuple(inputs)
    submesh.once[PREPARE] = before + submesh.once[PREPARE]
