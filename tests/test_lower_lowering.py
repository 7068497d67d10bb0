"""Programs under random plans: every output on every rank is what the graph gives unsplit.

`HPC_ALPA_FUZZ_SECONDS=600 python -m pytest tests/test_lower_lowering.py` runs as long as it is
told, from the seed in `HPC_ALPA_FUZZ_SEED` on; without it the seeds are fixed.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from hpc_alpa.errors import PlanError
from hpc_alpa.ir import Builder, Graph, environment, evaluate
from hpc_alpa.lower import Program, lower
from hpc_alpa.lower.check import check
from hpc_alpa.lower.lower import lower_stages
from hpc_alpa.lower.program import KIND, Free, Run, Send
from hpc_alpa.plan.plan import Plan
from hpc_alpa.sharding.phases import runs_in_phases
from hpc_alpa.sharding.strategies import apply_roles, rule_of
from hpc_alpa.step import (
    StageGraph,
    StepGraph,
    anchors,
    marked_layers,
    recompute,
    split_stages,
)
from tests.helpers.fuzz import is_tame, tolerance_of
from tests.helpers.random_graphs import random_graph
from tests.helpers.random_losses import marked_at_random, random_case
from tests.helpers.random_plans import MeshShape, Scramble, require_outputs, run

MESHES: list[MeshShape] = [(1,), (2,), (4,), (2, 2), (3,), (2, 3), (1, 2), (2, 2, 2)]
STAGE_MESHES: list[MeshShape] = [(1,), (2,), (4,), (2, 2)]
SECONDS = float(os.environ.get("HPC_ALPA_FUZZ_SECONDS", "0"))


def seeds(count: int) -> Iterator[int]:
    if not SECONDS:
        yield from range(count)
        return
    end = time.monotonic() + SECONDS / 2
    seed = int(os.environ.get("HPC_ALPA_FUZZ_SEED", random.SystemRandom().randrange(1 << 32)))
    while time.monotonic() < end:
        yield seed
        seed += 1


def kinds(programs: tuple[Program, ...]) -> Counter[str]:
    found = Counter(KIND[type(i)] for p in programs for i in p.instructions if type(i) in KIND)
    found["send"] = sum(isinstance(i, Send) for p in programs for i in p.instructions)
    return found


def once(graph: Graph, phase: str) -> Graph:
    """The graph in one phase; what leaves a loop of one slot is finished there."""
    graph = replace(graph, eqns=tuple(replace(e, phase=phase, origin=None) for e in graph.eqns))
    if phase == "apply":
        return graph
    b = Builder(1 + max(v.id for v in graph.values()))
    b.inputs, b.eqns, b.phase = list(graph.inputs), list(graph.eqns), phase
    outputs = [
        v if v not in graph.producer
        else b.stack(v, dim=0, slots=1) if v.type.shape
        else b.accumulate(v, slots=1)
        for v in graph.outputs
    ]  # fmt: skip
    return b.build(tuple(outputs))


def test_random_graphs_of_one_stage() -> None:
    met: Counter[str] = Counter()
    for seed in seeds(36):
        rng = random.Random(f"one {seed}")
        drawn = random_graph(seed, rng.randint(3, 12))
        graph = once(drawn.graph, rng.choice(["apply", "forward"]))
        with np.errstate(all="ignore"):
            values = environment(graph, drawn.arrays)
        if not is_tame(values):
            continue
        mesh = rng.choice(MESHES)
        step = StepGraph(graph, 1, frozenset(), {})
        stage = StageGraph(0, graph, tuple(enumerate(graph.outputs)), (), ())
        made = Scramble(rng, step, mesh).plan(stage, range(math.prod(mesh)))
        plan = Plan("random", "1f1b", 1, (), (made,), "", "", ("", ""))
        assert Plan.from_json(plan.to_json()) == plan
        try:
            programs = lower_stages(step, [stage], plan)
            check(programs)
            engine, outputs, _ = run(programs, graph, drawn.arrays)
            wanted = [values[v] for v in graph.outputs]
            require_outputs(engine, outputs, wanted, tolerance_of(graph))
        except Exception as error:
            raise AssertionError(f"seed {seed} on {mesh}: {error}") from error
        met += kinds(programs)
        for e, roles in zip(graph.eqns, made.strategies, strict=True):
            s = apply_roles(rule_of(e), tuple(roles.split(",")), mesh)
            assert s is not None
            met["phases"] += runs_in_phases(e, s)
    for kind in ("all_gather", "all_reduce", "all_to_all", "reduce_scatter"):
        assert met[kind] > 100, met
    assert met["phases"] > 4, met


def test_random_steps_in_microbatches_and_stages() -> None:
    met: Counter[str] = Counter()
    for seed in seeds(30):
        rng = random.Random(f"stages {seed}")
        case = random_case(seed)
        slots = rng.choice([1, 2, 4])
        step = case.split(slots)
        count = rng.choice([1, 2, 3])
        cuts = tuple(sorted(rng.randint(0, len(anchors(step))) for _ in range(count - 1)))
        plans, first = [], 0
        for stage in split_stages(step, cuts):
            mesh = rng.choice(STAGE_MESHES)
            ranks = range(first, first + math.prod(mesh))
            plans.append(Scramble(rng, step, mesh).plan(stage, ranks))
            first = ranks.stop
        plan = Plan(
            "random", rng.choice(["1f1b", "gpipe"]), slots, cuts, tuple(plans), "", "", ("", ""),
            rng.choice(["broadcast", "send_recv"]),
        )  # fmt: skip
        try:
            programs = lower(step, plan)
            check(programs)
            engine, outputs, records = run(programs, case.graph, case.values)
            require_outputs(engine, outputs, evaluate(case.graph, case.values), 1e-8)
        except Exception as error:
            raise AssertionError(f"seed {seed}, {slots} slots, cuts {cuts}: {error}") from error
        for p in programs:
            counted = Counter(KIND[type(i)] for i in p.instructions if type(i) in KIND)
            assert records[p.rank].collectives == counted
        met += kinds(programs)
    for kind in ("all_gather", "all_reduce", "all_to_all", "reduce_scatter", "send"):
        assert met[kind] > 20, met


def test_random_steps_with_layers_that_backward_makes_again() -> None:
    again, freed = 0, 0
    for seed in seeds(24):
        rng = random.Random(f"again {seed}")
        case = marked_at_random(random_case(seed), seed)
        slots = rng.choice([1, 2])
        step = case.split(slots)
        count = rng.choice([1, 2])
        cuts = tuple(rng.randint(0, len(anchors(step))) for _ in range(count - 1))
        layers = marked_layers(step.graph)
        some = tuple(sorted(rng.sample(layers, rng.randint(1, len(layers)))))
        made = recompute(step, some, cuts)
        again += len(made.graph.eqns) - len(step.graph.eqns)
        plans, first = [], 0
        for stage in split_stages(made, cuts):
            mesh = rng.choice(STAGE_MESHES)
            ranks = range(first, first + math.prod(mesh))
            plans.append(Scramble(rng, made, mesh).plan(stage, ranks))
            first = ranks.stop
        plan = Plan(
            "random", "1f1b", slots, cuts, tuple(plans), "", "", ("", ""), recompute=some
        )  # fmt: skip
        try:
            programs = lower(plan.divide(case.graph, case.batch, case.renewed), plan)
            check(programs)
            engine, outputs, _ = run(programs, case.graph, case.values)
            require_outputs(engine, outputs, evaluate(case.graph, case.values), 1e-8)
        except Exception as error:
            raise AssertionError(f"seed {seed}, {slots} slots, cuts {cuts}: {error}") from error
        if count == 1:
            freed += sum(map(_freed_inside, programs))
        with pytest.raises(PlanError, match=r"recomputes layers \[\], the step \["):
            lower(made, replace(plan, recompute=()))
    assert again > 60 and freed > 100, (again, freed)


def _freed_inside(program: Program) -> int:
    """How many buffers from elsewhere bodies free; with one stage, all that they touch last."""
    found = 0
    for before, i in pairwise(program.instructions):
        if isinstance(before, Run) and isinstance(i, Free):
            assert not any("@" in n for n in i.buffers), (before, i)
    for body in program.bodies.values():
        made = {k.output for k in body.kernels}
        found += sum(n not in made for k in body.kernels for n in k.frees)
    return found


def test_a_plan_for_other_microbatches_or_another_graph_is_refused() -> None:
    rng = random.Random(0)
    step = random_case(0).split(2)
    [stage] = split_stages(step, ())
    plan = Plan(
        "", "1f1b", 2, (), (Scramble(rng, step, (2,)).plan(stage, (0, 1)),), "", "", ("", "")
    )
    with pytest.raises(PlanError, match="2 microbatches, the step 4"):
        lower(random_case(0).split(4), plan)
    with pytest.raises(PlanError, match="made for another graph"):
        lower(random_case(1).split(2), plan)
    with pytest.raises(PlanError, match="no schedule 'zigzag'.*1f1b"):
        lower(step, replace(plan, schedule="zigzag"))
    [made] = plan.stages
    wrong = replace(made, strategies=("q", *made.strategies[1:]))
    with pytest.raises(PlanError, match="'q' does not exist.*another graph"):
        lower(step, replace(plan, stages=(wrong,)))
