"""From a train step and example values to a plan and the programs of all ranks. Runs on rank 0."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hpc_alpa.api.arguments import argument_names
from hpc_alpa.api.create import creation_programs
from hpc_alpa.cluster import Cluster
from hpc_alpa.cost import Cost
from hpc_alpa.errors import PlanError, TracingError
from hpc_alpa.ir.graph import Graph
from hpc_alpa.ir.types import TensorType
from hpc_alpa.lower import Program, lower
from hpc_alpa.lower.check import check
from hpc_alpa.plan.plan import Plan
from hpc_alpa.pytree import Node, TreeDef
from hpc_alpa.report.plan_rows import Names, described, names_of
from hpc_alpa.search import Request, search
from hpc_alpa.search.stored import default_folder
from hpc_alpa.step import FORWARD
from hpc_alpa.trace import Traced, trace

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What `parallelize` was told, by name."""

    method: str = "auto"
    num_microbatches: int | None = None
    schedule: str = "auto"
    memory: float | None = None
    pins: Mapping[str, str | Mapping[int, int]] = field(default_factory=dict)
    resharding: str = "send_recv"
    allow_float64: bool = False
    recompute: str | tuple[int, ...] = "auto"
    known: bool = True  # plans may come from those that are kept on disk


@dataclass(frozen=True)
class Step:
    """A traced step function, ready to be planned.

    Attributes:
        returns_state: "only" when the function returns the new state, "first" when it returns a
            tuple that starts with it, "" when it returns none.
        num_state_leaves: the graph's first inputs are the state's; so are its first outputs, where
            a state is returned.
        batch_positions: inputs of the graph that are batch leaves, the batch dim first.
    """

    traced: Traced
    graph: Graph
    returns_state: str
    num_state_leaves: int
    batch_positions: tuple[int, ...]

    @property
    def renewed(self) -> dict[int, int]:
        """Position of each output that is the new value of an input -> that input's position."""
        count = self.num_state_leaves if self.returns_state else 0
        return {k: k for k in range(count)}


@dataclass(frozen=True)
class Compiled:
    """Everything that the ranks need to run a step.

    Attributes:
        programs: of all ranks, by rank.
        creation: programs that make the state; () when none is to be made.
        input_types, output_types: of the step, whole.
        captured: arrays that the function reads from around it: the last inputs.
        weak_outputs: which outputs stand for Python numbers.
        graph_text: the traced graph where HPC_ALPA_KEEP_GRAPH is set, else "".
    """

    plan: Plan
    names: Names
    programs: tuple[Program, ...]
    creation: tuple[Program, ...]
    input_types: tuple[TensorType, ...]
    output_types: tuple[TensorType, ...]
    out_tree: TreeDef
    returns_state: str
    num_state_leaves: int
    captured: tuple[np.ndarray, ...]
    weak_outputs: tuple[bool, ...]
    graph_text: str


def trace_step(
    function: Callable[..., Any],
    examples: tuple[Any, ...],
    num_state_leaves: int,
    state_tree: TreeDef,
    allow_float64: bool,
) -> Step:
    """Trace a step on example values of its arguments.

    Raises:
        TracingError: the function cannot be traced, or the new state has other types than the old.
    """
    names = argument_names(len(examples))
    traced = trace(function, examples, names, allow_float64=allow_float64)
    returns = _returns_state(traced.out_tree, state_tree)
    if returns:
        _same_types(traced, num_state_leaves)
    batch = tuple(
        k for k, leaf in enumerate(traced.inputs) if leaf.argument == 1 and leaf.type.shape
    )
    graph = traced.graph
    if not any(e.phase == FORWARD for e in graph.eqns):
        # Nothing is differentiated: an evaluation step is all forward.
        graph = replace(graph, eqns=tuple(replace(e, phase=FORWARD) for e in graph.eqns))
    return Step(traced, graph, returns, num_state_leaves, batch)


def _returns_state(out: TreeDef, state: TreeDef) -> str:
    if out.root == state.root:
        return "only"
    root = out.root
    if isinstance(root, Node) and root.kind is tuple and root.children:
        if root.children[0] == state.root:
            return "first"
    return ""


def _same_types(traced: Traced, num_state_leaves: int) -> None:
    for k in range(num_state_leaves):
        before, after = traced.inputs[k].type, traced.graph.outputs[k].type
        if before != after:
            raise TracingError(
                f"{traced.inputs[k].path!r} comes in as {before} and goes out as {after}: a step "
                f"keeps the types of its state. Cast it with .astype({before.dtype!r}), or keep "
                "its shape"
            )


def request_of(step: Step, cluster: Cluster, cost: Cost, size: int, options: Options) -> Request:
    """What a search for the plan of a traced step on a cluster's first `size` devices is asked."""
    return Request(
        step.graph,
        frozenset(step.graph.inputs[k] for k in step.batch_positions),
        step.renewed,
        cluster,
        cost,
        size,
        options.method,
        options.num_microbatches,
        options.schedule,
        options.memory,
        options.pins,
        options.resharding,
        recompute=options.recompute,
        folder=default_folder() if options.known else None,
    )


def make_plan(step: Step, cluster: Cluster, cost: Cost, size: int, options: Options) -> Plan:
    """Search for the plan of a traced step on the first `size` devices of a cluster."""
    return search(request_of(step, cluster, cost, size, options))


def require_fit(
    plan: Plan, step: Step, cluster: Cluster | None, cost: Cost | None, size: int
) -> None:
    """Refuse a plan for another graph, cluster or number of ranks; report another cost model.

    Raises:
        PlanError: with both digests or numbers.
    """
    if plan.graph != step.graph.digest:
        raise PlanError(
            f"the plan was made for graph {plan.graph[:12]}, this step is graph "
            f"{step.graph.digest[:12]}: the model, its sizes or its dtypes differ; plan again"
        )
    if plan.num_devices != size:
        raise PlanError(
            f"the plan is for {plan.num_devices} ranks, {size} are running: start "
            f"{plan.num_devices}, or plan again"
        )
    if cluster is not None and plan.cluster != cluster.digest:
        raise PlanError(
            f"the plan was made for cluster {plan.cluster[:12]}, this is {cluster.digest[:12]} "
            f"({cluster.name}): plan again for this one"
        )
    if cost is not None and plan.costs[1] != cost.digest:
        log.warning(
            "the plan was made with costs %s (%s), now there are %s (%s)",
            plan.costs[0], plan.costs[1][:12], cost.name, cost.digest[:12],
        )  # fmt: skip


def compile_step(step: Step, plan: Plan, init: Traced | None, in_order: bool = False) -> Compiled:
    """Lower and check the programs of all ranks, and those that create the state.

    Args:
        init: the traced `init(seed)` of a state that is to be made, else None.
        in_order: messages will match in order over all channels, as NCCL does it.

    Raises:
        PlanError: the plan was made for another graph.
    """
    batch = frozenset(step.graph.inputs[k] for k in step.batch_positions)
    divided = plan.divide(step.graph, batch, step.renewed)
    programs = lower(divided, plan)
    check(programs, in_order=in_order)
    names = names_of(divided, plan.cuts, step.num_state_leaves)
    creation: tuple[Program, ...] = ()
    if init is not None:
        creation = creation_programs(init, programs, plan)
        check(creation, in_order=in_order)
    traced = step.traced
    return Compiled(
        described(plan, programs, names),
        names,
        programs,
        creation,
        tuple(v.type for v in step.graph.inputs),
        tuple(v.type for v in step.graph.outputs),
        traced.out_tree,
        step.returns_state,
        step.num_state_leaves,
        tuple(traced.captured),
        tuple(o.weak for o in traced.outputs),
        str(step.graph) if os.environ.get("HPC_ALPA_KEEP_GRAPH") else "",
    )
