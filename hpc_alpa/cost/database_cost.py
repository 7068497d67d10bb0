"""Seconds from measured samples.

Which samples price what:

- Compute: the operator's class (`classes.py`), its dtype, and the host's load: with n ranks on a
  host of c cores, min(n, c) ranks compute at once, each with max(1, c // n) threads.
- A collective: its kind, the size of its group and the number of hosts it spans. As a mesh axis's
  groups communicate together, samples with as many disjoint groups at once as fit on the cluster
  are taken, or with the most that were measured. Samples of a run with as many ranks as the cluster
  has come before others.
- A message: within a host or between hosts.

Repeated measurements are pooled (the median run). A class measured in several variants (layouts of
a matrix product, dims of a reduction) is priced at their geometric mean.
"""

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from hpc_alpa.cluster import Cluster
from hpc_alpa.cost.classes import operator_class, priced_as
from hpc_alpa.cost.database import PROFILER, Database
from hpc_alpa.cost.interpolate import Curve, MatmulModel, spread_of
from hpc_alpa.cost.protocol import ZERO, Spread, check_collective
from hpc_alpa.cost.sample import Quantiles, Sample
from hpc_alpa.cost.work import Work
from hpc_alpa.errors import CostError

Model = Callable[[Work], Spread]
T = TypeVar("T")


@dataclass(frozen=True)
class Load:
    """How busy a host is: ranks that compute at once, each with `threads` threads."""

    threads: int
    busy: int

    @classmethod
    def of(cls, ranks: int, cores: int) -> "Load":
        """The load of `ranks` ranks on a host of `cores` cores."""
        return cls(max(1, cores // ranks), min(ranks, cores))

    def __str__(self) -> str:
        return f"{self.busy} ranks at once with {self.threads} threads each"


@dataclass(frozen=True, eq=False)
class DatabaseCost:
    """Seconds of one machine's cost database, on a cluster of such machines."""

    database: Database
    cluster: Cluster
    name: str = "database"
    in_seconds: bool = True

    @cached_property
    def digest(self) -> str:
        rows = sorted(repr((s.key, s.seconds)) for s in self.database.samples)
        content = "\n".join([self.database.machine_digest, self.cluster.digest, *rows])
        return hashlib.sha256(content.encode()).hexdigest()

    # ---------------------------------------------------------------------------------- compute
    def compute(self, work: Work) -> float:
        return self.compute_spread(work).median

    def compute_spread(self, work: Work) -> Spread:
        """As `compute`, with the quartiles of the measurement; of the slowest host."""
        known = self._prices.get(work)  # a planner asks of few works, each thousands of times
        if known is None:
            spreads = [self._compute(work, load) for load in self._loads]
            known = self._prices[work] = max(spreads, key=lambda s: s.median)
        return known

    @cached_property
    def _prices(self) -> dict[Work, Spread]:
        return {}

    @cached_property
    def _loads(self) -> frozenset[Load]:
        return frozenset(Load.of(host.devices, host.cores) for host in self.cluster.hosts)

    def _compute(self, work: Work, load: Load) -> Spread:
        name = operator_class(work.op)
        for dtype in priced_as(name, work.dtype, work.nbytes):
            variants = self._operators.get((name, dtype, load))
            if variants:
                return _geometric_mean([model(work) for model in variants])
        measured = sorted({f"{d} with {w}" for n, d, w in self._operators if n == name})
        raise CostError(
            f"{self._where} has no sample of operator class {name!r} (operator {work.op!r}) in "
            f"{work.dtype} with {load}; it has {', '.join(measured) or 'none of this class'}. "
            f"{self._advice(dtype=work.dtype)}"
        )

    @cached_property
    def _operators(self) -> dict[tuple[str, str, Load], tuple[Model, ...]]:
        """Price of each (class, dtype, load), one per variant."""
        found: dict[tuple[str, str, Load], dict[str, list[Sample]]] = {}
        for s in self.database.samples:
            if s.group == "operators":
                key = (s.name, s["dtype"], Load(s["threads"], s["busy"]))
                found.setdefault(key, {}).setdefault(s["variant"], []).append(s)
        return {
            key: tuple(_model(key[0], key[1], samples) for samples in variants.values())
            for key, variants in found.items()
        }

    # ---------------------------------------------------------------------------- communication
    def collective(self, kind: str, nbytes: float, devices: tuple[int, ...]) -> float:
        return self.collective_spread(kind, nbytes, devices).median

    def collective_spread(self, kind: str, nbytes: float, devices: tuple[int, ...]) -> Spread:
        """As `collective`, with the quartiles of the measurement."""
        check_collective(kind, nbytes, devices)
        if len(devices) == 1:
            return ZERO
        hosts = len({self.cluster.host_of(d) for d in devices})
        by_groups = self._collectives.get((kind, len(devices), hosts))
        if by_groups is None:
            sizes = sorted({(size, h) for k, size, h in self._collectives if k == kind})
            raise CostError(
                f"{self._where} has no sample of {kind} over {len(devices)} ranks on {hosts} "
                f"host(s); it has (ranks, hosts) {sizes}. {self._advice()}"
            )
        together = self.cluster.num_devices // len(devices)
        fitting = [groups for groups in by_groups if groups <= together]
        return by_groups[max(fitting, default=min(by_groups))].at(nbytes)

    @cached_property
    def _collectives(self) -> dict[tuple[str, int, int], dict[int, Curve]]:
        """Curve of each (kind, size, hosts), by the number of disjoint groups at once."""
        found: dict[tuple[str, int, int], dict[int, list[Sample]]] = {}
        for s in self.database.samples:
            if s.group == "collectives":
                key = (s.name, s["size"], s["hosts"])
                found.setdefault(key, {}).setdefault(s["groups"], []).append(s)
        return {
            key: {g: self._message_curve(samples) for g, samples in by_groups.items()}
            for key, by_groups in found.items()
        }

    def point_to_point(self, nbytes: float, source: int, destination: int) -> float:
        return self.point_to_point_spread(nbytes, source, destination).median

    def point_to_point_spread(self, nbytes: float, source: int, destination: int) -> Spread:
        """As `point_to_point`, with the quartiles of the measurement."""
        if source == destination:
            return ZERO
        hosts = len({self.cluster.host_of(source), self.cluster.host_of(destination)})
        if hosts not in self._messages:
            raise CostError(
                f"{self._where} has no sample of a message "
                f"{'within a host' if hosts == 1 else 'between two hosts'}. {self._advice()}"
            )
        return self._messages[hosts].at(nbytes)

    @cached_property
    def _messages(self) -> dict[int, Curve]:
        found: dict[int, list[Sample]] = {}
        for s in self.database.samples:
            if s.group == "point_to_point":
                found.setdefault(s["hosts"], []).append(s)
        return {hosts: self._message_curve(samples) for hosts, samples in found.items()}

    def _message_curve(self, samples: list[Sample]) -> Curve:
        here = [s for s in samples if s["ranks"] == self.cluster.num_devices]
        return curve(here or samples, log=True)

    # ------------------------------------------------------------------------------------ errors
    @property
    def _where(self) -> str:
        return f"cost database {self.database.path or '(not saved)'}"

    def _advice(self, dtype: str = "") -> str:
        ranks = self.cluster.num_devices
        launcher = f"mpirun -n {ranks} " if ranks > 1 else ""
        out = self.database.path or "FILE"
        option = f" --dtype {dtype}" if dtype.startswith("float") else ""
        return f"Measure it with: {launcher}{PROFILER} --out {out} --resume{option}"


def _model(name: str, dtype: str, samples: list[Sample]) -> Model:
    if name != "dot_general":
        line = curve(samples)
        return lambda work: line.at(work.nbytes)
    points = pooled(samples, lambda s: (s["batch"], s["m"], s["n"], s["k"]))
    matmul = MatmulModel.of([(d, spread_of(q)) for d, q in points], _itemsize(dtype))
    return lambda work: matmul.at(_dims(work))


def _dims(work: Work) -> tuple[int, ...]:
    if not work.dims:
        raise CostError(
            f"work of {work.op} has no dims; a matrix product is priced by (batch, m, n, k)."
        )
    return work.dims


def _itemsize(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def curve(samples: Iterable[Sample], log: bool = False) -> Curve:
    """Seconds over bytes of samples that differ in nothing else."""
    points = pooled(samples, lambda s: s["nbytes"])
    return Curve.of([(float(size), spread_of(q)) for size, q in points], log)


def pooled(samples: Iterable[Sample], key: Callable[[Sample], T]) -> list[tuple[T, Quantiles]]:
    """Repeated measurements as one, by `key`."""
    found: dict[Any, list[Quantiles]] = {}
    for s in samples:
        found.setdefault(key(s), []).append(s.seconds)
    return [(k, Quantiles.pooled(rows)) for k, rows in found.items()]


def _geometric_mean(spreads: list[Spread]) -> Spread:
    def mean(values: list[float]) -> float:
        return math.exp(sum(map(math.log, values)) / len(values))

    return Spread(
        mean([s.p25 for s in spreads]),
        mean([s.median for s in spreads]),
        mean([s.p75 for s in spreads]),
    )
