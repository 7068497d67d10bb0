"""A script run up to its first step, which is then planned and not run.

    with planning(Target(cluster=..., size=64)):
        run_the_script()                    # raises Planned (or Failed) at its first step

No rank starts, and no MPI: the script's process stands for all ranks. `hpc-alpa plan` and
`simulate` are made of this.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from hpc_alpa.api.compile import Compiled, Options, Step, compile_step, request_of, require_fit
from hpc_alpa.api.machine import find_cluster, find_costs
from hpc_alpa.cluster import Cluster
from hpc_alpa.comm.protocol import Communicator
from hpc_alpa.cost import Cost
from hpc_alpa.errors import HpcAlpaError, PlanError
from hpc_alpa.plan.plan import Plan
from hpc_alpa.search import Request, search
from hpc_alpa.step import StepGraph

T = TypeVar("T")


@dataclass(frozen=True)
class Target:
    """What a script's first step is planned for. What is None is left to the script.

    Attributes:
        size: number of devices; None takes all of the cluster's.
        plan: compile this plan instead of searching for one.
        options: fields of `Options` by name.
        search: finds the plan.
    """

    cluster: Cluster | str | Path | None = None
    costs: Cost | str | Path | None = None
    size: int | None = None
    plan: Plan | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    search: Callable[[Request], Plan] = search


class Planned(BaseException):
    """The end of a script whose step has been planned; not an error, so no `except` takes it.

    Attributes:
        cost: what it was priced by.
        request: what the search was asked, or would have been.
        trace_seconds: that went before.
    """

    def __init__(
        self, step: Step, plan: Plan, cost: Cost, request: Request, trace_seconds: float
    ) -> None:
        super().__init__("the script's first step is planned")
        self.step, self.plan, self.cost, self.request = step, plan, cost, request
        self.trace_seconds = trace_seconds

    @cached_property
    def divided(self) -> StepGraph:
        """The step as the plan divides it."""
        return self.plan.divide(self.request.graph, self.request.batch, self.request.renewed)

    @cached_property
    def compiled(self) -> Compiled:
        """The plan, described, and the checked programs of all ranks."""
        return compile_step(self.step, self.plan, None)


class Failed(BaseException):
    """The end of a script whose step cannot be planned; `error` says why."""

    def __init__(self, error: HpcAlpaError) -> None:
        super().__init__(str(error))
        self.error = error


_target: ContextVar[Target | None] = ContextVar("hpc_alpa_planning", default=None)


@contextmanager
def planning(target: Target) -> Iterator[None]:
    """Plan the first step that is called inside, and raise `Planned` or `Failed` there."""
    token = _target.set(target)
    try:
        yield
    finally:
        _target.reset(token)


def target() -> Target | None:
    """What is planned for here, or None where steps run."""
    return _target.get()


class NoRunner:
    """All ranks of a plan, none of which runs."""

    here: tuple[int, ...] = ()

    def __init__(self, size: int) -> None:
        self.size = size
        self.hosts: tuple[tuple[int, ...], ...] = (tuple(range(size)),)

    def each(self, function: Callable[[Communicator], T]) -> dict[int, T]:
        raise PlanError(
            "the script asks for a computed value before its first step, but here it is only "
            "planned: call the step first"
        )

    def first(self, function: Callable[[], T]) -> T:
        return function()


def stop(
    aim: Target,
    traced: Callable[[], Step],
    cluster: Cluster | str | Path | None,
    costs: Any,
    options: Options,
) -> NoReturn:
    """Plan a step for a target and end the script, whatever exceptions it catches.

    Args:
        traced: traces the step.
        cluster, costs, options: the script's own, where the target has none.

    Raises:
        Planned, Failed: always one of them.
    """
    begin = time.perf_counter()
    try:
        step = traced()
        seconds = time.perf_counter() - begin
        found = _plan(aim, step, cluster, costs, options, seconds)
    except HpcAlpaError as error:
        raise Failed(error) from error
    raise found


def _plan(
    aim: Target,
    step: Step,
    cluster: Cluster | str | Path | None,
    costs: Any,
    options: Options,
    trace_seconds: float,
) -> Planned:
    where = find_cluster(aim.cluster if aim.cluster is not None else cluster, aim.size)
    size = aim.size or (aim.plan.num_devices if aim.plan is not None else None)
    size = size or (where.num_devices if where is not None else None)
    if size is None:
        raise PlanError(
            "for how many devices to plan is not known: give --devices, or a cluster (--cluster)"
        )
    if where is not None and size > where.num_devices:
        raise PlanError(
            f"the plan is for {size} devices, cluster {where.name!r} has {where.num_devices}: "
            "take a larger cluster, or fewer devices"
        )
    cost = find_costs(aim.costs if aim.costs is not None else costs, where, (tuple(range(size)),))
    wanted = replace(options, **aim.options)
    request = request_of(step, where if where is not None else cost.cluster, cost, size, wanted)
    if aim.plan is None:
        plan = aim.search(request)
    else:
        plan = aim.plan
        require_fit(plan, step, where, cost, size)
    return Planned(step, plan, cost, request, trace_seconds)
