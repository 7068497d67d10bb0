"""What every device of a stage does: the stage's equations with its conversions between them.

    [StageGraph, StagePlan] -> [StageCode]

Items are the same on all devices of the mesh but for the tile they work on; `lower.instantiate`
fills that in. A conversion is made before its first reader and shared by later readers of the same
window (prepare, forward, backward, apply); one that the plan holds serves backward too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from hpc_alpa.errors import PlanError
from hpc_alpa.ir.graph import Eqn, Var
from hpc_alpa.ir.types import TensorType
from hpc_alpa.plan.paths import key, read
from hpc_alpa.plan.plan import StagePlan
from hpc_alpa.sharding import Move, ShardingSpec, Strategy, moves
from hpc_alpa.sharding.phases import Interior, interior, phases, runs_in_phases
from hpc_alpa.sharding.strategies import Signature, signature, strategy_for
from hpc_alpa.step import (
    APPLY,
    BACKWARD,
    FINISHED,
    FORWARD,
    LOOP,
    PREPARE,
    StageGraph,
    Transfer,
)
from hpc_alpa.step.rows import Rows

PHASES = (PREPARE, FORWARD, BACKWARD, APPLY)
WINDOW = {PREPARE: ".p", FORWARD: "", BACKWARD: ".b", APPLY: ".a"}


@dataclass(frozen=True)
class Compute:
    """One equation under its strategy. Inputs and output are names of buffers."""

    eqn: Eqn
    strategy: Strategy
    inputs: tuple[str, ...]
    output: str

    @cached_property
    def signature(self) -> Signature:
        """Of the equation; all devices ask for it."""
        return signature(self.eqn)


@dataclass(frozen=True)
class Convert:
    """One move, or several of one kind over the same axes that share a message (`lower.bucket`).

    Attributes:
        runs: for each move, how many runs of rows a tile has along the dim that is gathered.
    """

    moves: tuple[Move, ...]
    types: tuple[TensorType, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    runs: tuple[int, ...]


@dataclass(frozen=True)
class Exchange:
    """Send a value to another stage, or receive it; `name` is the buffer on this side."""

    transfer: Transfer
    name: str
    spec: ShardingSpec
    sends: bool


Item = Compute | Convert | Exchange


@dataclass
class StageCode:
    """The items of each phase, and where values lie.

    Attributes:
        inputs, outputs: buffer and spec of each input and output of the stage's graph.
    """

    stage: StageGraph
    plan: StagePlan
    rows: Rows
    items: dict[str, list[Item]] = field(default_factory=lambda: {p: [] for p in PHASES})
    inputs: list[tuple[Var, str, ShardingSpec]] = field(default_factory=list)
    outputs: list[tuple[Var, str, ShardingSpec]] = field(default_factory=list)


def reads(item: Item) -> tuple[str, ...]:
    """Names of the buffers that an item reads."""
    if isinstance(item, Exchange):
        return (item.name,) if item.sends else ()
    return item.inputs


def writes(item: Item) -> tuple[str, ...]:
    """Names of the buffers that an item writes."""
    if isinstance(item, Compute):
        return (item.output,)
    if isinstance(item, Exchange):
        return () if item.sends else (item.name,)
    return item.outputs


def stage_code(stage: StageGraph, plan: StagePlan, rows: Rows, prefix: str = "") -> StageCode:
    """Lay out a stage's work.

    Args:
        prefix: of the names of what the stage makes and receives, where another stage runs on the
            same devices; the step's inputs have none.

    Raises:
        PlanError: the plan was not made for this graph.
    """
    graph = stage.graph
    if (len(plan.strategies), len(plan.inputs)) != (len(graph.eqns), len(graph.inputs)):
        raise PlanError(
            f"stage {stage.index} of the plan has {len(plan.strategies)} equations and "
            f"{len(plan.inputs)} inputs, the graph has {len(graph.eqns)} and {len(graph.inputs)}: "
            "the plan was made for another graph; plan again"
        )
    return _Layout(stage, plan, rows, prefix).run()


class _Layout:
    def __init__(self, stage: StageGraph, plan: StagePlan, rows: Rows, prefix: str) -> None:
        self.code = StageCode(stage, plan, rows)
        self.prefix = prefix
        received = {t.value for t in stage.received}
        self.inputs = {v for v in stage.graph.inputs if v not in received}
        self.mesh = plan.mesh_shape
        self.paths = dict(plan.conversions)
        self.home: dict[Var, ShardingSpec] = {}
        self.looped: set[Var] = set()
        self.made: dict[tuple[Var, ShardingSpec, str], str] = {}
        values = list(stage.graph.values())
        self.held = {(values[k], ShardingSpec.parse(text)) for k, text in plan.held}
        self.phase = PREPARE

    def run(self) -> StageCode:
        graph, plan, stage = self.code.stage.graph, self.code.plan, self.code.stage
        arrivals = {t.value: t for t in stage.received}
        for v, text in zip(graph.inputs, plan.inputs, strict=True):
            self.home[v] = ShardingSpec.parse(text)
            if v in arrivals and arrivals[v].phase in LOOP:
                self.looped.add(v)
            if v not in arrivals:
                self.code.inputs.append((v, self.name(v, self.home[v]), self.home[v]))
        pending = dict(arrivals)
        departures = self._departures()
        strategies = dict(zip((e.output for e in graph.eqns), plan.strategies, strict=True))
        for phase in PHASES:
            self.phase = phase
            for v in [v for v in departures if departures[v][0].phase == phase == APPLY]:
                if v in self.home:
                    self.send(v, departures.pop(v))
            for e in graph.eqns:
                if e.phase != phase:
                    continue
                for v in e.inputs:
                    self.receive_up_to(v, pending)
                self.equation(e, strategies[e.output])
                if e.output in departures and departures[e.output][0].phase == phase:
                    self.send(e.output, departures.pop(e.output))
            for v, t in list(pending.items()):
                if t.phase == phase:
                    self.receive(v, pending.pop(v))
            for v in [v for v in departures if departures[v][0].phase == phase]:
                self.send(v, departures.pop(v))
        for v, text in zip(graph.outputs[: len(stage.results)], plan.outputs, strict=False):
            spec = ShardingSpec.parse(text)
            self.code.outputs.append((v, self.need(v, spec), spec))
        return self.code

    def _departures(self) -> dict[Var, tuple[Transfer, ...]]:
        found: dict[Var, tuple[Transfer, ...]] = {}
        for t in self.code.stage.sent:
            found[t.value] = (*found.get(t.value, ()), t)
        return found

    def add(self, item: Item) -> None:
        self.code.items[self.phase].append(item)

    def name(self, v: Var, spec: ShardingSpec, window: str | None = None) -> str:
        """`v12.S0R`, `v12` where it is 0-d, `@` behind it when every microbatch has its own.

        Args:
            window: the phase whose copy it is; None names the value as it was made.
        """
        name = f"v{v.id}.{spec}" if v.type.shape else f"v{v.id}{str(spec).removeprefix('.')}"
        if window is None and v in self.inputs:
            return name
        name = self.prefix + name
        if window is None:
            return name + ("@" if v in self.looped else "")
        return name + WINDOW[window] + ("@" if window in LOOP else "")

    def receive(self, v: Var, transfer: Transfer) -> None:
        self.add(Exchange(transfer, self.name(v, self.home[v]), self.home[v], False))

    def receive_up_to(self, v: Var, pending: dict[Var, Transfer]) -> None:
        """Receive a value, after those that its sender sends before it (NCCL matches in order)."""
        if v not in pending:
            return
        wanted = pending[v]
        for u, t in list(pending.items()):
            if (t.source, t.phase) == (wanted.source, wanted.phase):
                self.receive(u, pending.pop(u))
                if u == v:
                    return

    def send(self, v: Var, transfers: tuple[Transfer, ...]) -> None:
        graph, plan = self.code.stage.graph, self.code.plan
        results = len(self.code.stage.results)
        at = results + graph.outputs[results:].index(v)
        spec = ShardingSpec.parse(plan.outputs[at])
        name = self.need(v, spec)
        for t in transfers:
            self.add(Exchange(t, name, spec, True))

    def equation(self, e: Eqn, roles: str) -> None:
        strategy = strategy_for(signature(e), tuple(roles.split(",")), self.mesh)
        if strategy is None:
            raise PlanError(
                f"the plan's strategy {roles!r} does not exist for {e} on mesh {self.mesh}: "
                "the plan was made for another graph; plan again"
            )
        operands = tuple(self.need(v, s) for v, s in zip(e.inputs, strategy.inputs, strict=True))
        if self.phase in LOOP and e.op.name not in FINISHED:
            self.looped.add(e.output)
        self.home[e.output] = strategy.output
        output = self.name(e.output, strategy.output)
        if runs_in_phases(e, strategy):
            self._in_phases(e, strategy, operands, output)
        else:
            self.add(Compute(e, strategy, operands, output))

    def _in_phases(
        self, e: Eqn, strategy: Strategy, operands: tuple[str, ...], output: str
    ) -> None:
        """Local statistics, their all_reduce, local finish; or edges, their all_gather, windows."""
        inner = interior(e, strategy, self.mesh)
        base, suffix = f"{self.prefix}v{e.output.id}", "@" if e.output in self.looped else ""
        names = dict(zip(inner.inputs, operands, strict=True))
        changes = 0
        for step in phases(e, strategy, self.mesh):
            if isinstance(step, Interior):
                out = step.eqn.output
                last = out == inner.outputs[0]
                names[out] = output if last else f"{base}.i{out.id}{suffix}"
                args = tuple(names[v] for v in step.eqn.inputs)
                self.add(Compute(step.eqn, step.strategy, args, names[out]))
            else:
                changes += 1
                target = f"{base}.i{step.value.id}.{changes}{suffix}"
                source = names[step.value]
                self.add(Convert((step.move,), (step.value.type,), (source,), (target,), (1,)))
                names[step.value] = target

    def need(self, v: Var, spec: ShardingSpec) -> str:
        """The buffer of a value in a spec, converted before if nobody did in this window."""
        home = self.home[v]
        if spec == home:
            return self.name(v, home)
        at = (v, spec, self.phase)
        if self.phase == BACKWARD and (v, spec) in self.held:
            kept = (v, spec, FORWARD)
            at = kept if kept in self.made else at
        if at not in self.made:
            source, name = home, self.name(v, home)
            for move in self._path(v, home, spec):
                step = (v, move.target, self.phase)
                if step not in self.made:
                    self.made[step] = self.name(v, move.target, self.phase)
                    out = self.made[step]
                    if not self.code.rows.converts(v, move.source, move.target):
                        raise PlanError(
                            f"the plan's step {move} of {v} splits rows that lie in slots: "
                            "the plan was made for another graph; plan again"
                        )
                    runs = self.code.rows.runs(v, move.dim)
                    self.add(Convert((move,), (v.type,), (name,), (out,), (runs,)))
                source, name = move.target, self.made[step]
            assert source == spec
        return self.made[at]

    def _path(self, v: Var, source: ShardingSpec, target: ShardingSpec) -> tuple[Move, ...]:
        text = self.paths.get(key(v.type, source, target))
        if text is not None:
            return read(text, v.type, source, self.mesh)
        for move in moves(source, v.type.shape, self.mesh):
            if move.target == target:
                return (move,)
        raise PlanError(f"the plan has no path for the conversion {key(v.type, source, target)}")
