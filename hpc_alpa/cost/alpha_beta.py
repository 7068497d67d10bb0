"""Alpa's unit-less cost model: alpha + beta * bytes per mesh axis, compute free.

For n devices along an axis and B bytes of the full tensor on that axis (Alpa's
`ClusterEnvironment`; the numbers in parentheses are its tie-breakers):

    all_gather     = alpha + beta*(n-1)/n*B               (+0.1)
    all_reduce     = alpha + beta*2*(n-1)/n*B             (+0.01)
    reduce_scatter = alpha + beta*(n-1)/n*B               (+0.001)
    all_to_all     = alpha + beta*(n-1)/n/n*B*(n/2)       (+0.001)
    broadcast      = alpha + beta*B                       (ours: Alpa's planner has none)
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from hpc_alpa.cluster import Cluster, DeviceMesh, Host, Link
from hpc_alpa.cost.protocol import check_collective
from hpc_alpa.cost.work import Work
from hpc_alpa.errors import CostError

# kind: (share of B that beta multiplies, as a function of n; tie-breaker)
FORMULAS: dict[str, tuple[Callable[[int], float], float]] = {
    "all_gather": (lambda n: (n - 1) / n, 0.1),
    "all_reduce": (lambda n: 2 * (n - 1) / n, 0.01),
    "all_to_all": (lambda n: (n - 1) / n / n * (n / 2), 0.001),
    "broadcast": (lambda n: 1.0, 0.0),
    "reduce_scatter": (lambda n: (n - 1) / n, 0.001),
}


@dataclass(frozen=True)
class AlphaBetaCost:
    """The preset `alpa`: one alpha and beta per axis of `mesh`, in no unit.

    A group that spans several axes is priced at the largest alpha and beta among them, over all its
    devices: never less than the same collective done axis by axis.
    """

    mesh: DeviceMesh
    alpha: tuple[float, ...]
    beta: tuple[float, ...]
    tie_breakers: bool = True
    name: str = "alpa"
    in_seconds: bool = False

    def __post_init__(self) -> None:
        axes = self.mesh.num_axes
        if len(self.alpha) != axes or len(self.beta) != axes:
            raise CostError(
                f"alpha {self.alpha} and beta {self.beta} must have one number per axis of "
                f"{self.mesh}."
            )

    @classmethod
    def alpa(
        cls,
        shape: tuple[int, ...],
        alpha: tuple[float, ...] = (),
        beta: tuple[float, ...] = (),
        tie_breakers: bool = True,
    ) -> "AlphaBetaCost":
        """The model on devices 0, 1, ... in `shape`; alpha and beta are 1 per axis if not given."""
        ones = (1.0,) * len(shape)
        mesh = DeviceMesh(shape, tuple(range(math.prod(shape))))
        return cls(mesh, alpha or ones, beta or ones, tie_breakers)

    @cached_property
    def cluster(self) -> Cluster:
        """One host with the mesh's devices, without meaning beyond their number."""
        host = Host(
            max(self.mesh.devices) + 1, self.mesh.num_devices, 1e18, (("float32", 1.0),), 1.0
        )
        return Cluster("alpa", (host,), Link("host", max(self.alpha), max(self.beta)))

    @cached_property
    def digest(self) -> str:
        content = (self.name, self.mesh.shape, self.mesh.devices, self.alpha, self.beta)
        return hashlib.sha256(repr((*content, self.tie_breakers)).encode()).hexdigest()

    def compute(self, work: Work) -> float:
        """0: Alpa's intra-operator planner prices communication only."""
        return 0.0

    def collective(self, kind: str, nbytes: float, devices: tuple[int, ...]) -> float:
        check_collective(kind, nbytes, devices)
        return self.over_axes(kind, nbytes, self._axes(devices), len(devices))

    def over_axes(self, kind: str, nbytes: float, axes: tuple[int, ...], n: int) -> float:
        """Cost of a collective of `n` devices along mesh `axes`."""
        if n == 1:
            return 0.0
        share, tie_breaker = FORMULAS[kind]
        alpha, beta = self._link(axes)
        return alpha + beta * share(n) * nbytes + (tie_breaker if self.tie_breakers else 0.0)

    def point_to_point(self, nbytes: float, source: int, destination: int) -> float:
        if source == destination:
            return 0.0
        alpha, beta = self._link(self._axes((source, destination)))
        return alpha + beta * nbytes

    def _axes(self, devices: tuple[int, ...]) -> tuple[int, ...]:
        coords = [self.mesh.coords(device) for device in devices]
        return tuple(
            axis for axis in range(self.mesh.num_axes) if len({c[axis] for c in coords}) > 1
        )

    def _link(self, axes: tuple[int, ...]) -> tuple[float, float]:
        return max(self.alpha[a] for a in axes), max(self.beta[a] for a in axes)
