"""The integer program of real graphs reaches what enumeration finds; what its choices mean."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hpc_alpa.cluster import DeviceMesh
from hpc_alpa.cost import AlphaBetaCost, AnalyticCost
from hpc_alpa.errors import InfeasibleError, ShardingError
from hpc_alpa.ir import Graph
from hpc_alpa.plan.choices import specs_of
from hpc_alpa.plan.intra_op import IntraOp
from hpc_alpa.plan.pricing import Pricing
from hpc_alpa.plan.restrictions import Restrictions
from hpc_alpa.plan.solve.highs import solve
from hpc_alpa.sharding import ShardingSpec
from hpc_alpa.step import LOOP, StageGraph, StepGraph, split_stages
from tests.helpers.equality import cluster
from tests.helpers.random_graphs import random_graph
from tests.helpers.random_losses import random_case

MESHES: list[tuple[int, ...]] = [(2,), (4,), (2, 2)]
MOST = 100_000  # combinations of one case


def small_program(seed: int) -> IntraOp | None:
    """2 to 6 equations in random windows, on a random mesh and costs; None if too big."""
    rng = random.Random(f"program {seed}")
    graph = random_graph(2 * seed, rng.randint(2, 6)).graph
    if len(graph.eqns) > 6:
        return None
    graph = in_windows(rng, replace(graph, outputs=graph.outputs[-rng.choice([1, 2]) :]))
    mesh = rng.choice(MESHES)
    devices = DeviceMesh(mesh, tuple(range(math.prod(mesh))))
    cost: Any = AnalyticCost(cluster(2, math.prod(mesh) // 2))
    if rng.random() < 0.3:
        cost = AlphaBetaCost.alpa(mesh, beta=(1.0, 0.1)[: len(mesh)])
    step = StepGraph(graph, rng.choice([1, 2]), frozenset(), {})
    stage = StageGraph(0, graph, tuple(enumerate(graph.outputs)), (), ())
    program = IntraOp(step, stage, Pricing.on(devices, cost))
    program.problem()
    return program if 1 < combinations(program) <= MOST else None


def in_windows(rng: random.Random, graph: Graph) -> Graph:
    """The equations one after the other in forward, backward and apply, and only the live ones."""
    live = set(graph.outputs)
    for e in reversed(graph.eqns):
        if e.output in live:
            live.update(e.inputs)
    kept = [e for e in graph.eqns if e.output in live]
    first, second = sorted(rng.randint(0, len(kept)) for _ in range(2))
    phases = ["forward"] * first + ["backward"] * (second - first)
    phases += ["apply"] * (len(kept) - second)
    eqns = tuple(replace(e, phase=p, origin=None) for e, p in zip(kept, phases, strict=True))
    read = {v for e in eqns for v in e.inputs} | set(graph.outputs)
    return Graph(tuple(v for v in graph.inputs if v in read), eqns, graph.outputs)


def sizes(program: IntraOp) -> list[int]:
    parts = (program.input_specs, program.equation_strategies, program.output_specs)
    return [len(choices) for part in parts for choices in part]


def combinations(program: IntraOp) -> int:
    ties = program.problem().ties
    return math.prod(n for k, n in enumerate(sizes(program)) if ties[k] == k)


def enumerate_cost(program: IntraOp) -> float:
    """The least seconds over all choices, from the definition, without the integer program."""
    graph, mesh = program.stage.graph, program.pricing.mesh.shape
    n_in, n_eq = len(graph.inputs), len(graph.eqns)
    ties, size = program.problem().ties, sizes(program)
    free = [k for k in range(len(size)) if ties[k] == k]
    grid = np.indices([size[k] for k in free]).reshape(len(free), -1)
    choice = {k: grid[free.index(_leader(ties, k))] for k in range(len(size))}
    total = np.zeros(grid.shape[1])
    slots = program.step.num_microbatches
    for k, e in enumerate(graph.eqns):
        times = slots if e.phase in LOOP else 1
        each = [times * program.pricing.compute(e, s) for s in program.equation_strategies[k]]
        total += np.array(each)[choice[n_in + k]]
    node_of = {v: k for k, v in enumerate(graph.inputs)}
    node_of |= {e.output: n_in + k for k, e in enumerate(graph.eqns)}
    for v, node in node_of.items():
        readers: list[tuple[int, list[ShardingSpec], str]] = []
        for k, e in enumerate(graph.eqns):
            for at, u in enumerate(e.inputs):
                if u == v:
                    needs = [s.inputs[at] for s in program.equation_strategies[k]]
                    readers.append((n_in + k, needs, e.phase if e.phase in LOOP else "step"))
        for k, u in enumerate(graph.outputs):
            if u == v:
                readers.append((n_in + n_eq + k, list(program.output_specs[k]), "step"))
        # A value that the loop reads is converted in every slot.
        times = slots if any(window != "step" for _, _, window in readers) else 1
        made = program.produced(node)
        for window in {w for _, _, w in readers}:
            for target in {s for _, needs, w in readers for s in needs if w == window}:
                wanted = np.zeros(grid.shape[1], bool)
                for reader, needs, w in readers:
                    if w == window:
                        wanted |= np.array([s == target for s in needs])[choice[reader]]
                prices = [program.pricing.paths.cost(v.type, s, target) for s in made]
                total += np.where(wanted, times * np.array(prices)[choice[node]], 0.0)
    assert len(mesh) == program.pricing.mesh.num_axes
    return float(total.min())


def _leader(ties: tuple[int, ...], node: int) -> int:
    while ties[node] != node:
        node = ties[node]
    return node


def test_the_integer_program_equals_enumeration() -> None:
    cases, seed, nontrivial = 0, 0, 0
    while cases < 50:
        program = small_program(seed)
        seed += 1
        if program is None:
            continue
        cases += 1
        solution = solve(program.problem())
        least = enumerate_cost(program)
        scale = 1.0 if isinstance(program.pricing.cost, AlphaBetaCost) else 1e-6
        equal = pytest.approx(least, rel=1e-6, abs=1e-7 * scale)
        assert solution.objective == equal, f"seed {seed - 1}"
        assert solution.bound <= solution.objective * (1 + 1e-9) + 1e-12
        nontrivial += least > 0
    assert nontrivial > 25


def test_memory_leaves_the_cheapest_that_fits() -> None:
    """Less memory never costs less, and below the least that fits is an error with numbers."""
    case = random_case(3)
    step = case.split(1)
    [stage] = split_stages(step, ())
    pricing = Pricing.on(DeviceMesh((2,), (0, 1)), AnalyticCost(cluster(2)))

    def program(memory: float | None) -> IntraOp:
        return IntraOp(step, stage, pricing, memory=memory)

    free = program(None).solve().objective
    state = sum(v.type.nbytes for v in stage.graph.inputs)
    seconds = [program(f * state).solve().objective for f in (9.0, 2.5, 1.8)]
    assert free == pytest.approx(seconds[0]) and sorted(seconds) == pytest.approx(seconds)
    with pytest.raises(InfeasibleError, match="memory of a device.*bytes"):
        program(0.2 * state).solve()


def test_specs_of_a_value_are_all_that_divide() -> None:
    type = random_case(0).graph.inputs[5].type
    assert type.shape == (8, 8)
    assert {str(s) for s in specs_of(type, (2,))} == {"RR", "S0R", "RS0"}
    assert {str(s) for s in specs_of(type, (2, 2))} == {
        "RR", "S0R", "RS0", "S1R", "RS1", "S01R", "S10R", "RS01", "RS10", "S0S1", "S1S0"
    }  # fmt: skip
    assert {str(s) for s in specs_of(type, (1, 4))} == {"RR", "S1R", "RS1"}
    assert [str(s) for s in specs_of(type.with_shape((3, 5)), (2,))] == ["RR"]


def test_the_new_state_lies_as_the_old_one() -> None:
    for seed in range(4):
        case = random_case(seed)
        step = case.split(2)
        [stage] = split_stages(step, ())
        pricing = Pricing.on(DeviceMesh((2, 2), (0, 1, 2, 3)), AnalyticCost(cluster(4)))
        program = IntraOp(step, stage, pricing)
        made = program.decode(solve(program.problem()), ("x", "y"))
        for k, (position, v) in enumerate(stage.results):
            if position in step.renewed and v.type.shape:
                old = step.graph.inputs[step.renewed[position]]
                assert made.outputs[k] == made.inputs[stage.graph.inputs.index(old)]


def test_what_no_strategy_allows_is_named() -> None:
    step = random_case(0).split(1)
    [stage] = split_stages(step, ())
    pricing = Pricing.on(DeviceMesh((2,), (0, 1)), AnalyticCost(cluster(2)))

    def never(e: Any, s: Any) -> bool:
        return e.op.name != "dot_general"

    with pytest.raises(ShardingError, match=r"dot_general at .*\.py:\d+ \(rule .* mesh \(2,\)"):
        IntraOp(step, stage, pricing, Restrictions(strategy=never)).problem()
    with pytest.raises(ShardingError, match="'state/b/0' .*no spec on mesh"):
        IntraOp(step, stage, pricing, Restrictions(input=lambda v, s: False)).problem()
