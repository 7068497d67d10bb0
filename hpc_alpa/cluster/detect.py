"""The cluster that this process runs on: cores and memory read here, rates handed in."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from hpc_alpa.cluster.cluster import Cluster
from hpc_alpa.cluster.device import Host, Link
from hpc_alpa.errors import ClusterError

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # "<quota> <period>" or "max <period>", cgroup v2
MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")  # bytes or "max"
MEMORY_INFO = Path("/proc/meminfo")


def usable_cores() -> int:
    """Cores that this process may use: its affinity, less where a container has a CPU quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = CPU_QUOTA.read_text().split()
        return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        return cores


def memory_bytes() -> int:
    """Bytes of main memory of this host, less where a container has a limit."""
    for line in MEMORY_INFO.read_text().splitlines():
        if line.startswith("MemTotal:"):
            total = int(line.split()[1]) * 1024
            break
    else:
        raise ClusterError(
            f"{MEMORY_INFO} has no line MemTotal, so the memory of this host is not known. "
            "Describe the cluster in a TOML file."
        )
    try:
        return min(total, int(MEMORY_LIMIT.read_text()))
    except (OSError, ValueError):
        return total


def detect(
    ranks_per_host: Sequence[int],
    *,
    flops: Mapping[str, float],
    memory_bandwidth: float,
    host_link: Link | None = None,
    network_link: Link | None = None,
    cores: int | None = None,
    name: str = "this machine",
) -> Cluster:
    """The cluster of a running job: every rank is a device, all hosts like this one.

    Args:
        ranks_per_host: number of ranks on each host, in the order of the ranks.
        flops: measured operations per second of one rank, by dtype.
        memory_bandwidth: measured bytes/s of one rank.
        host_link: measured link between ranks of one host.
        network_link: measured link between ranks of two hosts.
        cores: cores of a host; this process's usable cores when not given (a launcher may have
            bound it to fewer than its host has).

    Memory per device is an equal share of the host's, rounded down to 3 digits so that two boots of
    one machine give one digest.
    """
    total = memory_bytes()
    counts = tuple(ranks_per_host)

    def host(ranks: int) -> Host:
        share = total / max(1, ranks)
        unit = 10.0 ** (math.floor(math.log10(share)) - 2)
        return Host(
            devices=ranks,
            cores=cores or usable_cores(),
            memory_bytes=math.floor(share / unit) * unit,
            flops=tuple(flops.items()),
            memory_bandwidth=memory_bandwidth,
        )

    return Cluster(name, tuple(host(ranks) for ranks in counts), host_link, network_link)
