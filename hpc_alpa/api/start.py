"""Which ranks run a step, and on which arrays: by the backend's name."""

from __future__ import annotations

import os
from pathlib import Path

from hpc_alpa import arrays, comm
from hpc_alpa.api import planning
from hpc_alpa.api.machine import find_cluster
from hpc_alpa.arrays import Arrays
from hpc_alpa.cluster import Cluster
from hpc_alpa.errors import HpcAlpaError, PlanError
from hpc_alpa.runtime.memory import keep_freed_memory
from hpc_alpa.runtime.runner import ProcessRunner, Runner, ThreadRunner

BACKENDS = ("auto", "cuda", "host", "local")  # alphabetical


def start(backend: str, cluster: Cluster | str | Path | None) -> tuple[Runner, Arrays]:
    """The ranks that run together, and their arrays. Collective, but for `local`.

    Args:
        backend: one of `BACKENDS`; `auto` takes `$HPC_ALPA_BACKEND`, else `host`.
        cluster: whose devices are the threads of `local`.

    Raises:
        HpcAlpaError: no such backend, or its device cannot be used.
        LaunchError: the processes are not one MPI job of the expected size.
    """
    if (target := planning.target()) is not None:
        return planning.NoRunner(target.size or 1), arrays.BACKENDS["host"]()
    name = os.environ.get("HPC_ALPA_BACKEND", "host") if backend == "auto" else backend
    if name not in BACKENDS:
        raise HpcAlpaError(f"there is no backend {name!r}; there are {', '.join(BACKENDS)}")
    if name != "cuda":
        keep_freed_memory()
    if name == "local":
        found = find_cluster(cluster, None)
        if found is None:
            raise PlanError("backend='local' runs a cluster's devices as threads: give cluster=")
        return ThreadRunner(found.num_devices), arrays.BACKENDS["host"]()
    from hpc_alpa.runtime.launch import init

    world = init()
    if name != "cuda":
        return ProcessRunner(world.communicator, world.hosts), arrays.BACKENDS["host"]()
    device = arrays.BACKENDS["cuda"]()
    alone = world.size == 1
    data = world.communicator if alone else comm.backend("nccl", world.communicator)
    return ProcessRunner(data, world.hosts), device
