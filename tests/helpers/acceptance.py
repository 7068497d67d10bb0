"""Acceptance cases planned under Alpa's costs on 4 devices, and what the plans lower to."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from hpc_alpa.cluster import DeviceMesh
from hpc_alpa.cost import AlphaBetaCost
from hpc_alpa.lower import Program, lower
from hpc_alpa.lower.check import check
from hpc_alpa.lower.program import KIND
from hpc_alpa.lower.spmd import Convert, stage_code
from hpc_alpa.plan.intra_op import IntraOp
from hpc_alpa.plan.methods import parse_method, restrictions, split_products
from hpc_alpa.plan.plan import Plan, StagePlan
from hpc_alpa.plan.pricing import Pricing
from hpc_alpa.plan.restrictions import Restrictions
from hpc_alpa.plan.solve.options import Options
from hpc_alpa.pytree import flatten
from hpc_alpa.search.pins import pinned
from hpc_alpa.sharding import ShardingSpec
from hpc_alpa.step import StageGraph, StepGraph, split_stages
from tests.helpers.random_losses import Case, traced_case
from tests.models import CASES

LINES = [(4, 1), (1, 4)]
EXACT = Options(relative_gap=0, absolute_gap=1e-6)


@dataclass(frozen=True)
class Found:
    """A plan of a case: its cost, its programs, and how each input lies, by name."""

    objective: float
    bound: float
    step: StepGraph
    stage_plan: StagePlan
    pricing: Pricing

    @property
    def stage(self) -> StageGraph:
        return split_stages(self.step, ())[0]

    @property
    def inputs(self) -> dict[str, ShardingSpec]:
        graph = self.stage.graph
        names = [graph.name_of.get(v.id, "") for v in graph.inputs]
        return dict(zip(names, map(ShardingSpec.parse, self.stage_plan.inputs), strict=True))

    @functools.cached_property
    def programs(self) -> tuple[Program, ...]:
        made = lower(self.step, Plan("auto", "1f1b", 1, (), (self.stage_plan,), "", "", ("", "")))
        check(made)
        return made

    @property
    def collectives(self) -> Counter[tuple[str, int, int]]:
        """(kind, devices, bytes) of one step of rank 0."""
        return Counter(
            (KIND[type(i)], len(i.group), i.nbytes)  # type: ignore[union-attr]
            for i in self.programs[0].instructions
            if type(i) in KIND
        )

    @property
    def cost(self) -> float:
        """The prices of the moves that are lowered, each on its own."""
        mesh, price = self.pricing.mesh.shape, self.pricing.paths.price
        code = stage_code(self.stage, self.stage_plan, self.step.rows)
        converts = [i for part in code.items.values() for i in part if isinstance(i, Convert)]
        return sum(
            price(m, m.nbytes(t.nbytes, mesh)) for i in converts for m, t in zip(i.moves, i.types)
        )

    def with_path(self, key: str, *specs: str) -> Found:
        """The plan with another path for one conversion."""
        paths = tuple(sorted({**dict(self.stage_plan.conversions), key: specs}.items()))
        return replace(self, stage_plan=replace(self.stage_plan, conversions=paths))


@functools.cache
def graph_of(name: str) -> Case:
    return traced_case(*CASES[name]())


def plan_of(
    case: Case,
    mesh: tuple[int, ...],
    beta: tuple[float, ...] = (),
    *,
    tie_breakers: bool = True,
    pins: dict[str, Any] | None = None,
    method: str | None = None,
    rules: Callable[[StepGraph], Restrictions] | None = None,
) -> Found:
    """The cheapest plan, with every matrix product split."""
    step = case.split(1)
    [stage] = split_stages(step, ())
    cost = AlphaBetaCost.alpa(mesh, beta=beta, tie_breakers=tie_breakers)
    pricing = Pricing.on(DeviceMesh(mesh, tuple(range(math.prod(mesh)))), cost)
    allowed = split_products(mesh) & pinned(step.graph, pins or {}, mesh)
    if method is not None:
        allowed = allowed & restrictions(parse_method(method), step)
    if rules is not None:
        allowed = allowed & rules(step)
    program = IntraOp(step, stage, pricing, allowed)
    solution = program.solve(EXACT)
    made = program.decode(solution, ("x", "y")[: len(mesh)])
    return Found(solution.objective, solution.bound, step, made, pricing)


def all_reduce(nbytes: float, n: int = 4, beta: float = 1.0) -> float:
    return 1 + beta * 2 * (n - 1) / n * nbytes + 0.01


def parameter_bytes(name: str) -> list[int]:
    _, state, _ = CASES[name]()
    return [p.nbytes for p in flatten(state["params"])[0]]
