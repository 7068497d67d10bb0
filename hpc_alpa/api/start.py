"""Which ranks run a step, and on which arrays: by the backend's name."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from hpc_alpa import arrays, comm
from hpc_alpa.api import planning
from hpc_alpa.api.machine import find_cluster
from hpc_alpa.arrays import Arrays, CudaArrays
from hpc_alpa.cluster import Cluster
from hpc_alpa.comm.null import NullCommunicator
from hpc_alpa.errors import HpcAlpaError, PlanError
from hpc_alpa.runtime.memory import keep_freed_memory
from hpc_alpa.runtime.runner import ProcessRunner, Runner, ThreadRunner

BACKENDS = ("auto", "cuda", "host", "local", "null")  # alphabetical


def start(
    backend: str, cluster: Cluster | str | Path | None, deterministic: bool = False
) -> tuple[Runner, Arrays]:
    """The ranks that run together, and their arrays. Collective, but for `local`.

    Args:
        backend: one of `BACKENDS`; `auto` takes `$HPC_ALPA_BACKEND`, else `host`.
        cluster: whose devices are the threads of `local`, and the ranks of `null` where this
            process is alone.
        deterministic: reductions combine in the order of the ranks.

    Raises:
        CommError: `deterministic` on a backend that cannot.
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
    if name == "local":  # threads combine in the order of the ranks anyway
        return ThreadRunner(_devices(name, cluster)), arrays.BACKENDS["host"]()
    from hpc_alpa.runtime.launch import init

    world = init()
    data, found, hosts = world.communicator, arrays.BACKENDS["host"], world.hosts
    if name == "null":
        if world.size == 1:
            size = _devices(name, cluster)
            data, hosts = NullCommunicator(0, size), (tuple(range(size)),)
        else:
            data = comm.backend("null", data)
    elif name == "cuda":
        found = partial(CudaArrays.of_rank, world.local_rank, world.local_size)
    device = found()
    if name == "cuda" and world.size > 1:
        data = comm.backend("nccl", data)
    return ProcessRunner(data.ordered() if deterministic else data, hosts), device


def _devices(backend: str, cluster: Cluster | str | Path | None) -> int:
    found = find_cluster(cluster, None)
    if found is None:
        raise PlanError(f"backend={backend!r} runs the devices of a cluster: give cluster=")
    return found.num_devices
