"""Intra-operator planning: one strategy for each equation of a stage, as a choice program.

Nodes       an input: its specs; an equation: its strategies; a result of the stage: its specs
                                                                        -> plan.choices
Cost        seconds of the equation on one device, times how often it runs in a step
                                                                        -> plan.pricing
Values      conversions from produced to needed specs, cheapest paths, paid once per window
                                                                        -> plan.values
Ties        a new state leaf lies as the old one; the elementwise equations that update one
            parameter lie alike, with its optimizer state, and so do equal layers
                                                                        -> plan.ties
Memory      what is held at each point of a step, where it is too much   -> plan.memory

Solved by `plan.solve`; the formulas are in `plan.solve.problem`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np

from hpc_alpa.errors import ShardingError
from hpc_alpa.ir.graph import Eqn, Var
from hpc_alpa.plan.alike import same_holds
from hpc_alpa.plan.choices import distinct, specs_of, worthwhile
from hpc_alpa.plan.decode import stage_plan
from hpc_alpa.plan.memory import Liveness, liveness
from hpc_alpa.plan.paths import BUCKET_BYTES
from hpc_alpa.plan.plan import StagePlan
from hpc_alpa.plan.pricing import Pricing
from hpc_alpa.plan.restrictions import Restrictions, everything
from hpc_alpa.plan.settle import settle
from hpc_alpa.plan.solve import stored
from hpc_alpa.plan.solve.limits import Apart, Limits
from hpc_alpa.plan.solve.options import Options
from hpc_alpa.plan.solve.problem import (
    Assignment,
    MemoryRow,
    Problem,
    Value,
    Window,
    leaders,
)
from hpc_alpa.plan.solve.solution import Solution
from hpc_alpa.plan.ties import Ties, renews
from hpc_alpa.plan.updates import Updates, uniform
from hpc_alpa.plan.values import Form, Needed, Values
from hpc_alpa.sharding import (
    ShardingSpec,
    Strategy,
    num_tiles,
    rule_of,
)
from hpc_alpa.sharding.strategies import signature
from hpc_alpa.step import APPLY, BACKWARD, FORWARD, LOOP, PREPARE, StageGraph, StepGraph
from hpc_alpa.step.phase import FINISHED
from hpc_alpa.step.rows import Rows

T = TypeVar("T")

BLOCKS = 8  # of equal layers, where they need not all be alike
WINDOWS = {
    PREPARE: Window.PREPARE,
    FORWARD: Window.FORWARD,
    BACKWARD: Window.BACKWARD,
    APPLY: Window.APPLY,
}


@dataclass
class IntraOp:
    """The choice program of one stage on one mesh, and what its choices mean.

    Attributes:
        in_flight: microbatches whose activations the stage holds at once.
        memory: bytes of one device, or None.
        output_pins: output's position in the stage's graph -> the spec that it must have.
        ties: pairs of nodes that make the same choice, besides those that the state needs.
    """

    step: StepGraph
    stage: StageGraph
    pricing: Pricing
    restrictions: Restrictions = field(default_factory=Restrictions)
    in_flight: int = 1
    memory: float | None = None
    output_pins: Mapping[int, ShardingSpec] = field(default_factory=dict)
    ties: Sequence[tuple[int, int]] = ()
    input_specs: list[tuple[ShardingSpec, ...]] = field(default_factory=list)
    equation_strategies: list[tuple[Strategy, ...]] = field(default_factory=list)
    output_specs: list[tuple[ShardingSpec, ...]] = field(default_factory=list)
    forms: list[Form] = field(default_factory=list)
    _made: Problem | None = None

    def problem(self) -> Problem:
        """Build the program, without limits on memory.

        Raises:
            ShardingError: an equation has no strategy within the restrictions.
        """
        graph = self.stage.graph
        one: dict[object, object] = {}  # equal choices are one object, for what is made of them

        def same(choices: T) -> T:
            return one.setdefault(choices, choices)  # type: ignore[return-value]

        self.input_specs = [same(self.choices_of_input(v)) for v in graph.inputs]
        self.equation_strategies = [same(self.choices_of_equation(e)) for e in graph.eqns]
        self.output_specs = [same(self.choices_of_output(k)) for k in range(len(graph.outputs))]
        costs = [np.zeros(len(s)) for s in self.input_specs]
        for e, found in zip(graph.eqns, self.equation_strategies, strict=True):
            costs.append(self.runs(e.phase) * self.pricing.compute_all(e, found))
        costs += [np.zeros(len(s)) for s in self.output_specs]
        values = self._values()
        names = [graph.describe(v) for v in graph.inputs]
        names += [f"{e.op.name} {e.output} {e.source}" for e in graph.eqns]
        names += [f"output {k}" for k in range(len(graph.outputs))]
        bare = Problem(tuple(costs), tuple(values), names=tuple(names))
        self._made = self._tied(bare, blocks=1)
        return self._made

    def _tied(self, problem: Problem, blocks: int) -> Problem:
        """The program with the ties that updates, results and equal layers need."""
        made = replace(problem, ties=self._ties.of_nodes(blocks), holds=())
        leader = leaders(made).tolist()
        return replace(made, holds=same_holds(made.values, self.forms, leader))

    def solve(self, options: Options | None = None, folder: Path | None = None) -> Solution:
        """The best choices within the device's memory.

        Rows are added at the points where a solution holds too much, until none does: a few of
        thousands bind.

        Args:
            folder: where solutions are kept for the next time, if anywhere.

        Raises:
            InfeasibleError: nothing fits; says where, by how much, and the nearest fit.
        """
        bare = self._made if self._made is not None else self.problem()
        bare = replace(bare, rows=())
        rows: dict[int, MemoryRow] = {}

        def rows_of(assignment: Assignment) -> list[MemoryRow]:
            assert self.memory is not None, "only what is limited has rows"
            peaks = self.live.peaks(assignment, self.memory)
            rows.update((p, self.live.row(p, self.memory)) for p in peaks if p not in rows)
            return [rows[p] for p in peaks]

        used = bare

        def apart() -> Apart:
            nonlocal used
            used = self._tied(bare, BLOCKS)
            return Apart(used, self._ties.block_of_nodes(leaders(used).tolist(), BLOCKS))

        limited = None
        if self.memory is not None:
            limited = Limits(rows_of, lambda: (self.memory, *self.live.content()), apart)
        solution = stored.solve(bare, options, limited, folder=folder)
        self._made = replace(used, rows=tuple(rows[p] for p in sorted(rows)))
        return solution

    def runs(self, phase: str) -> int:
        """How often a phase runs in a step."""
        return self.step.num_microbatches if phase in LOOP else 1

    # ------------------------------------------------------------------------------- choices
    def choices_of_input(self, v: Var) -> tuple[ShardingSpec, ...]:
        """The specs in which an input of the stage's graph may lie.

        Raises:
            ShardingError: none is left.
        """
        mesh = self.pricing.mesh.shape
        possible = specs_of(v.type, mesh)
        if v in self.updates.inputs:
            # What the equations that read it can make; both orders of two axes are not.
            update = self.stage.graph.producer[self.updates.inputs[v]]
            possible = tuple(s.output for s in self.choices_of_equation(update))
        found = [s for s in possible if self.restrictions.input(v, s)]
        if v in self.step.batch:
            # Every microbatch is split over the devices.
            rows = v.type.shape[0] // self.step.num_microbatches
            found = [s for s in found if rows % num_tiles(s.dims[0], mesh) == 0]
        if v in self._stacked_state:
            # The new value comes in rows of slots, split or not; the old one lies in order.
            found = [s for s in found if not self.rows.split(self._stacked_state[v], s)]
        if not found:
            slots = self.step.num_microbatches
            rows_text = (
                f" (each of {slots} microbatches has {v.type.shape[0] // slots} rows)"
                if v in self.step.batch
                else ""
            )
            raise ShardingError(
                f"{self.stage.graph.describe(v)} has no spec on mesh {mesh} that the method and "
                f"the pins allow: its dims do not divide{rows_text}, or the pins contradict each "
                "other"
            )
        return tuple(found)

    def choices_of_equation(self, e: Eqn) -> tuple[Strategy, ...]:
        """The strategies that an equation may use, one for each way its values lie.

        Raises:
            ShardingError: none is left.
        """
        mesh = self.pricing.mesh.shape
        if e.output in self.updates.leader:
            return uniform(e, specs_of(e.output.type, mesh), mesh, self.restrictions.strategy)
        ways = worthwhile(signature(e), mesh, self.has_maximum)
        if self.restrictions.strategy is not everything or not self.rows.free(e):
            allowed = self.restrictions.strategy
            ways = tuple(s for s in ways if self.rows.allows(e, s) and allowed(e, s))
        if not ways:
            rule = rule_of(e)
            sizes = ", ".join(f"{f}={n}" for f, n in rule.sizes.items())
            raise ShardingError(
                f"{e.op.name} at {e.source or 'an unknown line'} (rule {rule}, {sizes}) cannot be "
                f"split over mesh {mesh} as the method asks: no factor that it allows divides. "
                "Choose another number of devices, or method='auto'"
            )
        return distinct(ways)

    @cached_property
    def has_maximum(self) -> bool:
        return any(e.op.name in ("reduce_max", "accumulate_max") for e in self.stage.graph.eqns)

    @cached_property
    def updates(self) -> Updates:
        return Updates.of(self.stage, self.rows)

    @cached_property
    def rows(self) -> Rows:
        return Rows.of(self.stage.graph, self.step.batch, self.step.num_microbatches)

    @cached_property
    def _stacked_state(self) -> dict[Var, Var]:
        """Inputs whose new values carry the batch's rows, and these."""
        inputs = self.stage.graph.inputs
        return {
            inputs[at]: w
            for k, (_, w) in enumerate(self.stage.results)
            if self.rows.dims[w] and (at := self._renews.get(k)) is not None
        }

    def choices_of_output(self, k: int) -> tuple[ShardingSpec, ...]:
        """The specs in which an output of the stage's graph may lie."""
        if k in self.output_pins:
            return (self.output_pins[k],)
        v = self.stage.graph.outputs[k]
        whole = specs_of(v.type, self.pricing.mesh.shape)
        if k < len(self.stage.results):
            source = self._renews.get(k)
            if source is not None:
                return self.input_specs[source]
            # Rows of slots lie apart: a result may have them along its first dim.
            apart = self.rows.dims[v] - {0} if self.rows.num_slots > 1 else ()
            whole = tuple(s for s in whole if not any(s.dims[d] for d in apart))
            return whole if v.type.shape else whole[:1]
        return tuple(s for s in whole if not self.rows.split(v, s))

    @cached_property
    def _renews(self) -> dict[int, int]:
        return renews(self.step, self.stage)

    @property
    def _ties(self) -> Ties:
        return Ties(
            self.stage,
            self._nodes(),
            self._renews,
            self.updates,
            self._meanings,
            self.produced,
            self.ties,
        )

    def _meanings(self, node: int) -> tuple[ShardingSpec, ...] | tuple[Strategy, ...]:
        n_in = len(self.input_specs)
        return self.input_specs[node] if node < n_in else self.equation_strategies[node - n_in]

    # -------------------------------------------------------------------------------- values
    def _nodes(self) -> dict[Var, int]:
        graph = self.stage.graph
        nodes = {v: k for k, v in enumerate(graph.inputs)}
        nodes.update({e.output: len(graph.inputs) + k for k, e in enumerate(graph.eqns)})
        return nodes

    def produced(self, node: int) -> tuple[ShardingSpec, ...]:
        """The spec of a node's value under each of its choices."""
        n_in = len(self.input_specs)
        if node < n_in:
            return self.input_specs[node]
        return tuple(s.output for s in self.equation_strategies[node - n_in])

    def _values(self) -> list[Value]:
        graph = self.stage.graph
        nodes = self._nodes()
        n_in, n_eq = len(graph.inputs), len(graph.eqns)
        readers: dict[Var, list[Needed]] = {}
        for k, (e, ways) in enumerate(zip(graph.eqns, self.equation_strategies, strict=True)):
            for at, v in enumerate(e.inputs):
                readers.setdefault(v, []).append(Needed(n_in + k, ways, at, WINDOWS[e.phase]))
        for k, v in enumerate(graph.outputs):
            made = graph.producer.get(v)
            inside = made is not None and k >= len(self.stage.results)
            window = WINDOWS[made.phase] if made is not None and inside else Window.APPLY
            need = Needed(n_in + n_eq + k, self.output_specs[k], None, window)
            readers.setdefault(v, []).append(need)
        slots = self.step.num_microbatches
        make = Values(self.pricing.paths, self.rows, slots, self.bucket_bytes)
        self.forms = make.forms
        values = [
            make.value(v, nodes[v], self._meanings(nodes[v]), found, graph.describe(v))
            for v, found in readers.items()
        ]
        return [
            made if self.restrictions.hold(v) else replace(made, holdable=False)
            for v, made in zip(readers, values, strict=True)
        ]

    @cached_property
    def bucket_bytes(self) -> int:
        """Bytes that travel together where gradients are reduced, or parameters gathered."""
        if not self.pricing.cost.in_seconds:
            return 0
        sums = [e.output for e in self.stage.graph.eqns if e.op.name in FINISHED]
        return min(BUCKET_BYTES, sum(v.type.nbytes for v in sums))

    # -------------------------------------------------------------------------------- memory
    @cached_property
    def live(self) -> Liveness:
        """What is held at each point of the step, under every choice; follows `problem()`."""
        assert self._made is not None, "live follows problem()"
        slots, mesh = self.step.num_microbatches, self.pricing.mesh.shape
        return liveness(
            self._made, self.stage, self.produced, self.forms, mesh, slots, self.in_flight
        )

    def live_apart(self) -> tuple[Liveness, Liveness]:
        """What is held once, and what for each further microbatch in flight; as `live`."""
        assert self._made is not None, "live_apart follows problem()"
        slots, mesh = self.step.num_microbatches, self.pricing.mesh.shape
        three = liveness(self._made, self.stage, self.produced, self.forms, mesh, slots, 3)
        return three.apart()

    @property
    def end_of_forward(self) -> int:
        """The point of `live` at which the most activations are held."""
        before = sum(e.phase in (PREPARE, FORWARD) for e in self.stage.graph.eqns)
        return max(0, before - 1)

    @property
    def num_memory_rows(self) -> int:
        """How many points' rows the last solution needed."""
        return len(self._made.rows) if self._made is not None else 0

    def held_bytes(self, solution: Solution) -> float:
        """Bytes that a device holds under a solution: the most at once."""
        assert self._made is not None, "held_bytes follows solve()"
        return float(self.live.profile(solution.assignment).max())

    # ------------------------------------------------------------------------------ decoding
    def decode(self, solution: Solution, axes: tuple[str, ...]) -> StagePlan:
        """The stage's plan from the solver's choices."""
        graph = self.stage.graph
        n_in, n_eq = len(graph.inputs), len(graph.eqns)
        assert self._made is not None, "decode follows problem()"
        found = settle(
            self._made, graph, self.input_specs, self.equation_strategies, solution.assignment
        )
        choice = found.choices
        inputs = [self.input_specs[k][choice[k]] for k in range(n_in)]
        chosen = [self.equation_strategies[k][choice[n_in + k]] for k in range(n_eq)]
        outputs = [self.output_specs[k][choice[n_in + n_eq + k]] for k in range(len(graph.outputs))]
        made = stage_plan(self.pricing, self.stage, axes, inputs, chosen, outputs, self.rows)
        return replace(made, held=self._held(found))

    def _held(self, found: Assignment) -> tuple[tuple[int, str], ...]:
        """Copies that stay from forward to backward, as a plan keeps them."""
        assert self._made is not None
        held = []
        for k, t in found.held:
            form, node = self.forms[k], self._made.values[k].producer
            source, target = form.sources[form.produced[found.choices[node]]], form.targets[t]
            if source != target:
                held.append((node, str(target)))
        return tuple(sorted(held))
