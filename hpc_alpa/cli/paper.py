"""A model of the paper, planned or simulated by its name.

Its plan is also kept under its name, so that what was planned before needs no trace.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

from hpc_alpa.api.compile import Options, Step, trace_step
from hpc_alpa.api.machine import find_cluster, find_costs
from hpc_alpa.api.planning import Failed, Planned, Target, stop
from hpc_alpa.errors import PlanError
from hpc_alpa.models import paper_model
from hpc_alpa.plan.plan import Plan
from hpc_alpa.pytree import flatten
from hpc_alpa.search.stored import default_folder, source_digest


def plan_file(name: str, target: Target) -> Path | None:
    """Where the plan of a model for a target is kept, if anywhere."""
    folder = default_folder()
    cluster = find_cluster(target.cluster, target.size)
    if folder is None or cluster is None:
        return None
    size = target.size or cluster.num_devices
    cost = find_costs(target.costs, cluster, (tuple(range(size)),))
    asked = sorted((k, v) for k, v in target.options.items() if k != "known")
    content = (source_digest(), name, cluster.digest, cost.name, cost.digest, size, asked)
    return folder / "models" / f"{hashlib.sha256(repr(content).encode()).hexdigest()}.json"


def kept_plan(file: Path | None) -> Plan | None:
    """The plan in a file that `keep_plan` wrote; None where there is none, or it is broken."""
    if file is None or not file.exists():
        return None
    try:
        return Plan.load(file)
    except PlanError as error:
        warnings.warn(f"{file}: not the plan that was kept ({error}): made again", stacklevel=2)
        return None


def keep_plan(plan: Plan, file: Path | None) -> None:
    """Keep a model's plan for the next time; a folder that fails only warns."""
    if file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        plan.save(file)
    except OSError as error:
        warnings.warn(f"{file}: the plan could not be kept: {error}", stacklevel=2)


def planned_model(name: str, target: Target) -> Planned:
    """Trace `gpt-39B` with the paper's batch, and plan it; no parameter is made.

    Raises:
        DataError: there is no such model.
        PlanError: as planning a script.
    """
    model = paper_model(name)

    def traced() -> Step:
        state, batch = model.example()
        leaves, tree = flatten(state, "state")
        return trace_step(model.train_step, (state, batch), len(leaves), tree, False)

    try:
        stop(target, traced, None, None, Options())
    except Planned as found:
        return found
    except Failed as failed:
        raise failed.error from None
