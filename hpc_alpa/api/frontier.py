"""[Request] -> time against memory: the best plan under each of a falling series of limits."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from hpc_alpa.errors import InfeasibleError, PlanError
from hpc_alpa.lower import lower
from hpc_alpa.plan.diff import diff
from hpc_alpa.plan.plan import Plan
from hpc_alpa.report.plan_rows import counts
from hpc_alpa.report.rows import FrontierPoint
from hpc_alpa.search import Request, search

log = logging.getLogger("hpc_alpa.search")
UNLIMITED = 2.0**62  # bytes, that no plan reaches
MOST_TRIES = 4  # to find the least memory that a plan fits in
CLOSE = 1.05  # of what fits to what does not
SECONDS = 10.0  # for each choice program


@dataclass(frozen=True)
class Frontier:
    """The fastest plans found, from loose limits to tight ones.

    Attributes:
        limit: what the request allows itself.
        plan: the fastest that fits it; without one, the one that needs the least.
        fits: whether that plan does.
    """

    points: tuple[FrontierPoint, ...]
    limit: float
    plan: Plan
    fits: bool


def frontier(request: Request, num_points: int = 8) -> Frontier:
    """Time against memory, between about the least that fits and what the fastest plan takes.

    The limits fall by equal ratios; the request's own is one more where it is tighter than
    the loosest. A plan that was found under a tight limit counts under looser ones too.

    Raises:
        PlanError: there is no plan, with any memory.
    """
    found = _Plans(request)
    loose = found.under(UNLIMITED)
    least = found.least(_peak(loose))
    limits = {float(x) for x in np.geomspace(_peak(loose), least, max(2, num_points))}
    limit = request.memory_limit
    if limit < _peak(loose):
        limits.add(limit)
    for tighter in sorted(limits, reverse=True):
        log.info("memory %.0f bytes", tighter)
        found.at(tighter)
    kept = found.best(sorted(limits))
    plans = [plan for _, plan in kept if _peak(plan) <= limit]
    points = tuple(_points(request, kept))
    best = plans[0] if plans else kept[-1][1]
    return Frontier(points, limit, best, bool(plans))


class _Plans:
    """Plans by the limits that they were searched for under."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.found: dict[float, Plan] = {}

    def under(self, limit: float) -> Plan:
        """Search under a limit. Raises InfeasibleError, or PlanError."""
        self.found[limit] = search(replace(self.request, memory=limit, seconds=SECONDS))
        return self.found[limit]

    def at(self, limit: float) -> None:
        """Search, unless a plan of a looser limit fits already, or nothing does."""
        looser = [m for m in self.found if m >= limit]
        if looser and _peak(self.found[min(looser)]) <= limit:
            return
        try:
            self.under(limit)
        except PlanError as error:
            log.info("memory %.0f bytes: %s", limit, error)

    def least(self, enough: float) -> float:
        """About the least bytes that a plan is found for.

        Args:
            enough: bytes of a plan that is known.
        """
        too_little = self.nearest_fit()
        for _ in range(MOST_TRIES):
            if enough <= CLOSE * too_little:
                break
            tried = math.sqrt(too_little * enough)
            try:
                enough = min(enough, _peak(self.under(tried)))
            except PlanError as error:  # nothing fits, or nothing was found in the time
                log.info("memory %.0f bytes: %s", tried, error)
                too_little = tried
        return enough

    def nearest_fit(self) -> float:
        """Bytes that every plan needs somewhere: what a limit of one byte misses by."""
        try:
            return _peak(self.under(1.0))
        except InfeasibleError as error:
            return 1.0 + (error.missing if math.isfinite(error.missing) else 0.0)

    def best(self, limits: list[float]) -> list[tuple[float, Plan]]:
        """The fastest plan that fits each limit, the loosest limit first."""
        kept = []
        for limit in limits:
            fitting = [p for p in self.found.values() if _peak(p) <= limit]
            if fitting:
                kept.append((limit, min(fitting, key=lambda p: (_seconds(p), _peak(p)))))
        return kept[::-1]


def _points(request: Request, kept: list[tuple[float, Plan]]) -> Iterator[FrontierPoint]:
    before: Plan | None = None
    for limit, plan in kept:
        inputs, strategies = 0, 0
        if before is not None:
            changes = diff(before, plan)
            inputs = len(changes.inputs)
            strategies = sum(m.count for m in changes.strategies)
        yield FrontierPoint(
            limit,
            _seconds(plan),
            _peak(plan),
            plan.num_microbatches,
            tuple("x".join(map(str, s.mesh_shape)) for s in plan.stages),
            _collectives(request, plan),
            inputs,
            strategies,
            plan.digest,
            plan.recompute,
        )
        before = plan


def _collectives(request: Request, plan: Plan) -> dict[str, int]:
    """How many of each kind a step has on the rank with the most, from the programs that run."""
    step = plan.divide(request.graph, request.batch, request.renewed)
    found: dict[str, int] = {}
    for program in lower(step, plan):
        for kind, number in counts(program).items():
            found[kind] = max(found.get(kind, 0), number)
    return found


def _seconds(plan: Plan) -> float:
    return float(plan.predicted["step_seconds"])


def _peak(plan: Plan) -> float:
    return float(max(plan.predicted["peak_bytes"], default=0))
