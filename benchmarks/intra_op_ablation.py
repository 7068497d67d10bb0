"""Alpa's ablation of intra-operator parallelism (OSDI 2022, Sec. 8.2) in modelled time.

    python benchmarks/intra_op_ablation.py --gpus 1,2,4,8 --out ablation

One stage on the GPUs of one host of the paper, and a model that grows with their number. Every
method is planned, lowered and simulated as any step is; the host's rates and links are fitted from
published measurements (`v100_host`), and nothing runs on a GPU. Prints a table beside the published
numbers; with --out writes DIR/intra_op_ablation.{json,csv,png}. Ends with 1 where `auto` is slower
than a method, or memory ends where it did not in the paper.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from ablation_models import COMPARABLE, MODELS, Model
from ablation_report import Result, deviations, draw, published, show_results, write_csv
from v100_host import lines, v100_host

from hpc_alpa.api.arguments import Arguments
from hpc_alpa.api.compile import Step, trace_step
from hpc_alpa.api.step import parallelize
from hpc_alpa.cost import Cost
from hpc_alpa.errors import InfeasibleError
from hpc_alpa.plan.methods.products import PRODUCTS
from hpc_alpa.search import Request, search

# name: (our method on n GPUs, the paper's name of it)
METHODS: dict[str, tuple[Callable[[int], str], str]] = {
    "auto": (lambda n: "auto", "auto_sharding"),
    "data": (lambda n: f"dp{n}", "data_parallel"),
    "ZeRO-2": (lambda n: "zero2", "zero_2"),
    "ZeRO-3": (lambda n: "zero3", "zero_3"),
    "shard largest": (lambda n: "shard_largest", "heuristic"),
}


def traced(model: Model, cost: Cost) -> Step:
    """A train step's graph; no parameter is ever made."""
    born = parallelize(model.train_step, backend="local", cluster=cost.cluster)
    given = Arguments.of(born.create(model.init, 0), model.batch)
    return trace_step(
        model.train_step, given.examples(), len(given.parts[0]), given.trees[0], False
    )


def results(name: str, gpus: int, cost: Cost, o: argparse.Namespace) -> Iterator[Result]:
    """All methods on one number of GPUs."""
    step = traced(MODELS[name](gpus), cost)
    batch = frozenset(step.graph.inputs[k] for k in step.batch_positions)
    flops = sum(
        e.op.flops(e.input_types, e.output.type, e.params_dict)
        for e in step.graph.eqns
        if e.op.name in PRODUCTS
    )
    for method in o.methods:
        request = Request(
            step.graph, batch, step.renewed, cost.cluster, cost, gpus, METHODS[method][0](gpus),
            num_microbatches=1, memory=o.memory, seconds=o.seconds, recompute="none",
        )  # fmt: skip
        print(f"{name} on {gpus} GPUs: {method}", file=sys.stderr)
        yield planned(request, method, name, flops)


def planned(request: Request, method: str, model: str, flops: float) -> Result:
    """The plan's predictions, or by how much there is none."""
    gpus, limit = request.num_devices, request.memory_limit
    paper = published(model, gpus, METHODS[method][1]) if model in COMPARABLE else None
    start = time.perf_counter()
    try:
        plan = search(request)
    except InfeasibleError as error:
        needed = limit + error.missing if math.isfinite(error.missing) else None
        seconds = time.perf_counter() - start
        return Result(model, gpus, method, None, needed, limit, flops, (), None, seconds, paper)
    [stage] = plan.stages  # the ablation is of one stage
    return Result(
        model, gpus, method, plan.predicted["step_seconds"],
        float(max(plan.predicted["peak_bytes"])), limit, flops, stage.mesh_shape,
        plan.solver["gap"], plan.solver["planning_seconds"], paper,
    )  # fmt: skip


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    def names(known: Sequence[str]) -> Callable[[str], list[str]]:
        def split(text: str) -> list[str]:
            given = text.split(",")
            if not set(given) <= set(known):
                raise argparse.ArgumentTypeError(f"choose among {', '.join(known)}")
            return given

        return split

    p = argparse.ArgumentParser(description="Alpa's intra-operator ablation in modelled time.")
    p.add_argument("--models", type=names(tuple(MODELS)), default=["wide_resnet"])
    p.add_argument(
        "--gpus", type=lambda s: [int(n) for n in s.split(",")], default=[1, 2, 4, 8],
        metavar="N,N,...",
    )  # fmt: skip
    p.add_argument("--methods", type=names(tuple(METHODS)), default=list(METHODS))
    p.add_argument("--seconds", type=float, default=60, help="most for one choice program")
    p.add_argument("--memory", type=float, metavar="BYTES", help="of a GPU; default: the host's")
    p.add_argument("--out", type=Path, metavar="DIR")
    p.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return p.parse_args(arguments)


def main(o: argparse.Namespace) -> list[Result]:
    fitted = lines()
    cost = v100_host(fitted)
    found = [r for name in o.models for n in o.gpus for r in results(name, n, cost, o)]
    data = {
        "fitted": [asdict(x) for x in fitted],
        "results": [asdict(r) for r in found],
        "deviations": deviations(found),
    }
    if o.json:
        print(json.dumps(data, indent=1))
    else:
        show_results(found, fitted)
    if o.out is not None:
        o.out.mkdir(parents=True, exist_ok=True)
        (o.out / "intra_op_ablation.json").write_text(json.dumps(data, indent=1) + "\n")
        write_csv(o.out / "intra_op_ablation.csv", found)
        draw(o.out / "intra_op_ablation.png", found)
    return found


if __name__ == "__main__":
    sys.exit(1 if deviations(main(parse())) else 0)
