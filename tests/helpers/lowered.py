"""Programs that `lower` made, and the steps they come from."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from unittest import mock

import numpy as np

from hpc_alpa.api.compile import Options, Step, make_plan, trace_step
from hpc_alpa.arrays import HostArrays
from hpc_alpa.cluster import Cluster
from hpc_alpa.cost import AnalyticCost
from hpc_alpa.lower import Lowering, Program, lower, lowering
from hpc_alpa.lower.program import Body, Free, Instruction, Run, at
from hpc_alpa.models import AdamW, GPTConfig, MLPConfig, adamw, gpt, mlp
from hpc_alpa.pytree import flatten
from hpc_alpa.runtime import executor
from hpc_alpa.runtime.engine import Engine
from hpc_alpa.runtime.runner import ThreadRunner


@dataclass(frozen=True)
class Lowered:
    """A traced step, the values it was traced with, and the programs of all ranks."""

    step: Step
    values: tuple[Any, ...]
    programs: tuple[Program, ...]


def preset_cost() -> AnalyticCost:
    return AnalyticCost(Cluster.preset("dgx-a100"))


@cache
def lowered_plan(
    model: str, method: str, num_ranks: int, resharding: str = "send_recv"
) -> Lowering:
    """`lowered` before its programs are written."""
    function, state, batch = MODELS[model]()
    leaves, tree = flatten(state, "state")
    step = trace_step(function, (state, batch), len(leaves), tree, False)
    cost = preset_cost()
    options = Options(method, 4, "1f1b", resharding=resharding)
    plan = make_plan(step, cost.cluster, cost, num_ranks, options)
    inputs = frozenset(step.graph.inputs[k] for k in step.batch_positions)
    return lowering(plan.divide(step.graph, inputs, step.renewed), plan)


@cache
def lowered(
    model: str, method: str, num_ranks: int, num_microbatches: int = 2, schedule: str = "1f1b",
    resharding: str = "send_recv",
) -> Lowered:  # fmt: skip
    """A small model's train step under a manual method."""
    function, state, batch = MODELS[model]()
    leaves, tree = flatten(state, "state")
    step = trace_step(function, (state, batch), len(leaves), tree, False)
    options = Options(method, num_microbatches, schedule, resharding=resharding)
    cost = preset_cost()
    plan = make_plan(step, cost.cluster, cost, num_ranks, options)
    inputs = frozenset(step.graph.inputs[k] for k in step.batch_positions)
    divided = plan.divide(step.graph, inputs, step.renewed)
    values = (*leaves, *flatten(batch, "batch")[0], *step.traced.captured)
    return Lowered(step, values, lower(divided, plan))


def _mlp() -> tuple[Any, Any, Any]:
    config, optimizer = MLPConfig(3, 16), adamw(AdamW())
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(8, 16)).astype("float32") for _ in range(2))
    return mlp.train_step(optimizer), mlp.init(config, optimizer)(0), {"x": x, "y": y}


def _gpt() -> tuple[Any, Any, Any]:
    config = GPTConfig(layers=2, hidden=24, heads=2, sequence=8, vocabulary=32)
    optimizer = adamw(AdamW())
    tokens = np.random.default_rng(0).integers(0, 32, (8, 9)).astype("int32")
    batch = {"tokens": tokens[:, :-1].copy(), "targets": tokens[:, 1:].copy()}
    return gpt.train_step(config, optimizer), gpt.init(config, optimizer)(0), batch


MODELS = {"gpt": _gpt, "mlp": _mlp}


def single_kernels(program: Program) -> Program:
    """The same program with a run for every kernel, and frees as instructions behind it."""
    bodies: dict[str, Body] = {}
    out: list[Instruction] = []
    for i in program.instructions:
        if not isinstance(i, Run):
            out.append(i)
            continue
        for k, kernel in enumerate(program.bodies[i.body].kernels):
            name = f"{i.body}.{k}"
            bodies[name] = Body(name, (replace(kernel, frees=()),))
            out.append(Run(name, i.microbatch))
            if kernel.frees:
                out.append(Free(tuple(at(n, i.microbatch) for n in kernel.frees)))
    return replace(program, bodies=bodies, instructions=tuple(out), marks=())


def measured_bytes(case: Lowered, programs: tuple[Program, ...]) -> dict[int, list[int]]:
    """Live bytes of every rank after each of its instructions, by running the programs."""
    graph = case.step.graph
    types = [[v.type for v in values] for values in (graph.inputs, graph.outputs)]
    runner: Any = ThreadRunner(len(programs))
    engine = Engine(programs, runner, HostArrays(), *types)
    inputs = {k: engine.place(k, value) for k, value in enumerate(case.values)}
    found: dict[int, list[int]] = {r: [] for r in range(len(programs))}
    live_bytes = executor.live_bytes

    def note(buffers: Any) -> int:
        nbytes = live_bytes(buffers)
        # The executor also looks after each kernel of a body.
        if sys._getframe(1).f_code.co_name == "__call__":
            found[int(threading.current_thread().name.split()[-1])].append(nbytes)
        return nbytes

    with mock.patch.object(executor, "live_bytes", note):
        engine.run(inputs, measure_memory=True)
    return found
