"""What a plan promises, as JSON values and without compiling it: for thousands of devices too."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from hpc_alpa.api.compile import Step
from hpc_alpa.cluster import Cluster
from hpc_alpa.plan.plan import Plan
from hpc_alpa.report.plan_rows import names_of, outlined
from hpc_alpa.step import BACKWARD, FORWARD, StepGraph, split_stages


def outline(plan: Plan, step: Step, divided: StepGraph) -> Plan:
    """The plan with the layers and the main weights of each stage beside its predictions.

    Args:
        divided: the step as the plan divides it.
    """
    names = names_of(divided, plan.cuts, step.num_state_leaves)
    position = {v: k for k, v in enumerate(divided.graph.inputs)}
    specs = [
        {
            position[v]: spec
            for v, spec in zip(stage.graph.inputs, made.inputs, strict=True)
            if v in position
        }
        for stage, made in zip(split_stages(divided, plan.cuts), plan.stages, strict=True)
    ]
    return outlined(plan, specs, names)


def operations(divided: StepGraph) -> tuple[float, float]:
    """Floating-point operations of a step: without, and with what backward makes again.

    Those of forward and backward; what backward makes again has the origin of a forward equation.
    """
    slots = divided.num_microbatches
    total = again = 0.0
    layers = set(divided.recomputed)
    for e in divided.graph.eqns:
        if e.phase in (FORWARD, BACKWARD):
            flops = slots * e.op.flops(tuple(e.input_types), e.output.type, e.params_dict)
            total += flops
            if e.phase == FORWARD and e.layer in layers:
                again += flops
    made_again = again if layers else 0.0
    return total - made_again, total


def facts(
    plan: Plan,
    cluster: Cluster,
    flops: tuple[float, float],
    planning_seconds: Mapping[str, float],
) -> dict[str, Any]:
    """The plan's JSON, and what it promises.

    Args:
        flops: of a step, without and with what backward makes again.
        planning_seconds: by phase; their sum is `total`.
    """
    found: dict[str, Any] = json.loads(plan.to_json())
    predicted = found["predicted"]
    seconds, peaks = predicted["step_seconds"], predicted["peak_bytes"]
    rows = predicted.get("stages") or [{} for _ in plan.stages]
    for stage, row in zip(found["stages"], rows, strict=False):
        stage["layers"] = row.get("layers", [])
        stage["submesh"] = _submesh(stage["devices"], cluster)
        stage["logical_shape"] = stage["mesh_shape"]
    predicted["peak_bytes_per_rank"], predicted["peak_bytes"] = peaks, max(peaks, default=0)
    for name, count in zip(("", "_with_recomputation"), flops, strict=True):
        predicted[f"tflops_per_device{name}"] = count / seconds / plan.num_devices / 1e12
    found["bound"], found["gap"] = plan.solver.get("step_bound"), plan.solver.get("step_gap")
    total = math.fsum(planning_seconds.values())
    found["planning_seconds"] = {"total": total, **planning_seconds}
    return found


def _submesh(devices: list[int], cluster: Cluster) -> list[int]:
    """Hosts, and devices of the stage on each; a single number of devices where these differ."""
    hosts = [cluster.host_of(d) for d in devices]
    each = {hosts.count(h) for h in hosts}
    return [len(set(hosts)), each.pop()] if len(each) == 1 else [len(devices)]
