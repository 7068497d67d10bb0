"""What a device holds at every point of a step, as terms of a stage's choice program.

    points    the stage's equations in the order in which they run, and the end of the step
    spans     from a first to a last point: a node's tile, a conversion's copy, a copy that is held

A stage that holds f microbatches at once holds, at every point of the loop, f - 1 times what
forward keeps for backward. A span ends with the last reader of its value or of a view of it. With
several microbatches, what the loop reads from outside stays until the loop ends, and sums are under
way from its beginning. What a kernel needs while it runs, and messages under way, the simulator
counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np

from hpc_alpa.ir.graph import Eqn, Var
from hpc_alpa.plan.solve.problem import (
    Assignment,
    FloatArray,
    IntArray,
    MemoryRow,
    Problem,
    Window,
    concatenate,
    needed_cells,
)
from hpc_alpa.plan.values import Form
from hpc_alpa.sharding import ShardingSpec, num_tiles
from hpc_alpa.step import APPLY, BACKWARD, FORWARD, LOOP, PREPARE, StageGraph
from hpc_alpa.step.phase import FINISHED

ORDER = (PREPARE, FORWARD, BACKWARD, APPLY)
PHASE_OF = dict(zip((Window.PREPARE, Window.FORWARD, Window.BACKWARD, Window.APPLY), ORDER))
ROWS_AT_ONCE = 3  # peaks that one solution adds
HELD = "held"
Points = tuple[int, int]  # a first and a last one


@dataclass(frozen=True)
class Span:
    """Something that is held from a point to another.

    Attributes:
        of: a node, or the number of a value.
        kind: None for a node's tile; the window of a copy; HELD for one that stays for backward.
        count: how many are held at once.
    """

    first: int
    last: int
    of: int
    kind: Window | str | None = None
    count: int = 1


@dataclass(frozen=True, eq=False)
class Liveness:
    """The spans of a stage, and the bytes of each under every choice.

    Attributes:
        draft: nodes are the stage graph's inputs, equations and outputs, in this order.
        tiles: bytes of a node's tile under each of its choices.
        copies: bytes of a value's copy [made, needed]; 0 where nothing is to convert.
        points: what happens at each point, for messages.
    """

    draft: Problem
    spans: tuple[Span, ...]
    tiles: Callable[[int], FloatArray]
    copies: Callable[[int], FloatArray]
    points: tuple[str, ...]

    def profile(self, assignment: Assignment) -> FloatArray:
        """Bytes at each point."""
        first, last, of, kind, count = self._flat
        choices = np.array(assignment.choices, np.int64)
        tile, copy = kind < 0, kind >= 0
        amount = np.zeros(len(of))
        amount[tile] = self._tile_bytes[self.draft.choice_offset[of[tile]] + choices[of[tile]]]
        amount[copy] = self._copies_made(assignment)[kind[copy], of[copy]]
        amount *= count
        size = len(self.points) + 1
        change = np.bincount(first, amount, size) - np.bincount(last + 1, amount, size)
        held: FloatArray = np.cumsum(change)[:-1]
        return held

    def content(self) -> tuple[object, ...]:
        """Arrays that say all that it counts."""
        return (*self._flat, self._tile_bytes, self._copy_bytes)

    @cached_property
    def _flat(self) -> tuple[IntArray, IntArray, IntArray, IntArray, IntArray]:
        """The spans as arrays: first, last, of, kind, count; a node's tile is of kind -1."""
        number: dict[Window | str | None, int] = {None: -1, HELD: len(Window)}
        number.update((w, int(w)) for w in Window)
        rows = [(s.first, s.last, s.of, number[s.kind], s.count) for s in self.spans]
        return tuple(np.array(rows, np.int64).reshape(-1, 5).T)  # type: ignore[return-value]

    @cached_property
    def _tile_bytes(self) -> FloatArray:
        """Of each choice of the nodes that make values, which come first."""
        number = max((s.of + 1 for s in self.spans if s.kind is None), default=0)
        return concatenate([self.tiles(node) for node in range(number)])

    @cached_property
    def _copy_bytes(self) -> FloatArray:
        """Of each cell (value, made, needed)."""
        return concatenate([self.copies(k).ravel() for k in range(len(self.draft.values))])

    def _copies_made(self, assignment: Assignment) -> FloatArray:
        """Bytes of the copies [window, value]; the last row is what stays for backward."""
        draft, choices = self.draft, assignment.choices
        offset, num_values = draft.cell_offset, len(draft.values)
        found = np.zeros((len(Window) + 1, num_values))
        for window in Window:
            cells = needed_cells(draft, choices, window)
            values = np.searchsorted(offset, cells, side="right") - 1
            found[window] = np.bincount(values, self._copy_bytes[cells], num_values)
        for k, t in assignment.held:
            value = draft.values[k]
            found[-1, k] += self.copies(k)[value.produced[choices[value.producer]], t]
        return found

    def apart(self) -> tuple[Liveness, Liveness]:
        """What is held once, and what for each further microbatch in flight.

        Of a stage that holds three microbatches, so that the two can be told apart.
        """
        once = tuple(s for s in self.spans if s.count == 1)
        each = tuple(replace(s, count=1) for s in self.spans if s.count == 2)
        return replace(self, spans=once), replace(self, spans=each)

    def row(self, point: int, limit: float) -> MemoryRow:
        """What is held at a point, as a row of the choice program."""
        terms, nbytes = [np.empty(0, np.int64)], [np.empty(0)]
        for s in self.spans:
            if s.first <= point <= s.last:
                of, each = self._terms(s)
                terms.append(of)
                nbytes.append(s.count * each)
        name = f"memory of a device at {self.points[point]}"
        return MemoryRow(name, limit, np.concatenate(terms), np.concatenate(nbytes))

    def _terms(self, s: Span) -> tuple[IntArray, FloatArray]:
        if s.kind is None:
            return self.draft.choice_terms(s.of), self.tiles(s.of)
        nbytes = self.copies(s.of).ravel()
        if isinstance(s.kind, Window):
            terms = self.draft.copy_terms(s.of, s.kind)
        else:
            terms = self.draft.held_terms(s.of)
        return terms.ravel()[nbytes > 0], nbytes[nbytes > 0]

    def peaks(self, assignment: Assignment, limit: float) -> list[int]:
        """Points over the limit: the highest of every rise, the worst few."""
        held = self.profile(assignment)
        over = np.flatnonzero(held > limit * (1 + 1e-9))
        if not over.size:
            return []
        rises = np.split(over, np.flatnonzero(np.diff(over) > 1) + 1)
        tops = [int(rise[held[rise].argmax()]) for rise in rises]
        return sorted(tops, key=lambda p: -held[p])[:ROWS_AT_ONCE]


def liveness(
    draft: Problem,
    stage: StageGraph,
    produced: Callable[[int], tuple[ShardingSpec, ...]],
    forms: Sequence[Form],
    mesh: tuple[int, ...],
    num_microbatches: int,
    in_flight: int,
) -> Liveness:
    """What a stage holds.

    Args:
        produced: the specs of a node's value under its choices.
        forms: of the values of the draft.
        in_flight: microbatches whose activations the stage holds at once.
    """
    values = tuple(stage.graph.values())

    @cache
    def tiles_in(specs: tuple[ShardingSpec, ...]) -> FloatArray:
        return np.array([num_tiles(s.split_axes, mesh) for s in specs], np.float64)

    @cache
    def tiles(node: int) -> FloatArray:
        return values[node].type.nbytes / tiles_in(produced(node))

    @cache
    def copies_of(form: Form) -> FloatArray:
        moved = np.array([[p != t for t in form.targets] for p in form.sources])
        return np.where(moved, form.nbytes / tiles_in(form.targets), 0.0)

    def copies(k: int) -> FloatArray:
        return copies_of(forms[k])

    layout = _Layout(draft, stage, num_microbatches, in_flight)
    points = (*(f"{e.op.name} {e.source}" for e in layout.order), "the end of a step")
    return Liveness(draft, tuple(layout.spans()), tiles, copies, points)


@dataclass
class _Layout:
    draft: Problem
    stage: StageGraph
    num_microbatches: int
    in_flight: int

    def spans(self) -> Iterator[Span]:
        for node, v in enumerate(self.stage.graph.values()):
            yield from self._tiles(node, v)
        for k in range(len(self.draft.values)):
            yield from self._copies(k)

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
    def loop(self) -> Points:
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
    def _tiles(self, node: int, v: Var) -> Iterator[Span]:
        """When a value is held."""
        if v in self.views:
            return
        last = self.last[v]
        if v not in self.looped:
            yield self._once(node, v, last)
            return
        first = self.at.get(v)
        if first is None:  # received: when its phase first reads it
            first = min((self.at[e.output] for e in self.stage.graph.readers[v]), default=last)
        if last < first:
            return
        yield Span(first, last, node)
        if self.in_flight > 1 and first <= self.forward_end < last:
            yield Span(*self.loop, node, count=self.in_flight - 1)

    def _once(self, node: int, v: Var, last: int) -> Span:
        """When a value is held that all microbatches share."""
        first = self.at.get(v, 0)
        if self.num_microbatches > 1:
            if self.loop[0] <= last <= self.loop[1]:
                last = self.loop[1]
            if self.loop[0] <= first <= self.loop[1]:  # a sum over the slots
                first = self.loop[0]
        return Span(first, max(first, last), node)

    def _copies(self, k: int) -> Iterator[Span]:
        """When the copies of a value are held."""
        value = self.draft.values[k]
        read: dict[Window, tuple[int, int]] = {}
        for reader in value.readers:
            first, last = self._read(reader.node)
            earlier, later = read.get(reader.window, (first, last))
            read[reader.window] = min(first, earlier), max(last, later)
        for window, (first, last) in read.items():
            phase = PHASE_OF[window]
            if phase not in LOOP:  # a copy is made with the others of its bucket
                first = min(first, self.phase_start[phase])
            yield Span(first, last, k, window)
            if self.in_flight > 1 and phase == FORWARD and last > self.forward_end:
                yield Span(*self.loop, k, window, self.in_flight - 1)
        if value.holdable:
            first, last = read[Window.FORWARD][1] + 1, read[Window.BACKWARD][0] - 1
            if first <= last:
                yield Span(first, last, k, HELD)
            if self.in_flight > 1:
                yield Span(*self.loop, k, HELD, self.in_flight - 1)

    def _read(self, node: int) -> Points:
        """When a node of the draft begins to read, and when what it reads is not needed again."""
        graph = self.stage.graph
        number = node - len(graph.inputs)
        if number < len(graph.eqns):
            v = graph.eqns[number].output
            if v not in self.views:
                return self.at[v], self.at[v]
            last = self.last[v]
            if v not in self.looped and self.num_microbatches > 1 and last in range(*self.loop):
                last = self.loop[1]
            return self.at[v], last
        number -= len(graph.eqns)
        sent = number >= len(self.stage.results)
        point = self.at.get(graph.outputs[number], self.end) if sent else self.end
        return point, point

    @cached_property
    def phase_start(self) -> dict[str, int]:
        """The first point of each phase; the end of the step for one without equations."""
        found = dict.fromkeys(ORDER, self.end)
        for k, e in reversed(tuple(enumerate(self.order))):
            found[e.phase] = k
        return found
