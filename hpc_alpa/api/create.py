"""State that is born sharded: each rank makes its own tiles, and no rank ever holds the whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpc_alpa.cluster import Cluster, DeviceMesh
from hpc_alpa.cost import Work
from hpc_alpa.errors import CostError
from hpc_alpa.ir.evaluate import evaluate
from hpc_alpa.ir.graph import Graph, Var
from hpc_alpa.lower import Program
from hpc_alpa.lower.lower import lower_stages
from hpc_alpa.plan.intra_op import IntraOp
from hpc_alpa.plan.plan import Plan, StagePlan
from hpc_alpa.plan.pricing import Pricing
from hpc_alpa.plan.solve.solver import solve
from hpc_alpa.sharding import ShardingSpec
from hpc_alpa.step import StageGraph, StepGraph
from hpc_alpa.trace import Traced
from hpc_alpa.transform import drop_dead


class Creation:
    """One `create`: a traced init and its seed."""

    def __init__(self, traced: Traced, seed: int) -> None:
        self.traced, self.seed = traced, seed
        self._values: tuple[np.ndarray, ...] | None = None

    def value(self, position: int) -> np.ndarray:
        """A leaf as one process would make it."""
        if self._values is None:
            inputs = [np.asarray(self.seed), *self.traced.captured]
            self._values = evaluate(self.traced.graph, inputs)
        return self._values[position]


class Leaf:
    """A leaf of a state that is not made yet; calling it makes it whole, on one process."""

    def __init__(self, creation: Creation, position: int) -> None:
        self.creation, self.position = creation, position

    def __call__(self) -> np.ndarray:
        return self.creation.value(self.position)


class Uniform:
    """Costs of no machine: work is bytes, and moving them is dear.

    Enough to keep a creation local, and to follow a plan where it runs without costs.
    """

    name, digest, in_seconds = "uniform", "uniform", False

    @property
    def cluster(self) -> Cluster:
        raise CostError("the costs of no machine have no cluster")

    def compute(self, work: Work) -> float:
        return work.nbytes + 1.0

    def collective(self, kind: str, nbytes: float, devices: tuple[int, ...]) -> float:
        return 1e3 * nbytes + 1e6

    def point_to_point(self, nbytes: float, source: int, destination: int) -> float:
        return 1e3 * nbytes + 1e6


def creation_programs(init: Traced, programs: Sequence[Program], plan: Plan) -> tuple[Program, ...]:
    """Programs that make the state where the step's programs read it.

    Args:
        init: the traced `init(seed)`; its output k is the state's leaf k, the step's input k.
        programs: the step's, of all ranks.
    """
    step = StepGraph(init.graph, 1, frozenset(), {})
    stages, plans = [], []
    # What several stages of one submesh read is made by one stage.
    first = [plan.stages[plan.placement.index(k)] for k in range(len(plan.submeshes))]
    for index, stage in enumerate(first):
        specs = _specs(programs, stage, len(init.graph.outputs))
        made = _stage_graph(init.graph, index, tuple(specs))
        pricing = Pricing.on(DeviceMesh(stage.mesh_shape, stage.devices), Uniform())
        program = IntraOp(step, made, pricing, output_pins=dict(enumerate(specs.values())))
        solution = solve(program.problem())
        stages.append(made)
        plans.append(program.decode(solution, stage.axes))
    return lower_stages(
        step,
        stages,
        Plan("create", "gpipe", 1, (0,) * (len(plans) - 1), tuple(plans), "", "", ("", "")),
    )


def _specs(
    programs: Sequence[Program], stage: StagePlan, num_leaves: int
) -> dict[int, ShardingSpec]:
    """The spec of each state leaf that the stage's devices hold."""
    first = programs[stage.devices[0]]
    return {p.position: ShardingSpec.parse(p.spec) for p in first.inputs if p.position < num_leaves}


def _stage_graph(graph: Graph, index: int, leaves: tuple[int, ...]) -> StageGraph:
    results = tuple((k, graph.outputs[k]) for k in leaves)
    outputs: tuple[Var, ...] = tuple(v for _, v in results)
    made = drop_dead(Graph(graph.inputs, graph.eqns, outputs, graph.names))
    return StageGraph(index, made, results, (), ())
