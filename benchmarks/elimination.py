"""The first road of the solver against HiGHS, on the choice programs that the planner makes.

    python benchmarks/elimination.py --layers 12,24,48 --microbatches 1,8,64 --seconds 300

A GPT's train step on one mesh, without memory rows; both solvers get the same presolved program
and are asked for the same gap. Equal layers share their choices (`tied`), as the planner has it, so
that 48 layers are no more than three; or every layer chooses for itself (`free`), and the program
grows with them. HiGHS solves the relaxation, which is integral on these programs; where half of the
time was not enough for it, its columns say so, and the ratio is at least what is printed.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from plan_scaling import traced

from hpc_alpa.cluster import Cluster, DeviceMesh
from hpc_alpa.cost import AnalyticCost
from hpc_alpa.models import GPTConfig
from hpc_alpa.plan.intra_op import IntraOp
from hpc_alpa.plan.pricing import Pricing
from hpc_alpa.plan.solve import highs, prune
from hpc_alpa.plan.solve.options import Options
from hpc_alpa.plan.solve.presolve import reduce
from hpc_alpa.plan.solve.problem import Problem, Reader, Value, evaluate
from hpc_alpa.report.tables import show, table
from hpc_alpa.report.units import seconds_text
from hpc_alpa.step import split_batch, split_stages

KINDS = ("tied", "free")
HIGHS_PHASES = ("build", "relaxation", "integer program")


@dataclass(frozen=True)
class Result:
    """One program, solved twice.

    Attributes:
        choices: of the presolved program.
        seconds, highs_seconds: without the presolve.
        objective, bound, highs_objective, highs_bound: seconds of a step, as the cost model counts.
        highs_status: "optimal", or "late": `highs.solve` then went on with the first road.
    """

    layers: int
    microbatches: int
    kind: str
    nodes: int
    choices: int
    seconds: float
    objective: float
    bound: float
    highs_seconds: float
    highs_objective: float
    highs_bound: float
    highs_status: str

    @property
    def ratio(self) -> float:
        return self.highs_seconds / self.seconds

    @property
    def gap(self) -> float:
        return (self.objective - self.bound) / abs(self.objective)


def program(layers: int, microbatches: int, kind: str, o: argparse.Namespace) -> Problem:
    """The choice program of one model, presolved."""
    cluster = Cluster.preset(o.cluster)
    config = GPTConfig(layers, o.hidden, o.heads, o.sequence, o.vocabulary, 0.0, "float32")
    step = traced(config, o.batch, cluster)
    batch = frozenset(step.graph.inputs[k] for k in step.batch_positions)
    graph = step.graph
    if kind == "free":  # layers that nobody marked are not compared
        graph = replace(graph, eqns=tuple(replace(e, layer=None) for e in graph.eqns))
    divided = split_batch(graph, batch, microbatches, step.renewed)
    [stage] = split_stages(divided, ())
    mesh = DeviceMesh(o.mesh, tuple(range(math.prod(o.mesh))))
    made = IntraOp(divided, stage, Pricing.on(mesh, AnalyticCost(cluster))).problem()
    return reduce(made).problem


def compared(layers: int, microbatches: int, kind: str, o: argparse.Namespace) -> Result:
    """Solve one program on both roads."""
    problem = program(layers, microbatches, kind, o)
    begin = time.perf_counter()
    found = prune.search(problem, o.gap, o.seconds)
    seconds = time.perf_counter() - begin
    objective = math.inf if found.best is None else evaluate(problem, found.best).objective
    whole = highs.solve(problem, Options(relative_gap=o.gap, seconds=o.seconds))
    alone = whole.status == "optimal" and "heuristics" not in whole.phases
    highs_seconds = sum(whole.phases.get(p, 0.0) for p in HIGHS_PHASES)
    return Result(
        *(layers, microbatches, kind, len(problem.costs), int(problem.choice_offset[-1])),
        *(seconds, objective, found.bound, highs_seconds, whole.objective, whole.bound),
        "optimal" if alone else "late",
    )


def warm_up() -> None:
    """Load what is compiled, and what HiGHS does once per process."""
    everyone = np.arange(2)
    readers = (Reader(1, everyone), Reader(2, everyone))
    shared = Value(0, everyone, readers, np.array([[0.0, 1.0], [2.0, 0.0]]))
    problem = Problem((np.ones(2),) * 3, (shared,))
    prune.search(problem, 0.0, 1.0)
    highs.solve(problem)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return [int(n) for n in text.split(",")]

    p = argparse.ArgumentParser(description="The first road of the solver against HiGHS.")
    p.add_argument("--layers", type=numbers, default=[12, 24, 48], metavar="N,N,...")
    p.add_argument("--microbatches", type=numbers, default=[1, 8, 64], metavar="N,N,...")
    p.add_argument("--kinds", type=lambda s: s.split(","), default=["tied"], help="tied, free")
    p.add_argument("--mesh", type=lambda s: tuple(map(int, s.split("x"))), default=(8, 8))
    p.add_argument("--cluster", default="p3.16xlarge:8", help="a preset")
    p.add_argument("--hidden", type=int, default=8192)
    p.add_argument("--heads", type=int, default=64)
    p.add_argument("--sequence", type=int, default=1024)
    p.add_argument("--vocabulary", type=int, default=51200)
    p.add_argument("--batch", type=int, default=1024)
    p.add_argument("--gap", type=float, default=1e-6, help="proven gap at which to stop")
    p.add_argument("--seconds", type=float, default=300, help="most for one solution")
    p.add_argument("--json", action="store_true", help="print JSON instead of a table")
    o = p.parse_args(arguments)
    if not set(o.kinds) <= set(KINDS):
        p.error(f"--kinds {','.join(o.kinds)}: expected some of {', '.join(KINDS)}")
    return o


def main(o: argparse.Namespace) -> None:
    warm_up()
    results = [
        compared(n, b, kind, o) for kind in o.kinds for b in o.microbatches for n in o.layers
    ]
    if o.json:
        data: list[dict[str, Any]] = [
            {**asdict(r), "ratio": r.ratio, "gap": r.gap, "mesh": o.mesh} for r in results
        ]
        print(json.dumps(data, indent=1))
        return
    names = (
        *("layers", "kind", "microbatches", "choices", "first road", "HiGHS", "ratio"),
        *("objective", "gap", "HiGHS's objective"),
    )
    rows = [
        [str(r.layers), r.kind, str(r.microbatches), f"{r.choices:,}"]
        + [seconds_text(r.seconds), seconds_text(r.highs_seconds), f"{r.ratio:,.1f}"]
        + [f"{r.objective:.6f}", f"{100 * r.gap:.2g} %"]
        + [f"{r.highs_objective:.6f}" if r.highs_status == "optimal" else r.highs_status]
        for r in results
    ]
    title = f"choice programs on {'x'.join(map(str, o.mesh))} of {o.cluster}"
    show(table(title, dict.fromkeys(names, "right"), rows))


if __name__ == "__main__":
    main(parse())
