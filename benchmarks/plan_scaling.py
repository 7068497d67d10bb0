"""Seconds of planning a GPT on one mesh, by phase, against its number of layers.

    python benchmarks/plan_scaling.py --layers 12,24,48,96 --microbatches 8,64 --out scaling
    python benchmarks/plan_scaling.py --share 0.5        # of the bytes of the fastest plan

Everything is planned: forward, backward and update, every operator in the graph, on one process
and without a device. Under a share, the plan without a limit is made first and is not timed.
Prints a table, writes DIR/plan_scaling.json and DIR/plan_scaling.png.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpc_alpa.api.arguments import Arguments
from hpc_alpa.api.compile import Step, trace_step
from hpc_alpa.api.step import parallelize
from hpc_alpa.cluster import Cluster, DeviceMesh
from hpc_alpa.cost import AnalyticCost
from hpc_alpa.ir.graph import Eqn
from hpc_alpa.models import AdamW, GPTConfig, adamw, gpt
from hpc_alpa.plan.intra_op import IntraOp
from hpc_alpa.plan.pricing import Pricing
from hpc_alpa.plan.restrictions import Restrictions
from hpc_alpa.plan.solve.options import Options
from hpc_alpa.report.plots import figure as fig
from hpc_alpa.report.tables import show, table
from hpc_alpa.report.units import nbytes_text, seconds_text
from hpc_alpa.sharding import Strategy
from hpc_alpa.step import split_batch, split_stages

PHASES = ("trace", "split", "strategies and costs", "solve", "decode")
COLOURS = ("#88CCEE", "#44AA99", "#DDCC77", "#332288", "#CC6677")  # Tol's "muted"


@dataclass(frozen=True)
class Result:
    """One plan.

    Attributes:
        choices: strategies of all equations together: the space.
        memory: bytes of a device that were allowed; None for any.
        sequence_dims: whether the sequence was among what may be split.
        seconds: by phase.
        step_seconds, bound: of the choice program, as the cost model counts.
    """

    layers: int
    microbatches: int
    mesh: tuple[int, ...]
    equations: int
    choices: int
    seconds: dict[str, float]
    status: str
    step_seconds: float
    bound: float
    gap: float
    held_bytes: float
    memory_rows: int
    memory: float | None
    sequence_dims: bool

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


class Lap:
    """Seconds since the last lap, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def __call__(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase] = now - self._last
        self._last = now


def traced(config: GPTConfig, rows: int, cluster: Cluster) -> Step:
    """A train step's graph; no parameter is ever made."""
    optimizer = adamw(AdamW())
    function = gpt.train_step(config, optimizer, seed=0)
    born = parallelize(function, backend="local", cluster=cluster)
    state = born.create(gpt.init(config, optimizer), 0)
    tokens = np.zeros((rows, config.sequence), np.int32)
    given = Arguments.of(state, {"tokens": tokens, "targets": tokens}, 1e-3)
    return trace_step(function, given.examples(), len(given.parts[0]), given.trees[0], False)


def without(extent: int) -> Restrictions:
    """No dim of this many elements is split."""

    def allowed(e: Eqn, strategy: Strategy) -> bool:
        ends = zip((*e.inputs, e.output), (*strategy.inputs, strategy.output), strict=True)
        return not any(
            axes and n == extent
            for v, spec in ends
            for axes, n in zip(spec.dims, v.type.shape, strict=True)
        )

    return Restrictions(allowed)


def planned(layers: int, microbatches: int, o: argparse.Namespace) -> Result:
    """Plan one model under the limit that was asked for."""
    if o.share is None:
        return plan(layers, microbatches, o, o.memory)
    fastest = plan(layers, microbatches, o, None)
    return plan(layers, microbatches, o, o.share * fastest.held_bytes)


def plan(layers: int, microbatches: int, o: argparse.Namespace, memory: float | None) -> Result:
    """Plan one model."""
    cluster = Cluster.preset(o.cluster)
    config = GPTConfig(layers, o.hidden, o.heads, o.sequence, o.vocabulary, 0.0, "float32")
    lap = Lap()
    step = traced(config, o.batch, cluster)
    lap("trace")
    batch = frozenset(step.graph.inputs[k] for k in step.batch_positions)
    divided = split_batch(step.graph, batch, microbatches, step.renewed)
    [stage] = split_stages(divided, ())
    lap("split")
    mesh = DeviceMesh(o.mesh, tuple(range(math.prod(o.mesh))))
    pricing = Pricing.on(mesh, AnalyticCost(cluster))
    rules = Restrictions() if o.sequence_dims else without(o.sequence)
    program = IntraOp(divided, stage, pricing, rules, memory=memory)
    problem = program.problem()
    lap("strategies and costs")
    solution = program.solve(Options(relative_gap=o.gap, seconds=o.seconds))
    lap("solve")
    program.decode(solution, ("x", "y", "z")[: len(o.mesh)])
    lap("decode")
    return Result(
        layers, microbatches, o.mesh, len(stage.graph.eqns), sum(map(len, problem.costs)),
        lap.seconds, solution.status, solution.objective, solution.bound, solution.gap,
        program.held_bytes(solution), program.num_memory_rows, memory, o.sequence_dims,
    )  # fmt: skip


@fig.styled
def draw(path: Path, results: Sequence[Result]) -> None:
    """Stacked seconds against layers, one panel per number of microbatches."""
    slots = sorted({r.microbatches for r in results})
    made = fig.figure(4.6 * len(slots) + 1, 4)
    for k, b in enumerate(slots):
        axes = made.add_subplot(1, len(slots), k + 1)
        rows = sorted((r for r in results if r.microbatches == b), key=lambda r: r.layers)
        places = np.arange(len(rows))
        under = np.zeros(len(rows))
        for phase, colour in zip(PHASES, COLOURS, strict=True):
            high = np.array([r.seconds[phase] for r in rows])
            axes.bar(places, high, 0.6, bottom=under, color=colour, label=phase)
            under += high
        linear = rows[0].total / rows[0].layers
        axes.plot(places, [linear * r.layers for r in rows], "--", color=fig.FAINT, label="linear")
        axes.set_xticks(places, [str(r.layers) for r in rows])
        axes.set(xlabel="layers", ylabel="seconds" if k == 0 else "")
        axes.set_title(f"{b} microbatches")
    made.axes[0].legend()
    fig.save(made, path)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return [int(n) for n in text.split(",")]

    p = argparse.ArgumentParser(description="Seconds of planning a GPT against its layers.")
    p.add_argument("--layers", type=numbers, default=[12, 24, 48, 96], metavar="N,N,...")
    p.add_argument("--microbatches", type=numbers, default=[8, 64], metavar="N,N,...")
    p.add_argument("--mesh", type=lambda s: tuple(map(int, s.split("x"))), default=(8, 8))
    p.add_argument("--cluster", default="p3.16xlarge:8", help="a preset")
    p.add_argument("--hidden", type=int, default=8192)
    p.add_argument("--heads", type=int, default=64)
    p.add_argument("--sequence", type=int, default=1024)
    p.add_argument("--vocabulary", type=int, default=51200)
    p.add_argument("--batch", type=int, default=1024)
    limit = p.add_mutually_exclusive_group()
    limit.add_argument("--memory", type=float, metavar="BYTES", help="of a device; default: any")
    limit.add_argument("--share", type=float, metavar="X", help="of what the fastest plan holds")
    p.add_argument("--no-sequence", dest="sequence_dims", action="store_false",
                   help="never split the sequence")  # fmt: skip
    p.add_argument("--gap", type=float, default=1e-3, help="proven gap at which to stop")
    p.add_argument("--seconds", type=float, default=120, help="most for one solution")
    p.add_argument("--out", type=Path, metavar="DIR")
    p.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return p.parse_args(arguments)


def main(o: argparse.Namespace) -> None:
    results = [planned(n, b, o) for b in o.microbatches for n in o.layers]
    data: list[dict[str, Any]] = [{**asdict(r), "total": r.total} for r in results]
    if o.json:
        print(json.dumps(data, indent=1))
    else:
        names = ("layers", "microbatches", "choices", *PHASES, "total", "gap", "memory", "allowed")
        rows = [
            [str(r.layers), str(r.microbatches), f"{r.choices:,}"]
            + [seconds_text(r.seconds[p]) for p in PHASES]
            + [seconds_text(r.total), f"{100 * r.gap:.2g} %", nbytes_text(r.held_bytes)]
            + ["any" if r.memory is None else nbytes_text(r.memory)]
            for r in results
        ]
        title = f"planning on {'x'.join(map(str, o.mesh))} of {o.cluster}"
        show(table(title, dict.fromkeys(names, "right"), rows))
    if o.out is not None:
        o.out.mkdir(parents=True, exist_ok=True)
        (o.out / "plan_scaling.json").write_text(json.dumps(data, indent=1) + "\n")
        draw(o.out / "plan_scaling.png", results)


if __name__ == "__main__":
    main(parse())
