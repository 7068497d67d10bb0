"""The V100 host of Alpa's evaluation as a cost model, fitted from published measurements.

    seconds of a product     = flops / rate
    seconds of an all-gather = (n - 1) * alpha + (n - 1) / n * B * beta        n GPUs, B bytes

Each line is the least squares of its relative errors, with no coefficient below 0. Groups of 2, 4
and 8 GPUs have a line each: NVLink of this host is no switch, and four GPUs are slower than eight.
Other collectives follow from alpha and beta (`hpc_alpa.cost.analytic`). The profile is float16; the
float32 rate is the same share of its own peak. Memory bandwidth is that of the preset.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from hpc_alpa.cluster import Cluster, Link
from hpc_alpa.cost import AnalyticCost
from hpc_alpa.cost.analytic import FORMULAS
from hpc_alpa.cost.protocol import check_collective
from hpc_alpa.errors import CostError

PROFILE = Path(__file__).parent / "data" / "v100_sxm2_16gb.csv"
PEAK = {"float16": 125e12, "float32": 15.7e12}  # flops/s; NVIDIA Tesla V100 data sheet, SXM2
MB = 2.0**20  # bytes of the profile's megabyte
# Alpa gives XLA this share of a GPU, and no step may allocate more (alpa/global_env.py,
# xla_client_mem_fraction); the rest is left to CUDA, cuDNN and NCCL.
USABLE = 0.9


@dataclass(frozen=True)
class Line:
    """A fitted line.

    Attributes:
        what: a matrix product, or an all-gather over so many GPUs.
        alpha, beta: seconds, and seconds per unit (flop, byte).
        median_error, worst_error: relative, at the measured points.
    """

    what: str
    alpha: float
    beta: float
    median_error: float
    worst_error: float
    points: int


@dataclass(frozen=True)
class HostCost(AnalyticCost):
    """`AnalyticCost` whose links depend on how many GPUs of the host a group has.

    Attributes:
        links: (number of GPUs, link) for each measured group.
    """

    links: tuple[tuple[int, Link], ...] = ()
    name: str = "v100-host"

    @cached_property
    def digest(self) -> str:
        return f"{super().digest} {self.links!r}"

    def collective(self, kind: str, nbytes: float, devices: tuple[int, ...]) -> float:
        check_collective(kind, nbytes, devices)
        n = len(devices)
        if n == 1:
            return 0.0
        messages, share = FORMULAS[kind]
        link = self._link(n)
        return messages(n) * link.alpha + share(n) * nbytes * link.beta

    def point_to_point(self, nbytes: float, source: int, destination: int) -> float:
        return 0.0 if source == destination else self._link(2).seconds(nbytes)

    def _link(self, n: int) -> Link:
        known = dict(self.links)
        if n not in known:
            raise CostError(f"groups of {n} GPUs were not measured; there are {sorted(known)}")
        return known[n]


def lines(path: Path = PROFILE) -> tuple[Line, ...]:
    """The lines through a profile: the product's, then one for each size of a group."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [{k: float(x) for k, x in row.items()} for row in csv.DictReader(file)]
    products = [
        (1.0, 2 * r["gemm_n"] * r["gemm_m"] * r["gemm_k"], r["latency_ms"] / 1e3)
        for r in rows
        if r["gemm_n"]
    ]
    found = [_fit("matrix product, float16", products)]
    gathers = [r for r in rows if r["device_to_device_mb"]]
    for n in sorted({r["intra_group_size"] for r in gathers}):
        points = [
            (n - 1, (n - 1) / n * r["device_to_device_mb"] * MB, r["latency_ms"] / 1e3)
            for r in gathers
            if r["intra_group_size"] == n
        ]
        found.append(_fit(f"all_gather over {n:.0f}", points))
    return tuple(found)


def _fit(what: str, points: Iterable[tuple[float, float, float]]) -> Line:
    """seconds = alpha * first + beta * second."""
    first, second, seconds = np.array(list(points)).T
    relative = np.stack([first, second], axis=1) / seconds[:, None]
    (alpha, beta), _ = nnls(relative, np.ones(len(seconds)))
    errors = np.abs(relative @ [alpha, beta] - 1)
    return Line(
        what, float(alpha), float(beta), float(np.median(errors)), float(errors.max()), len(seconds)
    )


def v100_host(found: tuple[Line, ...] | None = None) -> HostCost:
    """The cost model of one host of 8 GPUs, of whose memory `USABLE` may be planned with."""
    product, *gathers = found or lines()
    preset = Cluster.preset("p3.16xlarge")
    rates = tuple((dtype, PEAK[dtype] / PEAK["float16"] / product.beta) for dtype in PEAK)
    host = replace(preset.hosts[0], flops=rates, memory_bytes=USABLE * preset.hosts[0].memory_bytes)
    links = tuple(
        (int(g.what.rpartition(" ")[2]), Link("nvlink", g.alpha, g.beta)) for g in gathers
    )
    cluster = Cluster("v100-host", (host,), links[-1][1])
    return HostCost(cluster, links=links)
