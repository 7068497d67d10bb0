"""What a device holds at every point of a step, as terms of a stage's choice program.

    points    the stage's equations in the order in which they run, and the end of the step
    spans     term, first and last point, bytes: a value's tile, a conversion's copy, a held copy

A stage that holds f microbatches at once holds, at every point of the loop, f - 1 times what
forward keeps for backward. A span ends with the last reader of its value or of a view of it. With
several microbatches, what the loop reads from outside stays until the loop ends, and sums are under
way from its beginning. What a kernel needs while it runs, and messages under way, the simulator
counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hpc_alpa.ir.graph import Eqn, Var
from hpc_alpa.plan.solve.problem import (
    Assignment,
    FloatArray,
    IntArray,
    MemoryRow,
    Problem,
    Window,
    holdable_copies,
    needed_cells,
)
from hpc_alpa.sharding import ShardingSpec, num_tiles
from hpc_alpa.step import APPLY, BACKWARD, FORWARD, LOOP, PREPARE, StageGraph
from hpc_alpa.step.phase import FINISHED

ORDER = (PREPARE, FORWARD, BACKWARD, APPLY)
PHASE_OF = dict(zip((Window.PREPARE, Window.FORWARD, Window.BACKWARD, Window.APPLY), ORDER))
ROWS_AT_ONCE = 3  # peaks that one solution adds
Span = tuple[int, int]  # first and last point


@dataclass(frozen=True, eq=False)
class Liveness:
    """Bytes of a step's terms from their first to their last point.

    Attributes:
        points: what happens at each point, for messages.
    """

    term: IntArray
    first: IntArray
    last: IntArray
    nbytes: FloatArray
    points: tuple[str, ...]

    def profile(self, active: IntArray) -> FloatArray:
        """Bytes at each point under the active terms."""
        here = np.isin(self.term, active)
        change = np.zeros(len(self.points) + 1)
        np.add.at(change, self.first[here], self.nbytes[here])
        np.add.at(change, self.last[here] + 1, -self.nbytes[here])
        held: FloatArray = np.cumsum(change)[:-1]
        return held

    def row(self, point: int, limit: float) -> MemoryRow:
        """What is held at a point, as a row of the choice program."""
        here = (self.first <= point) & (point <= self.last)
        name = f"memory of a device at {self.points[point]}"
        return MemoryRow(name, limit, self.term[here], self.nbytes[here])

    def peaks(self, active: IntArray, limit: float) -> list[int]:
        """Points over the limit: the highest of every rise, the worst few."""
        held = self.profile(active)
        over = np.flatnonzero(held > limit * (1 + 1e-9))
        if not over.size:
            return []
        rises = np.split(over, np.flatnonzero(np.diff(over) > 1) + 1)
        tops = [int(rise[held[rise].argmax()]) for rise in rises]
        return sorted(tops, key=lambda p: -held[p])[:ROWS_AT_ONCE]


def liveness(
    draft: Problem,
    stage: StageGraph,
    produced: Callable[[int], Sequence[ShardingSpec]],
    classes: Sequence[tuple[Sequence[ShardingSpec], Sequence[ShardingSpec]]],
    mesh: tuple[int, ...],
    num_microbatches: int,
    in_flight: int,
) -> Liveness:
    """All spans of a stage.

    Args:
        draft: nodes are the stage graph's inputs, equations and outputs, in this order.
        produced: the specs of a node's value under its choices.
        classes: of each value of the draft, the specs that it is made in and those needed.
        in_flight: microbatches whose activations the stage holds at once.
    """
    return _Spans(draft, stage, produced, classes, mesh, num_microbatches, in_flight).collect()


def active_terms(problem: Problem, assignment: Assignment) -> IntArray:
    """The terms of an assignment: its choices, their copies, and those held."""
    choices = np.array(assignment.choices, np.int64)
    first, num_cells = problem.choice_offset[-1], problem.cell_offset[-1]
    held = [term for k, t, term in holdable_copies(problem, choices) if (k, t) in assignment.held]
    return np.concatenate(
        [problem.choice_offset[:-1] + choices]
        + [first + window * num_cells + needed_cells(problem, choices, window) for window in Window]
        + [np.array(held, np.int64)]
    )


@dataclass
class _Spans:
    draft: Problem
    stage: StageGraph
    produced: Callable[[int], Sequence[ShardingSpec]]
    classes: Sequence[tuple[Sequence[ShardingSpec], Sequence[ShardingSpec]]]
    mesh: tuple[int, ...]
    num_microbatches: int
    in_flight: int

    def collect(self) -> Liveness:
        parts: list[tuple[IntArray, IntArray, FloatArray]] = []
        for (first, last), terms, nbytes in self._all():
            span = np.tile([first, last], (len(terms), 1))
            parts.append((terms, span, nbytes))
        terms, spans, amounts = (np.concatenate(part) for part in zip(*parts, strict=True))
        points = (*(f"{e.op.name} {e.source}" for e in self.order), "the end of a step")
        return Liveness(terms, spans[:, 0], spans[:, 1], amounts, points)

    def _all(self) -> Iterator[tuple[Span, IntArray, FloatArray]]:
        graph = self.stage.graph
        for node, v in enumerate((*graph.inputs, *(e.output for e in graph.eqns))):
            spans = list(self._spans(v))
            if spans:
                tiles = np.array([self._tiles(s) for s in self.produced(node)], np.float64)
                for span, count in spans:
                    yield span, self.draft.choice_terms(node), count * v.type.nbytes / tiles
        for k, (made, needed) in enumerate(self.classes):
            yield from self._copies(k, made, needed)

    # ------------------------------------------------------------------------------ positions
    @cached_property
    def order(self) -> tuple[Eqn, ...]:
        """The equations as they run."""
        return tuple(e for phase in ORDER for e in self.stage.graph.eqns if e.phase == phase)

    @cached_property
    def at(self) -> dict[Var, int]:
        """The point that makes each value."""
        return {e.output: k for k, e in enumerate(self.order)}

    @cached_property
    def loop(self) -> Span:
        """First and last point of the loop over microbatches."""
        inside = [k for k, e in enumerate(self.order) if e.phase in LOOP]
        return (inside[0], inside[-1]) if inside else (0, -1)

    @property
    def end(self) -> int:
        return len(self.order)

    @cached_property
    def last(self) -> dict[Var, int]:
        """The point after which each value, and what looks at its memory, is not read again."""
        graph = self.stage.graph
        results = {v for _, v in self.stage.results}
        found = dict.fromkeys(graph.values(), -1)
        found.update(dict.fromkeys(results, self.end))
        for e in reversed(self.order):
            until = self.at[e.output]
            if self._is_view(e):
                until = max(until, found[e.output])
            for v in e.inputs:
                found[v] = max(found[v], until)
        for v, place in self.at.items():
            found[v] = max(found[v], place)
        return found

    def _is_view(self, e: Eqn) -> bool:
        return e.op.view or (e.op.name in FINISHED and e.params_dict.get("slots") == 1)

    @cached_property
    def views(self) -> frozenset[Var]:
        return frozenset(e.output for e in self.order if self._is_view(e))

    @cached_property
    def looped(self) -> frozenset[Var]:
        """Values that every microbatch has of its own."""
        made = {e.output for e in self.order if e.phase in LOOP and e.op.name not in FINISHED}
        return frozenset(made | {t.value for t in self.stage.received if t.phase in LOOP})

    @cached_property
    def forward_end(self) -> int:
        return max((k for k, e in enumerate(self.order) if e.phase == FORWARD), default=-1)

    # ---------------------------------------------------------------------------------- spans
    def _spans(self, v: Var) -> Iterator[tuple[Span, int]]:
        """When a value is held, and how many of it."""
        if v in self.views:
            return
        last = self.last[v]
        if v not in self.looped:
            yield self._once(v, last), 1
            return
        first = self.at.get(v)
        if first is None:  # received: when its phase first reads it
            first = min((self.at[e.output] for e in self.stage.graph.readers[v]), default=last)
        if last < first:
            return
        yield (first, last), 1
        if self.in_flight > 1 and first <= self.forward_end < last:
            yield self.loop, self.in_flight - 1

    def _once(self, v: Var, last: int) -> Span:
        """When a value is held that all microbatches share."""
        first = self.at.get(v, 0)
        if self.num_microbatches > 1:
            if self.loop[0] <= last <= self.loop[1]:
                last = self.loop[1]
            if self.loop[0] <= first <= self.loop[1]:  # a sum over the slots
                first = self.loop[0]
        return first, max(first, last)

    def _copies(
        self, k: int, made: Sequence[ShardingSpec], needed: Sequence[ShardingSpec]
    ) -> Iterator[tuple[Span, IntArray, FloatArray]]:
        value = self.draft.values[k]
        v = self._values[value.producer]
        moved = np.array([[p != t for t in needed] for p in made])
        if not moved.any():
            return
        tiles = np.array([self._tiles(t) for t in needed], np.float64)
        nbytes = np.where(moved, v.type.nbytes / tiles, 0.0).ravel()
        keep = nbytes > 0
        spans: dict[Window, Span] = {}
        for reader in value.readers:
            point = self._point(reader.node)
            low, high = spans.get(reader.window, (point, point))
            spans[reader.window] = min(low, point), max(high, point)
        for window, (first, last) in spans.items():
            if PHASE_OF[window] not in LOOP:
                first = self._phase_start(PHASE_OF[window])  # with the others of its bucket
            yield (first, last), self.draft.copy_terms(k, window).ravel()[keep], nbytes[keep]
        if value.holdable:
            gap = spans[Window.FORWARD][1] + 1, spans[Window.BACKWARD][0] - 1
            terms = self.draft.held_terms(k).ravel()[keep]
            if gap[0] <= gap[1]:
                yield gap, terms, nbytes[keep]
            if self.in_flight > 1:
                yield self.loop, terms, (self.in_flight - 1) * nbytes[keep]

    @cached_property
    def _values(self) -> tuple[Var, ...]:
        graph = self.stage.graph
        return (*graph.inputs, *(e.output for e in graph.eqns))

    def _point(self, node: int) -> int:
        """Where a node of the draft runs."""
        number = len(self.stage.graph.inputs)
        eqns = self.stage.graph.eqns
        if node - number < len(eqns):
            return self.at[eqns[node - number].output]
        v = self.stage.graph.outputs[node - number - len(eqns)]
        made = self.stage.graph.producer.get(v)
        sent = node - number - len(eqns) >= len(self.stage.results)
        return self.at[v] if sent and made is not None else self.end

    def _phase_start(self, phase: str) -> int:
        return next((k for k, e in enumerate(self.order) if e.phase == phase), self.end)

    def _tiles(self, spec: ShardingSpec) -> int:
        return num_tiles(spec.split_axes, self.mesh)
