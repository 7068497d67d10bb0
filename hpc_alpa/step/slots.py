"""How the values of a step lie over the slots of time, and which equations run in a slot.

Time is one more mesh axis, and slots do not communicate: a value is the same in all slots (R), one
part in each (S0), or a term of a sum or of a max in each (+P0, +M0). An equation runs in a slot
where its rule has a strategy over time whose operands lie as they do. What needs a finished sum
runs after the loop; where the loss or its gradients need one, the number of microbatches is part of
the model's meaning.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

from hpc_alpa.errors import TracingError
from hpc_alpa.ir.graph import Eqn, Graph, Var
from hpc_alpa.sharding.spec import ShardingSpec
from hpc_alpa.sharding.strategies import IDLE, Strategy, apply_roles, possible_roles, rule_of
from hpc_alpa.step.phase import APPLY, LOOP

Placed = tuple[ShardingSpec, str]  # how a value of the loop lies over time, and its equation's role


class NeedsMicrobatches(TracingError):
    """The number of microbatches is part of this model's meaning.

    A value that needs the whole batch (a batch norm's mean, a balance loss) is consumed inside the
    loop over microbatches, so several of them compute something else: their number is asked for,
    not searched. One microbatch keeps the meaning of the unsplit step.
    """


class DependsOnInputsOnly(Exception):
    """A sum over the batch of inputs alone (a token count) is needed inside the loop."""

    def __init__(self, value: Var) -> None:
        self.value = value


class NeededInLoop(Exception):
    """Sums over the batch that the only slot has finished as soon as it has made them."""

    def __init__(self, values: set[Var]) -> None:
        self.values = values


@dataclass
class Slots:
    """What `analyse` finds.

    Attributes:
        spec: how each value lies over time, on the mesh (num_slots,).
        role: what time does in the equation of each value that is made in the loop.
        post: values made after the loop.
    """

    spec: dict[Var, ShardingSpec] = field(default_factory=dict)
    role: dict[Var, str] = field(default_factory=dict)
    post: set[Var] = field(default_factory=set)


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
    graph: Graph, batch: Set[Var], num_slots: int, pulled: Set[Var], finished: Set[Var]
) -> Slots:
    """Place every equation of a step.

    Args:
        batch: inputs with the batch dim first.
        pulled: values that are computed before the loop.
        finished: sums over the batch that the only slot reads whole.

    Raises:
        NeedsMicrobatches: the meaning of the model depends on the number of microbatches.
        DependsOnInputsOnly: pull the value, and analyse again.
        NeededInLoop: the only slot finishes these sums; analyse again.
    """
    analysis = _Analysis(graph, batch, num_slots, pulled, finished)
    for e in graph.eqns:
        analysis.place(e)
    return analysis.slots


class _Analysis:
    def __init__(
        self, graph: Graph, batch: Set[Var], num_slots: int, pulled: Set[Var], finished: Set[Var]
    ) -> None:
        self.graph, self.num_slots, self.pulled, self.finished = graph, num_slots, pulled, finished
        self.slots = Slots()
        self.spec, self.role, self.post = self.slots.spec, self.slots.role, self.slots.post
        self.learned = _depends_on_state(graph, batch)
        self.read_in_loop = _read_in_loop(graph)
        self.consumed_whole: set[Var] = set()
        for v in graph.inputs:
            whole = ShardingSpec.replicated(v.type.ndim)
            self.spec[v] = whole.with_dim(0, (0,)) if v in batch else whole

    def place(self, e: Eqn) -> None:
        """Before the loop, in it, or after it."""
        out = e.output
        before = all(self.fixed(v) and v not in self.role for v in e.inputs)
        if not before and out not in self.pulled:
            if e.phase != APPLY or out in self.read_in_loop:
                placed = self.in_slot(e)
                if placed is not None:
                    self.spec[out], self.role[out] = placed
                    return
            self.post.add(out)
        self.spec[out] = ShardingSpec.replicated(out.type.ndim)

    def fixed(self, v: Var) -> bool:
        """The same in every slot."""
        return self.spec[v].is_replicated and v not in self.post

    def in_slot(self, e: Eqn) -> Placed | None:
        """How a slot runs an equation that the loss or its gradients read; None: after the loop."""
        late = [v for v in e.inputs if v in self.post]
        if not late:
            if all(map(self.fixed, e.inputs)):
                # Finished sums of the only slot, and what is made of them.
                return ShardingSpec.replicated(e.output.type.ndim), IDLE
            found = self.fitting(e)
            if found is not None:
                self.consumed_whole.update(v for v in e.inputs if self.fixed(v))
                spec = found.output
                return spec.resolved() if e.output in self.finished else spec, found.roles[0]
        partial = [v for v in e.inputs if self.spec[v].partial]
        for v in (*late, *partial):
            if v not in self.learned:
                raise DependsOnInputsOnly(v)
        if self.num_slots == 1:
            if partial:
                raise NeededInLoop({self.first_partial(v) for v in partial})
            if not late:
                return self.gathering(e)
        split = [v for v in e.inputs if any(self.spec[v].dims)]
        if split:
            raise self.needs(e, split[0], [*late, *partial])
        return None

    def needs(self, e: Eqn, split: Var, finished: list[Var]) -> NeedsMicrobatches:
        describe = self.graph.describe
        other = f"the finished {describe(finished[0])}" if finished else "a whole batch"
        return NeedsMicrobatches(
            f"{e.op.name} at {e.source or 'unknown line'} needs {other}, and meets "
            f"{describe(split)}, which is split into {self.num_slots} microbatches: the number of "
            "microbatches is part of this model's meaning. Give num_microbatches=1 to parallelize, "
            "which keeps the meaning of the unsplit step."
        )

    def first_partial(self, v: Var) -> Var:
        """The sum over the batch that a partial value comes from."""
        while self.role[v][0] in "+>":
            v = next(u for u in self.graph.producer[v].inputs if self.spec[u].partial)
        return v

    def gathering(self, e: Eqn) -> Placed:
        """How the only slot runs what no slot of several could: it reads some operands whole.

        Devices that split the batch gather these operands.
        """
        have = [self.spec[v] for v in e.inputs]
        best: tuple[int, Strategy] | None = None
        for s in time_strategies(e, 1):
            same = [h == n for h, n in zip(have, s.inputs, strict=True)]
            split = any(m and any(n.dims) for m, n in zip(same, s.inputs, strict=True))
            rest_whole = all(m or n.is_replicated for m, n in zip(same, s.inputs, strict=True))
            if split and rest_whole and (best is None or sum(same) > best[0]):
                best = sum(same), s
        if best is None or best[1].output.partial:
            return ShardingSpec.replicated(e.output.type.ndim), IDLE
        return best[1].output, best[1].roles[0]

    def fitting(self, e: Eqn) -> Strategy | None:
        """The way to run an equation in one slot without communication between slots.

        A value that is whole may be sliced in the slot; of several ways the one that slices least.
        """
        best: tuple[int, Strategy] | None = None
        for s in time_strategies(e, self.num_slots):
            if s.roles[0] == IDLE:
                continue
            differ = [
                (self.spec[v], n)
                for v, n in zip(e.inputs, s.inputs, strict=True)
                if self.spec[v] != n
            ]
            sliceable = all(have.is_replicated and any(need.dims) for have, need in differ)
            if sliceable and (best is None or len(differ) < best[0]):
                best = len(differ), s
        if best is None:
            return None
        for v, need in zip(e.inputs, best[1].inputs, strict=True):
            if self.spec[v] != need:
                self.make_in_slot(v, need)
        return best[1]

    def make_in_slot(self, v: Var, need: ShardingSpec) -> None:
        """Make a mask, random values or a broadcast in the slot instead of slicing a whole one."""
        moved: dict[Var, Strategy] = {}
        if not self.movable(v, need, moved):
            return
        for u in moved:
            # Nothing outside the loop may wait for what the loop makes.
            for reader in self.graph.readers[u]:
                w = reader.output
                if w in self.spec and w not in self.role and w not in moved:
                    return
        for u, s in moved.items():
            self.spec[u], self.role[u] = s.output, s.roles[0]

    def movable(self, v: Var, need: ShardingSpec, moved: dict[Var, Strategy]) -> bool:
        """Whether a slot can make its part of a value; `moved` gets the equations that do."""
        if v in moved:
            return moved[v].output == need
        if self.spec[v] == need:
            return True
        e = self.graph.producer.get(v)
        if e is None or v in self.consumed_whole or v in self.role:
            return False
        for s in time_strategies(e, self.num_slots):
            if s.output != need:
                continue
            tried = moved | {v: s}
            pairs = list(zip(e.inputs, s.inputs, strict=True))
            if all(n.is_replicated and self.spec[u].is_replicated for u, n in pairs) or all(
                self.movable(u, n, tried) for u, n in pairs
            ):
                moved.update(tried)
                return True
        return False


def _read_in_loop(graph: Graph) -> set[Var]:
    """What the loss and its gradients read, directly or not, wherever it was written."""
    found: set[Var] = set()
    for e in reversed(graph.eqns):
        if e.phase in LOOP or e.output in found:
            found.update(e.inputs)
    return found


def _depends_on_state(graph: Graph, batch: Set[Var]) -> set[Var]:
    """Values that depend on anything but the batch and constants."""
    found = {v for v in graph.inputs if v not in batch}
    for e in graph.eqns:
        if any(v in found for v in e.inputs):
            found.add(e.output)
    return found
