"""Alpa's end-to-end evaluation (OSDI 2022, Sec. 8.1) in modelled time.

    python benchmarks/paper.py --models gpt-350M,gpt-1.3B --out paper
    python benchmarks/paper.py --models gpt-39B --json

For each of the paper's models, on as many V100 as there: our plan; Alpa's published slicing, whose
strategies our program chooses, with its number of microbatches and all layers made again; the best
of some manual grids, as Megatron-LM has them; intra-operator parallelism alone; pipelines alone.
All are lowered and simulated under one cost model, the description of the paper's cluster, and
nothing runs on a GPU. Published numbers count what is made again as useful work, so ours do.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import logging
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from hpc_alpa.api.compile import Step, trace_step
from hpc_alpa.cluster import Cluster, DeviceMesh
from hpc_alpa.cost import AnalyticCost
from hpc_alpa.errors import HpcAlpaError, InfeasibleError
from hpc_alpa.models import PaperModel, paper_model
from hpc_alpa.plan.plan import Plan
from hpc_alpa.plan.solve.options import Clock, Options
from hpc_alpa.pytree import flatten
from hpc_alpa.report.plots import figure as fig
from hpc_alpa.report.tables import show, table
from hpc_alpa.report.units import seconds_text
from hpc_alpa.search import Request, search
from hpc_alpa.search.candidates import Candidate
from hpc_alpa.search.layers import find_layers
from hpc_alpa.search.scoring import score
from hpc_alpa.step import marked_layers, recompute, split_batch

DATA = Path(__file__).parent / "data"
USABLE = 0.9  # of a GPU's memory, as Alpa gave to XLA (alpa/global_env.py)
METHODS = ("ours", "alpa_plan", "manual", "intra_only", "inter_only")
PUBLISHED = {  # ours: the paper's name of it, of GPT and of Wide-ResNet
    "gpt": {
        "ours": "alpa.auto", "manual": "megatron", "intra_only": "alpa.intra_only",
        "inter_only": "alpa.inter_only",
    },
    "wide-resnet": {
        "ours": "alpa.auto", "manual": "alpa.ppdp", "intra_only": "alpa.intra_only",
        "inter_only": "alpa.inter_only",
    },
}  # fmt: skip
GAP = 5e-3
COLOURS = ("#88CCEE", "#44AA99", "#DDCC77", "#332288", "#CC6677")  # Tol's "muted"


@cache
def alpa_plans() -> dict[str, Any]:
    """The published plans by the name of the model."""
    plans = json.loads((DATA / "alpa_plans.json").read_text())
    named = {p["model"].replace("_", "-"): p for p in plans["plans"]}
    return {**named, "manual": {m["devices"]: m for m in plans["best_manual_megatron_gpt"]}}


@cache
def published(family: str, devices: int) -> dict[str, float | None]:
    """TFLOPS of a GPU by our name of the method; None where it ran out of memory."""
    names = PUBLISHED.get(family, {})
    short = family.replace("wide-resnet", "wresnet")
    with (DATA / "alpa_end_to_end.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if (r["model"], r["gpus"]) == (short, str(devices))]
    of = {r["method"]: r["tflops_per_gpu_incl_recompute"] for r in rows}
    return {ours: float(of[name]) if of.get(name) else None for ours, name in names.items()}


class Case:
    """One model on its GPUs.

    Attributes:
        slots: Alpa's number of microbatches, which the manual methods take too.
    """

    def __init__(self, name: str, seconds: float) -> None:
        self.model: PaperModel = paper_model(name)
        self.devices = self.model.devices or 64
        hosts = math.ceil(self.devices / 8)
        cluster = Cluster.preset(f"p3.16xlarge:{hosts}")
        cost = AnalyticCost(cluster)
        step = self._traced()
        batch = frozenset(step.graph.inputs[k] for k in step.batch_positions)
        self.request = Request(
            step.graph, batch, step.renewed, cluster, cost, self.devices, seconds=seconds,
            memory=USABLE * min(h.memory_bytes for h in cluster.hosts),
        )  # fmt: skip
        self.published = alpa_plans().get(name, {})
        self.slots: int = self.published.get("microbatches", 1)

    def _traced(self) -> Step:
        state, batch = self.model.example()
        leaves, tree = flatten(state, "state")
        return trace_step(self.model.train_step, (state, batch), len(leaves), tree, False)

    # -------------------------------------------------------------------------------- methods
    def ours(self) -> Plan:
        # Batch norm makes the number of microbatches a part of Wide-ResNet's meaning.
        fixed = self.slots if self.model.name.startswith("wide") else None
        return search(replace(self.request, num_microbatches=fixed))

    def alpa_plan(self) -> Plan:
        """Alpa's layers, stages and meshes."""
        p = self.published
        if not p:
            raise HpcAlpaError("no plan of this model was published")
        step = split_batch(self.request.graph, self.request.batch, self.slots, self.request.renewed)
        layers = find_layers(step, self.request.cost, p["layers"])
        ends = list(itertools.accumulate(p["stages"]))
        cuts = tuple(layers.starts[k] for k in ends[:-1])
        meshes, at = [], 0
        for shape in _shapes(p["logical"], len(ends)):
            n = math.prod(shape)
            axes = tuple(k for k in shape if k > 1) or (1,)
            meshes.append(DeviceMesh(axes, tuple(range(at, at + n))))
            at += n
        names = tuple(("x", "y")[: len(m.shape)] for m in meshes)
        again = marked_layers(step.graph)
        candidate = Candidate(self.slots, "1f1b", cuts, tuple(meshes), names, again)
        clock = Clock(math.inf)
        options = Options(GAP, seconds=self.request.seconds)
        return score(
            self.request, None, recompute(step, again, cuts), candidate, clock, options
        ).plan

    def manual(self) -> Plan:
        """The best of the grids: the published one, or tensor and pipeline parallelism."""
        return self._best(self._grids())

    def _grids(self) -> Iterator[tuple[str, int]]:
        known = alpa_plans()["manual"].get(self.devices)
        if self.model.name.startswith("gpt") and known:
            yield _grid(known["dp"], known["tp"], known["pp"]), known["microbatches"]
            return
        for tp in (1, 2, 4, 8):
            for pp in (1, 2, 4, 8, 16):
                dp = self.devices // (tp * pp)
                worth = tp == min(8, self.devices // pp) or dp * pp == self.devices
                if dp * tp * pp == self.devices and worth:
                    yield _grid(dp, tp, pp), self.slots

    def intra_only(self) -> Plan:
        return search(replace(self.request, num_stages=1, num_microbatches=self.slots))

    def inter_only(self) -> Plan:
        return self._best([(f"pp{self.devices}", self.slots)])

    def _best(self, grids: Iterable[tuple[str, int]]) -> Plan:
        """The fastest plan, each first with all layers made again, else with none."""
        found, failed = [], []
        for method, slots in grids:
            for again in ("all", "none"):
                asked = replace(
                    self.request, method=method, num_microbatches=slots, recompute=again
                )
                try:
                    found.append(search(asked))
                    break
                except HpcAlpaError as error:
                    failed.append(error)
        if not found:
            memory = [e for e in failed if isinstance(e, InfeasibleError)]
            raise (memory or failed)[0]
        return min(found, key=lambda p: p.predicted["step_seconds"])

    # -------------------------------------------------------------------------------- results
    def result(self, method: str) -> dict[str, Any]:
        """What a method comes to; `fits` is false where memory ends."""
        begin = time.perf_counter()
        try:
            plan = getattr(self, method)()
        except HpcAlpaError as error:
            return {
                "fits": False, "step_seconds": None, "tflops_per_device": None,
                "why": str(error).splitlines()[0],
            }  # fmt: skip
        seconds = plan.predicted["step_seconds"]
        rates = [self.model.flops(again) / seconds / self.devices / 1e12 for again in (False, True)]
        return {
            "fits": True,
            "step_seconds": seconds,
            "tflops_per_device": rates[0],
            "tflops_per_device_with_recomputation": rates[1],
            "peak_bytes": max(plan.predicted["peak_bytes"]),
            "microbatches": plan.num_microbatches,
            "schedule": plan.schedule,
            "recompute": len(plan.recompute),
            "meshes": ["x".join(map(str, s.mesh_shape)) for s in plan.stages],
            "planning_seconds": time.perf_counter() - begin,
        }

    def row(self, methods: Sequence[str]) -> dict[str, Any]:
        family, _, _ = self.model.name.rpartition("-")
        known = published(family, self.devices)
        made: dict[str, Any] = {"model": self.model.name, "devices": self.devices}
        for method in methods:
            print(f"{self.model.name} on {self.devices} GPUs: {method}", file=sys.stderr)
            made[method] = self.result(method)
            rate, paper = (
                made[method].get("tflops_per_device_with_recomputation"),
                known.get(method),
            )
            made[method]["published_tflops"] = paper
            made[method]["predicted_over_published"] = rate / paper if rate and paper else None
        return made


def _shapes(logical: Any, num_stages: int) -> list[tuple[int, ...]]:
    """One logical shape per stage; `16 x [1,4]` stands for as many of one."""
    if isinstance(logical, str):
        _, _, shape = logical.partition(" x ")
        return [tuple(json.loads(shape))] * num_stages
    return [tuple(shape) for shape in logical]


def _grid(dp: int, tp: int, pp: int) -> str:
    parts = [f"{name}{n}" for name, n in (("dp", dp), ("tp", tp), ("pp", pp)) if n > 1]
    return "".join(parts) or "dp1"


def show_rows(rows: Sequence[dict[str, Any]], methods: Sequence[str]) -> None:
    columns: dict[str, Literal["left", "right"]] = {
        "model": "left",
        "GPUs": "right",
        "method": "left",
        "step": "right",
    }
    columns |= {"TFLOPS": "right", "published": "right", "ratio": "right", "plan": "left"}
    lines = []
    for row in rows:
        for method in methods:
            r = row[method]
            paper, ratio = r["published_tflops"], r["predicted_over_published"]
            lines.append(
                (
                    row["model"], str(row["devices"]), method,
                    seconds_text(r["step_seconds"]) if r["fits"] else "out of memory",
                    f"{r['tflops_per_device_with_recomputation']:.1f}" if r["fits"] else "-",
                    f"{paper:.1f}" if paper else "-", f"{ratio:.2f}" if ratio else "-",
                    f"B={r['microbatches']} {_counted(r['meshes'])}" if r["fits"] else "",
                )
            )  # fmt: skip
    show(table("modelled on V100, recomputation counted", columns, lines))


def _counted(meshes: Sequence[str]) -> str:
    return " ".join(f"{len(list(same))} x {shape}" for shape, same in itertools.groupby(meshes))


@fig.styled
def draw(path: Path, rows: Sequence[dict[str, Any]], methods: Sequence[str]) -> None:
    """Modelled TFLOPS of a GPU, and the published ones as marks."""
    made = fig.figure(1.4 * len(rows) + 3, 3.8)
    axes = made.subplots()
    width = 0.8 / len(methods)
    for k, method in enumerate(methods):
        at = [i + (k - len(methods) / 2 + 0.5) * width for i in range(len(rows))]
        rates = [r[method].get("tflops_per_device_with_recomputation") or 0.0 for r in rows]
        paper = [r[method]["published_tflops"] or math.nan for r in rows]
        axes.bar(at, rates, width, label=method.replace("_", " "), color=COLOURS[k % len(COLOURS)])
        axes.plot(at, paper, "k_", label="published" if k == 0 else None)
    axes.set_xticks(range(len(rows)), [r["model"] for r in rows], rotation=30, ha="right")
    axes.set_ylabel("TFLOPS of a GPU, modelled")
    axes.legend()
    fig.save(made, path)


def write_csv(path: Path, rows: Sequence[dict[str, Any]], methods: Sequence[str]) -> None:
    columns = ("fits", "step_seconds", "tflops_per_device", "published_tflops")
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "devices", "method", *columns])
        for row in rows:
            for method in methods:
                values = [row[method].get(c) for c in columns]
                writer.writerow([row["model"], row["devices"], method, *values])


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description="Alpa's end-to-end evaluation in modelled time.")
    p.add_argument("--models", default="gpt-350M,gpt-760M,gpt-1.3B,gpt-2.6B")
    p.add_argument("--methods", default=",".join(METHODS))
    p.add_argument("--seconds", type=float, default=60, help="most for one choice program")
    p.add_argument("--out", type=Path, metavar="DIR", help="write JSON, CSV and a plot there")
    p.add_argument("--json", action="store_true", help="print JSON instead of a table")
    p.add_argument("--verbose", action="store_true", help="say what the searches try")
    return p.parse_args(arguments)


def main(o: argparse.Namespace) -> list[dict[str, Any]]:
    if o.verbose:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    methods = o.methods.split(",")
    rows = [Case(name, o.seconds).row(methods) for name in o.models.split(",")]
    if o.json:
        print(json.dumps(rows, indent=1))
    else:
        show_rows(rows, methods)
    if o.out is not None:
        o.out.mkdir(parents=True, exist_ok=True)
        (o.out / "paper.json").write_text(json.dumps(rows, indent=1) + "\n")
        write_csv(o.out / "paper.csv", rows, methods)
        draw(o.out / "paper.png", rows, methods)
    return rows


if __name__ == "__main__":
    main(parse())
