"""Microbatches: the batch factor split over time.

The rule language that splits a factor over devices splits the batch over B slots of time. `analyse`
finds, for every value, how it lies over the slots: the same in all (R), one part in each (S0), or a term
of a sum or of a max in each (+P0, +M0). `split_batch` writes the graph of the step: what is computed once
before the loop, what runs in every slot, what needs the loop's sums, with a boundary equation wherever a
value enters or leaves the loop (`ops.boundary`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from hpc_alpa.errors import TracingError
from hpc_alpa.ir.build import Builder
from hpc_alpa.ir.graph import Eqn, Graph, Var
from hpc_alpa.sharding.spec import ShardingSpec, local_shape
from hpc_alpa.sharding.strategies import IDLE, Strategy, apply_roles, possible_roles, rule_of
from hpc_alpa.transform.simplify import simplify

PREPARE, FORWARD, BACKWARD, APPLY = "prepare", "forward", "backward", "apply"
LOOP = (FORWARD, BACKWARD)


class NeedsMicrobatches(TracingError):
    """The number of microbatches is part of this model's meaning.

    A value that needs the whole batch (a batch norm's mean, a balance loss) is consumed inside the loop
    over microbatches, so several of them compute something else: their number is asked for, not
    searched. One microbatch keeps the meaning of the unsplit step.
    """


@dataclass(frozen=True)
class StepGraph:
    """The graph of one step with its loop over microbatches.

    Attributes:
        graph: phases `prepare` (once), `forward` and `backward` (once a slot), `apply` (once).
        batch: inputs that carry the batch dim first.
        roles: for each value made in the loop, what the time axis does in its equation: a factor, or
            `+0` where the equation passes a sum on.
        renewed: position of an output that is the new value of an input -> that input's position.
    """

    graph: Graph
    num_microbatches: int
    batch: frozenset[Var]
    roles: Mapping[Var, str]
    renewed: Mapping[int, int] = field(default_factory=dict)


@dataclass
class Slots:
    """What `analyse` finds: how values lie over time, and where each equation belongs."""

    spec: dict[Var, ShardingSpec]
    role: dict[Var, str]
    post: set[Var]


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
    for v in batch:
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
        except _DependsOnInputsOnly as early:
            graph, clones = _clone(graph, early.value)
            pulled |= clones
        except _NeededInLoop as early:
            finished |= early.values


class _DependsOnInputsOnly(Exception):
    """A sum over the batch of inputs alone (a token count) is needed inside the loop."""

    def __init__(self, value: Var) -> None:
        self.value = value


class _NeededInLoop(Exception):
    """Sums over the batch that the only slot has finished as soon as it has made them."""

    def __init__(self, values: set[Var]) -> None:
        self.values = values


def time_strategies(e: Eqn, num_slots: int) -> tuple[Strategy, ...]:
    """The ways to run an equation over slots of time; one slot is a split too.

    Several slots cannot share the statistics of a fused operator (`k!`), nor can a slot be told
    where its part of a table starts (`v@` of operands alone).
    """
    rule = rule_of(e)
    roles = possible_roles(rule)
    if num_slots == 1:
        roles += [f for f, n in rule.sizes.items() if n == 1 and not rule.marked(f, "^")]
    else:
        whole = {f for f in rule.sizes if rule.marked(f, "!")} | set(rule.located)
        roles = [r for r in roles if r not in whole]
    found = (apply_roles(rule, (r,), (num_slots,)) for r in roles)
    return tuple(s for s in found if s is not None)


def analyse(
    graph: Graph,
    batch: frozenset[Var],
    num_slots: int,
    pulled: set[Var],
    finished: set[Var] | frozenset[Var] = frozenset(),
) -> Slots:
    """How every value lies over time.

    Values in `pulled` are computed before the loop. Those in `finished` are sums over the batch that
    the only slot reads whole.
    """
    mesh = (num_slots,)
    slots = Slots({}, {}, set())
    learned = _depends_on_state(graph, batch)
    read_in_loop = _read_in_loop(graph)
    consumed_whole: set[Var] = set()
    for v in graph.inputs:
        split = ((0,),) + ((),) * (v.type.ndim - 1) if v in batch else ((),) * v.type.ndim
        slots.spec[v] = ShardingSpec(split)

    def fixed(v: Var) -> bool:
        return slots.spec[v].is_replicated and v not in slots.post

    for e in graph.eqns:
        out = e.output
        whole = ShardingSpec.replicated(out.type.ndim)
        if out in pulled or all(fixed(v) and v not in slots.role for v in e.inputs):
            slots.spec[out] = whole
            continue
        late = [v for v in e.inputs if v in slots.post]
        looped = e.phase != APPLY or out in read_in_loop
        if not late and looped:
            if all(map(fixed, e.inputs)):
                # Finished sums of the only slot, and what is made of them.
                slots.spec[out], slots.role[out] = whole, IDLE
                continue
            found = _fitting(e, mesh, slots, graph, consumed_whole)
            if found is not None:
                slots.spec[out], slots.role[out] = found.output, found.roles[0]
                if out in finished:
                    slots.spec[out] = found.output.resolved()
                consumed_whole.update(v for v in e.inputs if fixed(v))
                continue
        if looped:
            partial = [v for v in e.inputs if slots.spec[v].partial]
            for v in (*late, *partial):
                if v not in learned:
                    raise _DependsOnInputsOnly(v)
            if num_slots == 1 and partial:
                raise _NeededInLoop({_first_partial(v, slots, graph) for v in partial})
            if num_slots == 1 and not late:
                slots.spec[out], slots.role[out] = _gathering(e, mesh, slots)
                continue
            parts = [v for v in e.inputs if any(slots.spec[v].dims)]
            if parts:
                raise _needs(e, graph, parts[0], [*late, *partial], num_slots)
        slots.spec[out] = whole
        slots.post.add(out)
    return slots


def _read_in_loop(graph: Graph) -> set[Var]:
    """What the loss and its gradients read, directly or not, wherever it was written."""
    found: set[Var] = set()
    for e in reversed(graph.eqns):
        if e.phase in LOOP or e.output in found:
            found.update(e.inputs)
    return found


def _needs(
    e: Eqn, graph: Graph, split: Var, finished: list[Var], num_slots: int
) -> NeedsMicrobatches:
    other = f"the finished {graph.describe(finished[0])}" if finished else "a whole batch"
    return NeedsMicrobatches(
        f"{e.op.name} at {e.source or 'unknown line'} needs {other}, and meets "
        f"{graph.describe(split)}, which is split into {num_slots} microbatches: the number of "
        "microbatches is part of this model's meaning. Give num_microbatches=1 to parallelize, "
        "which keeps the meaning of the unsplit step."
    )


def _first_partial(v: Var, slots: Slots, graph: Graph) -> Var:
    """The sum over the batch that a partial value comes from."""
    while slots.role[v][0] in "+>":
        v = next(u for u in graph.producer[v].inputs if slots.spec[u].partial)
    return v


def _gathering(e: Eqn, mesh: tuple[int], slots: Slots) -> tuple[ShardingSpec, str]:
    """How the only slot runs what no slot of several could: it reads some operands whole.

    Devices that split the batch gather these operands.
    """
    have = [slots.spec[v] for v in e.inputs]
    best: tuple[int, Strategy] | None = None
    for s in time_strategies(e, mesh[0]):
        same = [h == n for h, n in zip(have, s.inputs, strict=True)]
        split = any(m and any(n.dims) for m, n in zip(same, s.inputs, strict=True))
        rest_whole = all(m or n.is_replicated for m, n in zip(same, s.inputs, strict=True))
        if split and rest_whole and (best is None or sum(same) > best[0]):
            best = sum(same), s
    if best is None or best[1].output.partial:
        return ShardingSpec.replicated(e.output.type.ndim), IDLE
    return best[1].output, best[1].roles[0]


def _fitting(
    e: Eqn, mesh: tuple[int], slots: Slots, graph: Graph, consumed_whole: set[Var]
) -> Strategy | None:
    """The way to run an equation in one slot without communication between slots."""
    best: tuple[int, Strategy] | None = None
    for s in time_strategies(e, mesh[0]):
        if s.roles[0] == IDLE:
            continue
        sliced = 0
        for v, need in zip(e.inputs, s.inputs, strict=True):
            have = slots.spec[v]
            if have == need:
                continue
            if have.is_replicated and any(need.dims):
                sliced += 1
            else:
                break
        else:
            if best is None or sliced < best[0]:
                best = sliced, s
    if best is None:
        return None
    for v, need in zip(e.inputs, best[1].inputs, strict=True):
        if slots.spec[v] != need:
            _make_in_slot(v, need, mesh, slots, graph, consumed_whole)
    return best[1]


def _make_in_slot(
    v: Var,
    need: ShardingSpec,
    mesh: tuple[int],
    slots: Slots,
    graph: Graph,
    consumed_whole: set[Var],
) -> None:
    """Make a mask, random values or a broadcast in the slot instead of slicing a whole one."""
    moved: dict[Var, Strategy] = {}
    if not _movable(v, need, mesh, slots, graph, consumed_whole, moved):
        return
    for u in moved:
        # Nothing outside the loop may wait for what the loop makes.
        for reader in graph.readers[u]:
            w = reader.output
            if w in slots.spec and w not in slots.role and w not in moved:
                return
    for u, s in moved.items():
        slots.spec[u], slots.role[u] = s.output, s.roles[0]


def _movable(
    v: Var,
    need: ShardingSpec,
    mesh: tuple[int],
    slots: Slots,
    graph: Graph,
    consumed_whole: set[Var],
    moved: dict[Var, Strategy],
) -> bool:
    """Whether a slot can make its part of a value; `moved` gets the equations that do."""
    if v in moved:
        return moved[v].output == need
    if slots.spec[v] == need:
        return True
    e = graph.producer.get(v)
    if e is None or v in consumed_whole or v in slots.role:
        return False
    for s in time_strategies(e, mesh[0]):
        if s.output != need:
            continue
        tried = dict(moved) | {v: s}
        pairs = list(zip(e.inputs, s.inputs, strict=True))
        if all(n.is_replicated and slots.spec[u].is_replicated for u, n in pairs) or all(
            _movable(u, n, mesh, slots, graph, consumed_whole, tried) for u, n in pairs
        ):
            moved.update(tried)
            return True
    return False


def _depends_on_state(graph: Graph, batch: frozenset[Var]) -> set[Var]:
    """Values that depend on anything but the batch and constants."""
    found = {v for v in graph.inputs if v not in batch}
    for e in graph.eqns:
        if any(v in found for v in e.inputs):
            found.add(e.output)
    return found


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
    return StepGraph(
        made,
        num_slots,
        frozenset(writer.outer[v] for v in batch),
        {v: r for v, r in writer.roles.items() if v in kept},
    )


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
            self.roles[made] = role

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
            if spec.partial:
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


# Operators whose result depends on where a tile lies; `slot_dim` and `slots` say which of its dims is
# split over time. A device's tile of slot m starts m slots further on in the whole value.
LOCATED = ("iota", "random_bits", "softmax", "softmax_grad", "scatter_add", "unpick")


def _split_dim(spec: ShardingSpec) -> int:
    return next(d for d, axes in enumerate(spec.dims) if axes)
