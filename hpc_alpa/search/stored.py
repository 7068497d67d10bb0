"""Plans on disk, by what was asked for: the same step on the same machine is searched once.

The name of a file is a digest of the request and of this library's own source, so that no plan of
another version is taken for one of this. What was decided is read again as any plan is; a file that
is not what it should be is ignored with a warning, and written again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

from hpc_alpa.errors import PlanError
from hpc_alpa.ir.text import format_graph
from hpc_alpa.plan.plan import Plan
from hpc_alpa.search.request import Request

log = logging.getLogger(__name__)
VARIABLE = "HPC_ALPA_PLANS"


def default_folder() -> Path | None:
    """`$HPC_ALPA_PLANS` (empty: none), else `~/.cache/hpc_alpa/plans`."""
    given = os.environ.get(VARIABLE)
    if given is not None:
        return Path(given) if given else None
    return Path.home() / ".cache" / "hpc_alpa" / "plans"


def known_or(request: Request, find: Callable[[Request], Plan]) -> Plan:
    """The plan that is known for a request, or the one that `find` makes, which is kept.

    Raises what `find` raises; that nothing fits is not kept.
    """
    if request.folder is None:
        return find(request)
    begin = time.perf_counter()
    path = request.folder / f"{digest(request)}.json"
    known = _read(path, request)
    if known is not None:
        log.info("plan known from before: %s", path)
        seconds = time.perf_counter() - begin
        return replace(known, solver={**known.solver, "planning_seconds": seconds, "known": True})
    plan = find(request)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        plan.save(path)
    except OSError as error:
        warnings.warn(f"{path}: the plan could not be kept: {error}", stacklevel=2)
    return plan


def digest(request: Request) -> str:
    """A name for all that a search depends on."""
    r = request
    graph = r.graph
    content = {
        "source": source_digest(),
        # Pins name lines of the model; elsewhere these are comments.
        "graph": hashlib.sha256(format_graph(graph, sources=bool(r.pins)).encode()).hexdigest(),
        "batch": [k for k, v in enumerate(graph.inputs) if v in r.batch],
        "renewed": sorted(r.renewed.items()),
        "names": sorted(graph.names) if r.pins else [],
        "cluster": r.cluster.digest,
        "cost": [r.cost.name, r.cost.digest],
        "devices": r.num_devices,
        "asked": [
            r.method, r.num_microbatches, r.schedule, r.memory, r.resharding, r.layers, r.seconds,
            r.recompute, r.num_stages, {name: str(pin) for name, pin in sorted(r.pins.items())},
        ],
    }  # fmt: skip
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@cache
def source_digest() -> str:
    """Of every source file of this library."""
    code = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        code.update(str(path.relative_to(root)).encode())
        code.update(path.read_bytes())
    return code.hexdigest()


def _read(path: Path, request: Request) -> Plan | None:
    if not path.exists():
        return None
    try:
        plan = Plan.load(path)
        if (plan.graph, plan.cluster) != (request.graph.digest, request.cluster.digest):
            raise PlanError("it is for another graph or cluster")
    except PlanError as error:
        warnings.warn(f"{path}: not the plan that was kept ({error}): made again", stacklevel=3)
        return None
    return plan
