"""Which cluster and which costs a step is planned with, by name; nothing falls back silently."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpc_alpa.cluster import PRESETS, Cluster
from hpc_alpa.cost import (
    AlphaBetaCost,
    AnalyticCost,
    Cost,
    DatabaseCost,
    default_path,
    load,
    measured_cluster,
)
from hpc_alpa.errors import CostError

ALPA, ANALYTIC = "alpa", "analytic"


def find_cluster(given: Cluster | str | Path | None, size: int | None) -> Cluster | None:
    """A cluster from a value, a preset's name or a TOML file; None stays None."""
    if given is None or isinstance(given, Cluster):
        return given
    if isinstance(given, str) and given.partition(":")[0] in PRESETS:
        return Cluster.preset(given)
    return Cluster.from_toml(Path(given))


def find_costs(given: Any, cluster: Cluster | None, hosts: Sequence[tuple[int, ...]]) -> Cost:
    """A cost model from a value, a database's path, "analytic" or "alpa".

    Args:
        hosts: the ranks of each host, for the cluster of a measured machine.

    Raises:
        CostError: there is no database, or it does not fit; or "analytic" without a cluster.
    """
    if given is not None and not isinstance(given, (str, os.PathLike)):
        return given  # type: ignore[no-any-return]
    if given == ANALYTIC:
        if cluster is None:
            raise CostError(
                'costs="analytic" computes seconds from a cluster\'s description: give cluster= '
                "(a TOML file, or a preset such as laptop)"
            )
        return AnalyticCost(cluster)
    if given == ALPA:
        return _alpa(cluster, hosts)
    size = sum(map(len, hosts))
    path = Path(given) if given is not None else default_path()
    if given is None and not path.exists():
        raise CostError(
            f"there is no cost database at {path}: measure this machine with "
            f"`mpiexec -n {size} python -m hpc_alpa.profiler --out {path}`, give costs=, or plan "
            'with costs="analytic" and a cluster'
        )
    database = load(path)
    return DatabaseCost(
        database,
        cluster if cluster is not None else measured_cluster(database, [len(h) for h in hosts]),
    )


def _alpa(cluster: Cluster | None, hosts: Sequence[tuple[int, ...]]) -> AlphaBetaCost:
    """Alpa's costs with alpha and beta 1 on every axis: hosts first, where there are several."""
    sizes = [h.devices for h in cluster.hosts] if cluster is not None else [len(h) for h in hosts]
    alike = len(set(sizes)) == 1 and len(sizes) > 1
    return AlphaBetaCost.alpa((len(sizes), sizes[0]) if alike else (sum(sizes),))
