"""The whole search: a step and a machine in, a `Plan` out.

candidates    [Request] -> [Candidate]           microbatches, schedule, stages, meshes, layers
plan stages   [Candidate] -> [Plan]              the integer program of every stage
score         [Plan] -> seconds and bytes        the simulator runs the plan's own programs
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace

from hpc_alpa.errors import HpcAlpaError, InfeasibleError, PlanError
from hpc_alpa.plan.methods import Method, parse_method
from hpc_alpa.plan.plan import Plan
from hpc_alpa.plan.solve.options import Clock, Options
from hpc_alpa.search import stored
from hpc_alpa.search.candidates import Candidate, Layers, candidates, recomputed, steps
from hpc_alpa.search.layers import find_layers
from hpc_alpa.search.request import Request
from hpc_alpa.search.schedules import rescheduled
from hpc_alpa.search.scoring import Scored, least_objective, on_close_devices, score
from hpc_alpa.step import BACKWARD, StepGraph, recompute

log = logging.getLogger(__name__)
BISECTIONS = 4  # of the number of layers that are recomputed
SHARE = 0.25  # of the time for a choice program, to find the number with: a plan is in hand
MOST_PLANNED = 12  # candidates whose seconds were estimated
LARGE = 3_000  # equations of a step, from which on candidates are planned roughly
COARSE_GAP, COARSE_SECONDS = 5e-3, 10.0
MOST_GAINED = 0.75  # of a step's seconds is left, were nothing recomputed


def search(request: Request) -> Plan:
    """The best plan found, with its predictions and what is proven of it; from disk if known there.

    Raises:
        InfeasibleError: no plan fits the memory; says by how much, and the nearest fit.
        NeedsMicrobatches: their number is part of the model's meaning, and was not given.
        PlanError: the method does not fit the number of devices, or nothing can be planned.
    """
    return stored.known_or(request, _search)


def _search(request: Request) -> Plan:
    clock = Clock(math.inf)
    tried = _Tried(request, clock)
    divided = steps(request, tried.method)
    clock.lap("microbatches")
    tried.all_of(divided)
    tried.fewer_layers()
    tried.other_schedules(divided)
    tried.certify(divided)
    if tried.best is None:
        raise _reason(tried.failures, request)
    tried.on_close_devices(divided)
    clock.lap("placement")
    plan, seconds = tried.best.plan, tried.best.seconds
    bounds = [c.bound for c in tried.found]
    bound = None if None in bounds else min((b for b in bounds if b is not None), default=None)
    solver = {
        **plan.solver,
        "step_bound": bound,
        "step_gap": None if bound is None else max(0.0, 1.0 - bound / seconds),
        "candidates": len(tried.done),
        "planning_seconds": sum(clock.phases.values()),
        "phases": dict(clock.phases),
    }
    return replace(plan, solver=solver)


class _Tried:
    """Candidates that have been planned, and the best of them."""

    def __init__(self, request: Request, clock: Clock) -> None:
        self.request, self.clock = request, clock
        self.found: list[Candidate] = []
        self.method: Method | None = None
        if request.method != "auto":
            self.method = parse_method(request.method).over(request.num_devices)
        self.done: dict[Candidate, Scored | None] = {}
        self.failures: list[HpcAlpaError] = []
        self.best: Scored | None = None
        self.best_candidate: Candidate | None = None
        self.best_again: tuple[float, StepGraph, Candidate] | None = None

    def all_of(self, divided: Sequence[StepGraph]) -> None:
        """Plan the candidates of all numbers of microbatches, the most promising ones first.

        Where memory is short, also with layers made again: elsewhere recomputation only costs time,
        as without it the program has the same choices.
        """
        step_of = {step.num_microbatches: step for step in divided}
        found: list[Candidate] = []
        for step in divided:
            always, perhaps = recomputed(self.request, self.method, step)
            found += candidates(self.request, self.method, step, always, self.clock)
            if perhaps and self.request.num_devices > 1:
                again = candidates(self.request, self.method, step, perhaps, self.clock)
                found += [c for c in again if c.estimate is not None]  # else `one` tries it
        self.found = found = list(dict.fromkeys(found))
        found.sort(key=lambda c: (-math.inf if c.estimate is None else c.estimate, c.recompute))
        for number, candidate in enumerate(found):
            if self.hopeless(candidate, number):
                log.info("%d candidates are left: none promises more", len(found) - number)
                break
            self.one(step_of[candidate.num_microbatches], candidate)

    def hopeless(self, candidate: Candidate, number: int) -> bool:
        """Whether a candidate, and so those behind it, promises nothing."""
        if self.best is None or candidate.estimate is None:
            return False
        return number >= MOST_PLANNED or candidate.estimate >= self.best.seconds

    def one(self, step: StepGraph, candidate: Candidate) -> None:
        """Plan a candidate; where memory is short, also with layers made again."""
        if candidate in self.done:
            return
        if candidate.recompute and self.request.recompute == "auto":
            self.again(step, candidate)
            return
        short = self.plan(step, candidate)
        _, perhaps = recomputed(self.request, self.method, step)
        if perhaps and short and len(candidate.meshes) == 1:
            layers = perhaps[: self.most_layers(step, candidate, perhaps)]
            if layers:
                self.again(step, replace(candidate, recompute=layers))

    def most_layers(self, step: StepGraph, candidate: Candidate, layers: Layers) -> int:
        """How many first layers may be made again at a gain.

        More memory gains at most what the objective of the plan is above that of unlimited memory,
        and each layer costs its share of what all of them cost there. A step takes as long as its
        busiest stage, which has at least the mean of the stages.
        """
        found = self.done[candidate]
        if found is None and self.best is None:
            return len(layers)
        free = self.least(step, candidate)
        if self.best is not None and free > self.best.seconds * len(candidate.meshes):
            log.info("candidate %s: at least %.6f s with any memory", candidate, free)
            return 0
        if found is None:
            return len(layers)
        again = self.least(step, replace(candidate, recompute=layers))
        gain, costs = found.plan.solver["objective"] - free, again - free
        log.info("candidate %s: %.6f s to gain, layers cost %.6f s", candidate, gain, costs)
        return len(layers) if costs <= gain else int(len(layers) * gain / costs)

    def least(self, step: StepGraph, candidate: Candidate) -> float:
        """What the objective of a candidate is at least, with any memory."""
        again = recompute(step, candidate.recompute, candidate.cuts)
        return least_objective(self.request, self.method, again, candidate)

    def fewer_layers(self) -> None:
        """Bisect for the least number of first layers that are made again without losing time.

        The first layers, since the first stage holds the most microbatches at once.
        """
        if self.best is None or self.best_again is None:
            return
        seconds, step, candidate = self.best_again
        if seconds * MOST_GAINED > self.best.seconds:
            return
        fewest, enough = 0, len(candidate.recompute)
        for _ in range(BISECTIONS):
            if enough - fewest < 2:
                return
            count = (fewest + enough) // 2
            less = replace(candidate, recompute=candidate.recompute[:count])
            self.plan(step, less, SHARE)
            found = self.done[less]
            if found is not None and found.seconds <= seconds:
                enough, seconds = count, found.seconds
            else:
                fewest = count

    def other_schedules(self, divided: Sequence[StepGraph]) -> None:
        """The best pipeline under other schedules, where the choice of one is the search's."""
        found = self.best_candidate
        if self.request.schedule != "auto" or self.method is not None or found is None:
            return
        if len(found.meshes) == 1 or not self.trains:
            return
        [step] = [s for s in divided if s.num_microbatches == found.num_microbatches]
        layers = find_layers(step, self.request.cost, self.request.layers)
        for candidate in rescheduled(found, layers):
            self.plan(step, candidate)

    def certify(self, divided: Sequence[StepGraph]) -> None:
        """The best plan again, with a narrow gap, where the candidates had a wide one."""
        found = self.best_candidate
        if found is not None and self.large:
            [step] = [s for s in divided if s.num_microbatches == found.num_microbatches]
            self.plan(step, found, coarse=False)

    def on_close_devices(self, divided: Sequence[StepGraph]) -> None:
        """Put the best plan's heavy groups close, on a cluster of several hosts."""
        found, hosts = self.best_candidate, self.request.cluster.hosts
        assert self.best is not None and found is not None, "placement follows a plan"
        if len(hosts) > 1 and self.method is None and self.request.cost.in_seconds:
            [step] = [s for s in divided if s.num_microbatches == found.num_microbatches]
            again = recompute(step, found.recompute, found.cuts)
            self.best = on_close_devices(self.request, again, self.best)

    @property
    def large(self) -> bool:
        """Whether candidates are planned roughly, and only the best one to its end."""
        return len(self.request.graph.eqns) > LARGE and self.method is None

    @property
    def trains(self) -> bool:
        return any(e.phase == BACKWARD for e in self.request.graph.eqns)

    def again(self, step: StepGraph, candidate: Candidate) -> None:
        """Plan a candidate that makes layers again."""
        self.plan(step, candidate)
        found = self.done[candidate]
        if found is not None and (self.best_again is None or found.seconds < self.best_again[0]):
            self.best_again = found.seconds, step, candidate

    def plan(
        self, step: StepGraph, candidate: Candidate, share: float = 1.0, coarse: bool = True
    ) -> bool:
        """Plan a candidate; whether more memory would have helped.

        Args:
            step: with nothing recomputed.
            share: of the request's seconds, for each of its choice programs.
            coarse: whether a wide gap will do where the step is large.
        """
        options = Options(seconds=share * self.request.seconds)
        if coarse and self.large:
            options = Options(COARSE_GAP, seconds=min(options.seconds, COARSE_SECONDS))
        self.done[candidate] = None
        try:
            again = recompute(step, candidate.recompute, candidate.cuts)
            found = score(self.request, self.method, again, candidate, self.clock, options)
        except HpcAlpaError as error:
            log.info("candidate %s: %s", candidate, error)
            self.failures.append(error)
            return isinstance(error, InfeasibleError)
        log.info("candidate %s: %.6f s", candidate, found.seconds)
        self.done[candidate] = found
        if self.best is None or found.seconds < self.best.seconds * (1 - 1e-9):
            self.best, self.best_candidate = found, candidate
        return found.binds


def _reason(failures: Sequence[HpcAlpaError], request: Request) -> HpcAlpaError:
    """The error that says most: the nearest fit of all candidates, or the first one's reason."""
    memory = [e for e in failures if isinstance(e, InfeasibleError)]
    if memory:
        return min(memory, key=lambda e: e.missing)
    if failures:
        return failures[0]
    return PlanError(
        f"there is no way to lay the step out over {request.num_devices} devices with "
        f"num_microbatches={request.num_microbatches} and schedule={request.schedule!r}"
    )
