"""Results of the intra-operator ablation beside the paper's: tables, CSV, a picture."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from v100_host import Line

from hpc_alpa.report.plots import figure as fig
from hpc_alpa.report.tables import Align, show, table
from hpc_alpa.report.units import NOTHING, nbytes_text, seconds_text

PUBLISHED = Path(__file__).parent / "data" / "alpa_intra_op_ablation.csv"
GIB = 2.0**30  # the artifact's gigabyte
NO_DEVIATIONS = "auto is never slower; memory ends as in the paper, where they compare"
OUT = "out of memory"
COLOURS = ("#332288", "#88CCEE", "#44AA99", "#DDCC77", "#CC6677")  # Tol's "muted"


@dataclass(frozen=True)
class Published:
    """The paper's result; None where the method ran out of memory."""

    seconds: float | None
    peak_bytes: float | None


@dataclass(frozen=True)
class Result:
    """One method on one number of GPUs.

    Attributes:
        seconds: of a step, modelled; None where no plan fits the memory.
        peak_bytes: of a GPU, by the simulator; where no plan fits, of the nearest found, or None
            where none is.
        limit_bytes: of a GPU that may be planned with.
        flops: of the products of matrices in a step, convolutions among them, on all GPUs.
        gap: proven, of the choice program.
        published: the paper's result, or None where it has none.
    """

    model: str
    gpus: int
    method: str
    seconds: float | None
    peak_bytes: float | None
    limit_bytes: float
    flops: float
    mesh: tuple[int, ...]
    gap: float | None
    planning_seconds: float
    published: Published | None

    @property
    def fits(self) -> bool:
        return self.seconds is not None

    def teraflops(self, seconds: float | None) -> float | None:
        """TFLOPS of a GPU where a step takes so long."""
        return None if seconds is None else self.flops / self.gpus / seconds / 1e12


def published(model: str, gpus: int, method: str) -> Published | None:
    """The paper's fastest run of a method: `auto_sharding` was tried on several meshes."""
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        rows = [
            r
            for r in csv.DictReader(file)
            if (r["model"], r["gpus"], r["method"]) == (model, str(gpus), method)
        ]
    ran = [(float(r["mean_step_s"]), float(r["peak_memory_gib"])) for r in rows if r["mean_step_s"]]
    if not ran:
        return Published(None, None) if rows else None
    seconds, peak = min(ran)
    return Published(seconds, peak * GIB)


def deviations(found: Sequence[Result]) -> tuple[str, ...]:
    """Where `auto` is slower than a method, or memory ends where it did not in the paper."""
    auto = {(r.model, r.gpus): r.seconds for r in found if r.method == "auto"}
    said = []
    for r in found:
        name = f"{r.model} on {r.gpus} GPUs: {r.method}"
        best = auto.get((r.model, r.gpus), 0.0)
        if r.seconds is not None and (best is None or best > r.seconds):
            time = "finds no plan" if best is None else f"takes {best / r.seconds:.6f} of it"
            said.append(f"{name} takes {r.seconds:.6f} s, auto {time}")
        if r.published and r.fits != (r.published.seconds is not None):
            ends = (
                "fits here, and not in the paper" if r.fits else "fits in the paper, and not here"
            )
            said.append(f"{name} {ends}")
    return tuple(said)


# ---------------------------------------------------------------------------------------- tables
COLUMNS: dict[str, Align] = {
    "GPUs": "right",
    "method": "left",
    "step": "right",
    "step, paper": "right",
    "TFLOPS": "right",
    "TFLOPS, paper": "right",
    "memory": "right",
    "memory, paper": "right",
    "mesh": "right",
}


def show_results(found: Sequence[Result], fitted: Sequence[Line]) -> None:
    """The fits, and a table for each model."""
    rows = [
        [
            x.what, f"{x.alpha:.3g} s", f"{1 / x.beta / 1e9:.4g}", str(x.points),
            f"{100 * x.median_error:.1f} %", f"{100 * x.worst_error:.1f} %",
        ]
        for x in fitted
    ]  # fmt: skip
    names = ("alpha", "1e9 flop/s or byte/s", "points", "median error", "worst error")
    fits = table("fitted lines", {"": "left", **dict.fromkeys(names, "right")}, rows)
    fits.show_lines = False
    show(fits)
    for model in dict.fromkeys(r.model for r in found):
        of = [r for r in found if r.model == model]
        made = table(
            f"{model} in float32, {nbytes_text(of[0].limit_bytes)} of each GPU",
            COLUMNS,
            map(_cells, of),
            "Of a GPU. Where no plan fits, memory is that of the nearest found. "
            f"The largest proven gap of a plan is {100 * max(r.gap or 0.0 for r in of):.2g} %.",
        )
        made.show_lines = False
        show(made)
    show("\n".join(deviations(found)) or NO_DEVIATIONS)


def _cells(r: Result) -> tuple[str, ...]:
    def teraflops(seconds: float | None) -> str:
        found = r.teraflops(seconds)
        return NOTHING if found is None else f"{found:.2f}"

    def step(seconds: float | None) -> str:
        return OUT if seconds is None else seconds_text(seconds)

    paper = r.published
    return (
        str(r.gpus),
        r.method,
        step(r.seconds),
        step(paper.seconds) if paper else NOTHING,
        teraflops(r.seconds),
        teraflops(paper.seconds) if paper else NOTHING,
        nbytes_text(r.peak_bytes),
        nbytes_text(paper.peak_bytes) if paper else NOTHING,
        "x".join(map(str, r.mesh)) or NOTHING,
    )


def write_csv(path: Path, found: Sequence[Result]) -> None:
    """One row per result, in seconds and bytes; empty where a number is missing."""
    names = (
        "model", "gpus", "method", "seconds", "paper_seconds", "teraflops_per_gpu",
        "peak_bytes", "paper_peak_bytes", "limit_bytes", "mesh", "gap",
    )  # fmt: skip
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        for r in found:
            paper = r.published or Published(None, None)
            writer.writerow(
                (
                    r.model,
                    r.gpus,
                    r.method,
                    r.seconds,
                    paper.seconds,
                    r.teraflops(r.seconds),
                    r.peak_bytes,
                    paper.peak_bytes,
                    r.limit_bytes,
                    "x".join(map(str, r.mesh)),
                    r.gap,
                )  # fmt: skip
            )


# --------------------------------------------------------------------------------------- picture
@fig.styled
def draw(path: Path, found: Sequence[Result]) -> None:
    """TFLOPS and memory of a GPU by method and number of GPUs, dots for the paper's."""
    models = list(dict.fromkeys(r.model for r in found))
    made = fig.figure(11, 4 * len(models))
    axes = made.subplots(len(models), 2, squeeze=False)
    for (speed, memory), model in zip(axes, models, strict=True):
        of = [r for r in found if r.model == model]
        _bars(speed, of, [r.teraflops(r.seconds) for r in of], _paper(of, "seconds"))
        speed.set_ylabel("TFLOPS of a GPU")
        speed.set_title(f"{model}, float32, modelled time", weight="bold")
        _bars(memory, of, [_gigabytes(r.peak_bytes) for r in of], _paper(of, "peak_bytes"))
        limit = of[0].limit_bytes
        memory.axhline(limit / 1e9, color=fig.INK, linestyle="--", linewidth=1)
        memory.set_ylabel("memory of a GPU (GB)")
        memory.set_title(f"limit {nbytes_text(limit)}; hatched: none fits, the nearest")
    methods = dict.fromkeys(r.method for r in found)
    keys = [fig.key(m, c, "") for m, c in zip(methods, COLOURS, strict=False)]
    dots = [dot for a in made.axes for dot in a.get_legend_handles_labels()[0]]
    made.legend(handles=[*keys, *dots[:1]], loc="outside lower center", ncols=6)
    fig.save(made, path)


def _paper(of: Sequence[Result], what: str) -> list[float | None]:
    numbers = [getattr(r.published, what) if r.published else None for r in of]
    if what == "seconds":
        return [r.teraflops(x) for r, x in zip(of, numbers, strict=True)]
    return [_gigabytes(x) for x in numbers]


def _gigabytes(nbytes: float | None) -> float | None:
    return None if nbytes is None else nbytes / 1e9


def _bars(
    axes: Any, of: Sequence[Result], ours: Sequence[float | None], paper: Sequence[float | None]
) -> None:
    gpus = list(dict.fromkeys(r.gpus for r in of))
    methods = list(dict.fromkeys(r.method for r in of))
    width = 0.8 / len(methods)
    dots: list[tuple[float, float]] = []
    for k, r in enumerate(of):
        m = methods.index(r.method)
        x = gpus.index(r.gpus) + (m - (len(methods) - 1) / 2) * width
        height, dot = ours[k], paper[k]
        hatch = "" if r.fits else "////"
        axes.bar(
            x, height or 0.0, 0.9 * width, color=COLOURS[m], hatch=hatch,
            edgecolor="white",
        )  # fmt: skip
        if height is None:
            axes.annotate(
                OUT, (x, 0), xytext=(0, 3), textcoords="offset points", rotation=90, size=7,
                ha="center", color=fig.INK,
            )  # fmt: skip
        if dot is not None:
            dots.append((x, dot))
    if dots:
        axes.plot(
            *zip(*dots, strict=True),
            "o",
            color=fig.INK,
            markeredgecolor="white",
            markersize=6,
            label="paper",
        )
    axes.set_ylim(0, None if any(ours) or dots else 1)
    axes.set_xticks(np.arange(len(gpus)), [str(n) for n in gpus])
    axes.set_xlabel("GPUs")
    axes.grid(axis="y", color="#EEEEEE")
    axes.set_axisbelow(True)
