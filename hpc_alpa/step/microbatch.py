"""Microbatches: the batch factor split over time.

The rule language that splits a factor over devices splits the batch over B slots of time.
`step.slots` finds where every equation belongs; `split_batch` writes the graph of the step: what is
computed once before the loop, what runs in every slot, what needs the loop's sums, with a boundary
equation wherever a value enters or leaves the loop (`ops.boundary`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from hpc_alpa.errors import TracingError
from hpc_alpa.ir.build import Builder
from hpc_alpa.ir.graph import Eqn, Graph, Var
from hpc_alpa.ops.rule import Rule
from hpc_alpa.sharding.spec import ShardingSpec, local_shape
from hpc_alpa.sharding.strategies import IDLE, rule_of
from hpc_alpa.step.apart import cast_apart, sums_apart
from hpc_alpa.step.phase import APPLY, FORWARD, LOOP, PREPARE
from hpc_alpa.step.rows import Rows
from hpc_alpa.step.slots import DependsOnInputsOnly, NeededInLoop, Slots, analyse, time_strategies
from hpc_alpa.transform.simplify import simplify


@dataclass(frozen=True)
class StepGraph:
    """The graph of one step with its loop over microbatches.

    Attributes:
        graph: phases `prepare` (once), `forward` and `backward` (once a slot), `apply` (once).
        batch: inputs that carry the batch dim first.
        roles: for each value made in the loop, what the time axis does in its equation: a factor,
            or `+0` where the equation passes a sum on.
        renewed: position of an output that is the new value of an input -> that input's position.
        recomputed: numbers of the marked layers that backward makes again (`step.recompute`).
    """

    graph: Graph
    num_microbatches: int
    batch: frozenset[Var]
    roles: Mapping[Var, str]
    renewed: Mapping[int, int] = field(default_factory=dict)
    recomputed: tuple[int, ...] = ()

    @cached_property
    def rows(self) -> Rows:
        """Which dims carry the batch's rows outside the loop."""
        return Rows.of(self.graph, self.batch, self.num_microbatches)


def split_batch(
    graph: Graph,
    batch: Iterable[Var],
    num_microbatches: int,
    renewed: Mapping[int, int] | None = None,
) -> StepGraph:
    """Split a step's graph over time.

    Args:
        graph: the step, traced once and unsplit.
        batch: its inputs with the batch dim first.
        renewed: see `StepGraph`.

    Raises:
        NeedsMicrobatches: when the meaning of the model depends on the number of microbatches.
        TracingError: when a batch dim does not divide.
    """
    batch = frozenset(batch)
    graph = cast_apart(graph)
    for v in (v for v in graph.inputs if v in batch):
        if not v.type.shape or v.type.shape[0] % num_microbatches:
            raise TracingError(
                f"batch input {graph.describe(v)} does not divide into {num_microbatches} "
                f"microbatches: choose a number that divides {v.type.shape[:1]}"
            )
    pulled: set[Var] = set()
    finished: set[Var] = set()
    while True:
        try:
            slots = analyse(graph, batch, num_microbatches, pulled, finished)
            return replace(
                _write(graph, batch, num_microbatches, slots), renewed=dict(renewed or {})
            )
        except DependsOnInputsOnly as early:
            graph, clones = _clone(graph, early.value)
            pulled |= clones
        except NeededInLoop as early:
            finished |= early.values


def _clone(graph: Graph, value: Var) -> tuple[Graph, set[Var]]:
    """Copy what makes `value`, so that it can be computed on the whole batch before the loop."""
    cone: set[Var] = {value}
    for e in reversed(graph.eqns):
        if e.output in cone:
            cone.update(v for v in e.inputs if v in graph.producer)
    fresh = max(v.id for v in graph.values()) + 1
    copy: dict[Var, Var] = {}
    eqns: list[Eqn] = []
    for e in graph.eqns:
        if e.output in cone:
            copy[e.output] = Var(fresh, e.output.type)
            fresh += 1
            made = tuple(copy.get(v, v) for v in e.inputs)
            eqns.append(replace(e, inputs=made, output=copy[e.output], phase=APPLY))
        if e.output != value:
            inputs = tuple(copy[v] if v == value else v for v in e.inputs)
            eqns.append(replace(e, inputs=inputs))
    outputs = tuple(copy[v] if v == value else v for v in graph.outputs)
    return replace(graph, eqns=tuple(eqns), outputs=outputs), set(copy.values())


def _write(graph: Graph, batch: frozenset[Var], num_slots: int, slots: Slots) -> StepGraph:
    writer = _Writer(graph, num_slots, slots)
    for e in graph.eqns:
        writer.equation(e)
    outputs = tuple(writer.outside(v) for v in graph.outputs)
    made = simplify(replace(writer.b.build(outputs), names=graph.names))
    kept = {e.output for e in made.eqns}
    inputs = frozenset(writer.outer[v] for v in batch)
    roles = {v: r for v, r in writer.roles.items() if v in kept}
    step = StepGraph(made, num_slots, inputs, roles)
    for e in made.eqns:
        if e.op.name == "slot" and not step.rows.allows_split_of(e):
            roles[e.output] = IDLE  # cut from a whole value, which every device has
    return step


class _Writer:
    """Writes the step graph: `outer` values live once a step, `inner` ones once a slot."""

    def __init__(self, graph: Graph, num_slots: int, slots: Slots) -> None:
        self.graph, self.num_slots, self.slots = graph, num_slots, slots
        self.b = Builder(first_id=max((v.id for v in graph.values()), default=0) + 1)
        self.outer: dict[Var, Var] = {v: v for v in graph.inputs}
        self.b.inputs = list(graph.inputs)
        self.inner: dict[tuple[Var, ShardingSpec], Var] = {}
        self.roles: dict[Var, str] = {}
        self.before = self._needed_before()
        self.apart = sums_apart(graph, slots)

    def _needed_before(self) -> set[Var]:
        """Values outside the loop that the loop reads, directly or not."""
        needed: set[Var] = set()
        for e in reversed(self.graph.eqns):
            inside = e.output in self.slots.role
            if inside or e.output in needed:
                needed.update(v for v in e.inputs if v not in self.slots.role)
        return needed

    def equation(self, e: Eqn) -> None:
        role = self.slots.role.get(e.output)
        # A forward equation is its own origin: backward equations find their layer by it.
        origin = e.output.id if e.phase == FORWARD else e.origin
        with self.b.noted(origin=origin, layer=e.layer, source=e.source):
            if role is None:
                phase = PREPARE if e.output in self.before else APPLY
                inputs = [self.outside(v) for v in e.inputs]
                with self.b.noted(phase=phase):
                    self.outer[e.output] = self._emit(e, inputs, e.output)
                return
            phase = e.phase if e.phase in LOOP else FORWARD
            spec = self.slots.spec[e.output]
            with self.b.noted(phase=phase):
                needs = self._needs(e, role)
                inputs = [self.inside(v, n) for v, n in zip(e.inputs, needs, strict=True)]
                shape = local_shape(e.output.type.shape, spec, (self.num_slots,))
                made = self._emit(e, inputs, Var(0, e.output.type.with_shape(shape)), spec)
            self.inner[e.output, spec] = made
            self.roles[made] = _role_in_slot(rule_of(e), rule_of(self.b.eqns[-1]), role)

    def _needs(self, e: Eqn, role: str) -> tuple[ShardingSpec, ...]:
        out = self.slots.spec[e.output]
        for s in time_strategies(e, self.num_slots):
            # The only slot may hold a sum that is finished.
            if s.roles == (role,) and s.output.dims == out.dims:
                return s.inputs
        raise AssertionError((e, role))

    def _emit(self, e: Eqn, inputs: list[Var], like: Var, spec: ShardingSpec | None = None) -> Var:
        params = e.params_dict
        if spec is not None and self.num_slots > 1 and any(spec.dims) and e.op.name in LOCATED:
            params["slot_dim"], params["slots"] = _split_dim(spec), self.num_slots
        return self.b.emit(e.op.name, *inputs, type=like.type, **params)

    def inside(self, v: Var, need: ShardingSpec) -> Var:
        """A value as one slot reads it."""
        if v in self.slots.role and self.num_slots == 1:
            need = self.slots.spec[v]  # the only slot has all of it, however it is read
        if (v, need) in self.inner:
            return self.inner[v, need]
        source = self.outside(v)
        producer = self.graph.producer.get(v)
        if not need.is_replicated:
            dim = _split_dim(need)
            with self.b.noted(phase=FORWARD, origin=None):
                made = self.b.slot(source, dim=dim, slots=self.num_slots)
            self.roles[made] = "abcdefg"[dim]
        elif producer is not None and not producer.inputs:
            # A constant is made where it is read: it is cheaper than keeping it.
            with self.b.noted(phase=FORWARD, origin=None):
                made = self.b.emit(
                    producer.op.name, type=producer.output.type, **producer.params_dict
                )
            self.roles[made] = IDLE
        elif not v.type.shape:
            made = source
        else:
            with self.b.noted(phase=PREPARE, origin=None):
                made = self.b.enter(source)
        self.inner[v, need] = made
        return made

    def outside(self, v: Var) -> Var:
        """A value as it is outside the loop, where its sum over the slots is finished."""
        if v in self.outer:
            return self.outer[v]
        spec = self.slots.spec[v]
        inner = self.inner[v, spec]
        producer = self.graph.producer[v]
        phase = producer.phase if producer.phase in LOOP else FORWARD
        origin = producer.output.id if producer.phase == FORWARD else producer.origin
        with self.b.noted(phase=phase, origin=origin, layer=producer.layer):
            if v in self.apart:
                # Each part is summed over the slots where it is made.
                parts = [self.outside(u) for u in producer.inputs]
                with self.b.noted(phase=APPLY):
                    made = self.b.add(*parts)
            elif spec.partial:
                name = "accumulate" if spec.kind == "+" else "accumulate_max"
                made = self.b.emit(name, inner, slots=self.num_slots)
                self.roles[made] = spec.kind + "0"
            elif spec.is_replicated:
                made = self.b.accumulate(inner, slots=self.num_slots)
                self.roles[made] = IDLE
            else:
                dim = _split_dim(spec)
                made = self.b.stack(inner, dim=dim, slots=self.num_slots)
                self.roles[made] = "abcdefg"[dim]
        self.outer[v] = made
        return made


def _role_in_slot(whole: Rule, slot: Rule, role: str) -> str:
    """What of a slot's equation is left to split of a factor that time splits.

    A dim that is a group of factors may have the next one left, and what a slot has one of is no
    factor of it: IDLE.
    """
    if role not in whole.sizes:
        return role
    sides = zip((whole.output, *whole.inputs), (slot.output, *slot.inputs), strict=True)
    left = (f for dims, here in sides for k, dim in zip(dims, here) if role in k for f in dim)
    return next((f for f in left if slot.sizes[f] > 1), IDLE)


# Operators whose result depends on where a tile lies; `slot_dim` and `slots` say which of its dims
# is split over time. A device's tile of slot m starts m slots further on in the whole value.
LOCATED = ("dispatch", "iota", "random_bits", "softmax", "softmax_grad", "scatter_add", "unpick")


def _split_dim(spec: ShardingSpec) -> int:
    return next(d for d, axes in enumerate(spec.dims) if axes)
