"""Schedules in modelled time: programs of a real step take as long as the schedule says."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from hpc_alpa.api.compile import Options, make_plan, trace_step
from hpc_alpa.cluster import Link
from hpc_alpa.lower import Program, lower
from hpc_alpa.lower.check import check
from hpc_alpa.lower.program import Run
from hpc_alpa.models import MLPConfig, mlp, optimizers
from hpc_alpa.pytree import flatten
from hpc_alpa.schedule import SCHEDULES, replay
from hpc_alpa.simulate import Simulation, simulate
from tests.helpers.programs import unit_cost

P, B = 4, 8
COST = unit_cost(devices=P)  # a flop takes a second, messages and memory nothing
TRAINING = [name for name, family in SCHEDULES.items() if family.trains]


@functools.cache
def programs(schedule: str, p: int = P, b: int = B) -> tuple[Program, ...]:
    """Two equal layers of an MLP on each of some devices, one after the other."""
    config, optimizer = MLPConfig(2 * p, 32), optimizers.sgd()
    state = mlp.init(config, optimizer)(0)
    batch = {key: np.zeros((2 * b, 32), "float32") for key in ("x", "y")}
    leaves, tree = flatten(state, "state")
    step = trace_step(mlp.train_step(optimizer), (state, batch), len(leaves), tree, False)
    cost = unit_cost(devices=p, link=Link("some", 1.0, 1.0))  # so that the planner has a choice
    plan = make_plan(step, cost.cluster, cost, p, Options(f"pp{p}", b, schedule))
    inputs = frozenset(step.graph.inputs[k] for k in step.batch_positions)
    return lower(plan.divide(step.graph, inputs, step.renewed), plan)


@functools.cache
def simulated(schedule: str) -> Simulation:
    return simulate(programs(schedule), COST)


@pytest.mark.parametrize(("p", "b"), [(P, B), (5, 3), (6, 11)])
@pytest.mark.parametrize("schedule", TRAINING)
def test_programs_need_no_buffers_of_the_network(schedule: str, p: int, b: int) -> None:
    """The static checker, with messages matched per channel and, as on NCCL, over all of them."""
    made = programs(schedule, p, b)
    check(made)
    check(made, in_order=True)


def seconds_of(program: Program) -> dict[str, float]:
    """Seconds of every action of a rank, from its kernels."""
    labels = dict(program.marks)
    found = dict.fromkeys(labels.values(), 0.0)
    label = ""
    for index, i in enumerate(program.instructions):
        label = labels.get(index, label)
        if isinstance(i, Run):
            found[label] += sum(COST.compute(k.work) for k in program.bodies[i.body].kernels)
    return found


@pytest.mark.parametrize("schedule", TRAINING)
def test_a_step_takes_as_long_as_its_schedule(schedule: str) -> None:
    """Replay of the actions, by the work of each rank's own kernels, against the simulator."""
    rows = SCHEDULES[schedule](P, B)
    work = [seconds_of(p) for p in programs(schedule)]
    each = {a: work[k][str(a)] for k, row in enumerate(rows) for a in row}
    for k, row in enumerate(rows):
        each[row[0]] += work[k]["prepare"]
    found = replay(rows, each.__getitem__)
    expected = max(
        found.ends[row[-1]] + seconds["apply"] for row, seconds in zip(rows, work, strict=True)
    )
    took = simulated(schedule).step_seconds
    if schedule.startswith("zb"):
        # An action begins before what it needs has come, with what it makes for itself.
        assert took == pytest.approx(expected, rel=2e-3)
    else:
        # What the stage before waits for is sent before the last weight gradient is made.
        assert 0.94 * expected < took < expected


def bubble(schedule: str) -> float:
    """Share of the devices' time in which they wait."""
    found = simulated(schedule)
    return 1 - sum(found.compute_seconds) / (P * found.step_seconds)


def test_the_order_of_schedules() -> None:
    """Less bubble where the sources say so; the work is the same."""
    busy = [sum(simulated(name).compute_seconds) for name in TRAINING]
    assert max(busy) == pytest.approx(min(busy), rel=1e-2)
    assert bubble("gpipe") == pytest.approx(bubble("1f1b"), abs=1e-3)
    assert bubble("eager_1f1b") == pytest.approx(bubble("1f1b"), abs=1e-3)
    assert bubble("interleaved_1f1b") < 0.6 * bubble("1f1b")
    assert bubble("zb_v") < 0.8 * bubble("zb_h1") < 0.8 * 0.65 * bubble("1f1b")


def test_messages_come_while_a_rank_computes() -> None:
    """What an action receives is started an action ahead; eager 1F1B leaves a tick for it."""
    tick = max(seconds_of(programs("1f1b")[1]).values()) / 2  # about a forward pass
    cost = unit_cost(devices=P, link=Link("wire", 0.6 * tick, 0.0))
    took = {name: simulate(programs(name), cost).step_seconds for name in TRAINING}
    # Of GPipe and of eager 1F1B little but the way through the pipeline and back is not hidden.
    there_and_back = 2 * (P - 1) * 0.6 * tick
    for name in ("gpipe", "eager_1f1b"):
        assert there_and_back <= took[name] - simulated(name).step_seconds < 1.4 * there_and_back
    assert took["eager_1f1b"] < 0.95 * took["1f1b"]
    for name in ("interleaved_1f1b", "zb_h1", "zb_v"):
        assert took[name] < 0.95 * took["1f1b"]


def test_zb_h1_takes_less_time_at_equal_memory() -> None:
    """As many activations in flight; the weight half keeps a gradient beside each of its own."""
    peaks = {name: max(simulated(name).peak_bytes) for name in TRAINING}
    assert peaks["zb_h1"] < 1.1 * peaks["1f1b"]
    assert simulated("zb_h1").step_seconds < 0.9 * simulated("1f1b").step_seconds


def test_the_timeline_tells_the_halves_apart() -> None:
    """Each action is an event of its own category, on the rank that runs it."""
    events = [e for e in simulated("zb_v").timeline.events if e.stream == "compute"]
    passes = {"F": "forward", "B": "backward", "W": "weight"}
    for k, row in enumerate(SCHEDULES["zb_v"](P, B)):
        mine = sorted((e for e in events if e.rank == k), key=lambda e: e.start)
        actions = [e for e in mine if e.name[0].isdigit()]
        assert {e.category for e in mine} - set(passes.values()) <= {"prepare", "apply"}
        assert [e.category for e in actions] == [passes[e.name[1]] for e in actions]
        found = list(dict.fromkeys(e.name for e in actions))
        assert found == [str(a) for a in row if str(a) in found] and len(found) > 0.8 * len(row)
