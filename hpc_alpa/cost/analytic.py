"""Seconds from a cluster's description alone: roofline compute, ring collectives.

    compute        = launch + max(flops / rate(dtype), nbytes / memory_bandwidth)

and, for n devices, B bytes of the full tensor and the slowest link (alpha, beta) that the group
crosses (Thakur et al. 2005, "Optimization of collective communication operations in MPICH"):

    all_gather     = (n-1) * alpha +   (n-1)/n * B * beta          ring
    reduce_scatter = (n-1) * alpha +   (n-1)/n * B * beta          ring
    all_reduce     = 2 (n-1) * alpha + 2 (n-1)/n * B * beta        reduce_scatter, then all_gather
    all_to_all     = (n-1) * alpha +   (n-1)/n * B/n * beta        pairwise; a rank holds B/n
    broadcast      = ceil(log2 n) * alpha + B * beta               tree latency, pipelined bytes
    point_to_point = alpha + B * beta

A group inside one host uses the host's link; any other uses the network's, for all of its bytes: a
ring is as fast as its slowest link. Groups are priced one at a time: what several groups that share
a link take from each other, and the arithmetic of the reduction, are left out.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from hpc_alpa.cluster import Cluster, Host
from hpc_alpa.cost.protocol import check_collective
from hpc_alpa.cost.work import Work
from hpc_alpa.errors import ClusterError, CostError

LAUNCH_SECONDS = 5e-6
"""Start of one operator: a NumPy call with its allocation, or a CUDA launch, takes 2 to 10 us."""

# kind: (messages in a row, share of B on the slowest link), as functions of n
FORMULAS: dict[str, tuple[Callable[[int], float], Callable[[int], float]]] = {
    "all_gather": (lambda n: n - 1, lambda n: (n - 1) / n),
    "all_reduce": (lambda n: 2 * (n - 1), lambda n: 2 * (n - 1) / n),
    "all_to_all": (lambda n: n - 1, lambda n: (n - 1) / n / n),
    "broadcast": (lambda n: math.ceil(math.log2(n)), lambda n: 1.0),
    "reduce_scatter": (lambda n: n - 1, lambda n: (n - 1) / n),
}


@dataclass(frozen=True)
class AnalyticCost:
    """Seconds from a cluster's rates and links. Chosen by name only, never instead of a database.

    On a cluster of unlike hosts, work runs at the pace of the slowest: plans give equal shares.
    """

    cluster: Cluster
    launch_seconds: float = LAUNCH_SECONDS
    name: str = "analytic"
    in_seconds: bool = True

    @cached_property
    def digest(self) -> str:
        content = f"{self.name} {self.cluster.digest} {self.launch_seconds!r}"
        return hashlib.sha256(content.encode()).hexdigest()

    def compute(self, work: Work) -> float:
        try:
            rate = min(host.rate(work.dtype) for host in self._kinds)
        except ClusterError as error:
            raise CostError(f"{work.op} in {work.dtype} has no analytic cost: {error}") from error
        bandwidth = min(host.memory_bandwidth for host in self._kinds)
        return self.launch_seconds + max(work.flops / rate, work.nbytes / bandwidth)

    @cached_property
    def _kinds(self) -> frozenset[Host]:
        """The hosts that differ: a planner asks a million times, and a cluster has a thousand."""
        return frozenset(self.cluster.hosts)

    def collective(self, kind: str, nbytes: float, devices: tuple[int, ...]) -> float:
        check_collective(kind, nbytes, devices)
        n = len(devices)
        if n == 1:
            return 0.0
        messages, share = FORMULAS[kind]
        link = self.cluster.link(devices)
        return messages(n) * link.alpha + share(n) * nbytes * link.beta

    def point_to_point(self, nbytes: float, source: int, destination: int) -> float:
        if source == destination:
            return 0.0
        return self.cluster.link((source, destination)).seconds(nbytes)
