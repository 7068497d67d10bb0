"""Executed, not only planned: what the planner chooses, and what nobody would, on up to three axes.

Random graphs and steps on random meshes, under random costs, pins and limits, or with random
strategies: lowered, checked, run on threads, and every rank's result is the reference's.

`HPC_ALPA_FUZZ_SECONDS=600 python -m pytest tests/test_lower_random.py` runs as long as it is told,
from the seed in `HPC_ALPA_FUZZ_SEED` on; without it the seeds are fixed.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hpc_alpa.cluster import DeviceMesh
from hpc_alpa.errors import InfeasibleError
from hpc_alpa.ir import Eqn, Graph, environment, evaluate
from hpc_alpa.lower.check import check
from hpc_alpa.lower.lower import lower_stages
from hpc_alpa.lower.program import KIND
from hpc_alpa.plan.intra_op import IntraOp
from hpc_alpa.plan.plan import Plan, StagePlan
from hpc_alpa.plan.pricing import Pricing
from hpc_alpa.plan.restrictions import Restrictions
from hpc_alpa.plan.solve.options import Options
from hpc_alpa.search.pins import Pin, pinned
from hpc_alpa.sharding import Strategy
from hpc_alpa.sharding.strategies import IDLE
from hpc_alpa.step import StageGraph, StepGraph, anchors, split_stages
from tests.helpers.fuzz import is_tame, tolerance_of
from tests.helpers.random_costs import Dice
from tests.helpers.random_graphs import random_graph
from tests.helpers.random_losses import random_case
from tests.helpers.random_plans import MeshShape, Scramble, require_outputs, run
from tests.test_lower_lowering import once, seeds

NUM_GRAPHS, NUM_STEPS, NUM_SCRAMBLED = 25, 8, 8
MESHES: list[MeshShape] = [(2,), (4,), (2, 2), (2, 3), (2, 2, 2)]
QUICK = Options(relative_gap=0.05, seconds=10.0)  # the plan need not be the best


def planner(rng: random.Random, step: StepGraph, stage: StageGraph, mesh: MeshShape) -> IntraOp:
    """The planner under random costs, and rules and pins that leave it a random part."""
    cost = Dice(rng.randrange(1 << 30), rng.choice([0.5, 1.5, 3.0]))
    pricing = Pricing.on(DeviceMesh(mesh, tuple(range(math.prod(mesh)))), cost)
    seed, kept = rng.random(), rng.choice([0.3, 0.6, 0.9])

    def allowed(e: Eqn, s: Strategy) -> bool:
        # By roles, which are the same for all equations that update one parameter.
        drawn = random.Random(f"{seed} {s.roles}").random() < kept
        return drawn or all(role == IDLE for role in s.roles)

    rules = Restrictions(strategy=allowed)
    pins = random_pins(rng, IntraOp(step, stage, pricing, rules))
    return IntraOp(step, stage, pricing, rules & pinned(stage.graph, pins, mesh))


def random_pins(rng: random.Random, program: IntraOp) -> dict[str, Pin]:
    """Up to three inputs, each to one of its specs or to one dim on one axis."""
    graph = program.stage.graph
    pins: dict[str, Pin] = {}
    for v in rng.sample(graph.inputs, min(len(graph.inputs), rng.randrange(4))):
        spec = rng.choice(program.choices_of_input(v))
        split = [(d, a) for d, axes in enumerate(spec.dims) for a in axes]
        if v.type.shape:
            name = graph.name_of[v.id]
            pins[name] = dict([rng.choice(split)]) if split and rng.random() < 0.5 else str(spec)
    return pins


def chosen(rng: random.Random, program: IntraOp) -> StagePlan:
    """What the planner takes; every third time within less memory than that."""
    solution = program.solve(QUICK)
    if rng.random() < 0.3:
        program.memory = 0.8 * program.held_bytes(solution)
        try:
            solution = program.solve(QUICK)
        except InfeasibleError:
            program.memory = None
            solution = program.solve(QUICK)
    return program.decode(solution, tuple("xyz"[: program.pricing.mesh.num_axes]))


def named(graph: Graph) -> Graph:
    return replace(graph, names=tuple((v.id, f"in/{k}") for k, v in enumerate(graph.inputs)))


def execute(
    step: StepGraph,
    stages: Sequence[StageGraph],
    plan: Plan,
    values: Sequence[Any],
    wanted: Sequence[np.ndarray],
    tolerance: float,
) -> Counter[str]:
    """Lower, check, run and compare on every rank: the collectives of all ranks by kind."""
    assert Plan.from_json(plan.to_json()) == plan
    programs = lower_stages(step, stages, plan)
    check(programs)
    engine, outputs, records = run(programs, step.graph, values)
    require_outputs(engine, outputs, wanted, tolerance)
    met: Counter[str] = Counter()
    for p in programs:
        counted = Counter(KIND[type(i)] for i in p.instructions if type(i) in KIND)
        assert records[p.rank].collectives == counted
        met += counted
    met["held"] += sum(len(s.held) for s in plan.stages)
    return met


def most_axes(plan: StagePlan) -> int:
    """How many mesh axes do something in one equation, at most."""
    return max(sum(role != IDLE for role in roles.split(",")) for roles in plan.strategies)


def test_what_the_planner_chooses_for_random_graphs() -> None:
    met: Counter[str] = Counter()
    axes: Counter[int] = Counter()
    for seed in seeds(NUM_GRAPHS):
        rng = random.Random(f"graphs {seed}")
        mesh = MESHES[seed % len(MESHES)]
        drawn = random_graph(seed, rng.randint(2, 5 if len(mesh) > 2 else 9))
        graph = named(once(drawn.graph, rng.choice(["apply", "forward"])))
        with np.errstate(all="ignore"):
            values = environment(graph, drawn.arrays)
        if not is_tame(values):
            continue
        step = StepGraph(graph, 1, frozenset(), {})
        stage = StageGraph(0, graph, tuple(enumerate(graph.outputs)), (), ())
        try:
            made = chosen(rng, planner(rng, step, stage, mesh))
            plan = Plan("auto", "1f1b", 1, (), (made,), "", "", ("", ""))
            wanted = [values[v] for v in graph.outputs]
            met += execute(step, [stage], plan, drawn.arrays, wanted, tolerance_of(graph))
        except Exception as error:
            raise AssertionError(f"seed {seed} on {mesh}: {error}") from error
        axes[most_axes(made)] += 1
    for kind in ("all_gather", "all_reduce", "all_to_all", "reduce_scatter"):
        assert met[kind] > 8, met
    assert axes[3] > 1, axes


def test_what_the_planner_chooses_for_random_steps() -> None:
    met: Counter[str] = Counter()
    for seed in seeds(NUM_STEPS):
        rng = random.Random(f"steps {seed}")
        mesh = MESHES[seed % len(MESHES)]
        case = random_case(seed)
        step = case.split(rng.choice([1, 2, 4]))
        [stage] = split_stages(step, ())
        try:
            made = chosen(rng, planner(rng, step, stage, mesh))
            plan = Plan("auto", "1f1b", step.num_microbatches, (), (made,), "", "", ("", ""))
            wanted = evaluate(case.graph, case.values)
            met += execute(step, [stage], plan, case.values, wanted, 1e-8)
        except Exception as error:
            raise AssertionError(f"seed {seed} on {mesh}: {error}") from error
    for kind in ("all_gather", "all_reduce", "all_to_all", "reduce_scatter", "held"):
        assert met[kind] > 3, met


def test_random_strategies_of_steps_on_up_to_three_axes() -> None:
    met: Counter[str] = Counter()
    axes: Counter[int] = Counter()
    for seed in seeds(NUM_SCRAMBLED):
        rng = random.Random(f"scrambled {seed}")
        mesh = MESHES[-1 - seed % 2]
        case = random_case(seed)
        step = case.split(rng.choice([1, 2]))
        cuts = (rng.randint(0, len(anchors(step))),) if rng.random() < 0.3 else ()
        stages = split_stages(step, cuts)
        size = math.prod(mesh)
        ranks = [range(k * size, (k + 1) * size) for k in range(len(stages))]
        try:
            plans = tuple(Scramble(rng, step, mesh).plan(*x) for x in zip(stages, ranks))
            plan = Plan(
                "random", "1f1b", step.num_microbatches, cuts, plans, "", "", ("", ""),
                rng.choice(["broadcast", "send_recv"]),
            )  # fmt: skip
            wanted = evaluate(case.graph, case.values)
            met += execute(step, stages, plan, case.values, wanted, 1e-8)
        except Exception as error:
            raise AssertionError(f"seed {seed} on {mesh}: {error}") from error
        axes.update(most_axes(p) for p in plans)
    for kind in ("all_gather", "all_reduce", "all_to_all", "reduce_scatter"):
        assert met[kind] > 20, met
    assert met["held"] and axes[3] > 2, (met, axes)
