"""The cluster that a cost database describes: attained rates and fitted links."""

from collections.abc import Sequence

from hpc_alpa.cluster import Cluster, Link, detect
from hpc_alpa.cost.database import Database
from hpc_alpa.cost.database_cost import Load, pooled
from hpc_alpa.cost.interpolate import fit_line
from hpc_alpa.cost.sample import Sample
from hpc_alpa.errors import CostError


def measured_cluster(
    database: Database, ranks_per_host: Sequence[int], name: str = "this machine"
) -> Cluster:
    """The cluster of a job on the database's machine: `ranks_per_host` ranks on each host.

    flops is the best rate attained by a matrix product, memory_bandwidth the bytes/s of the largest
    elementwise operator, links are lines through the messages, all under the load of the fullest
    host. Rates are rounded to 2 digits, so that the digest outlives the noise of a new sweep.

    Raises:
        CostError: a rate or a link that is needed was not measured.
    """
    last = dict(database.runs[-1].facts) if database.runs else {}
    # A batch system may have given the run fewer cores than the machine has.
    cores = int(last.get("cores_usable", dict(database.machine)["cores"]))
    load = Load.of(max(ranks_per_host), cores)
    here = [s for s in database.samples if s.group == "operators" and _under(s, load)]
    flops: dict[str, float] = {}
    for s in here:
        if s.name == "dot_general":
            work = 2.0 * s["batch"] * s["m"] * s["n"] * s["k"]
            flops[s["dtype"]] = max(flops.get(s["dtype"], 0.0), work / s.seconds.median)
    largest = max((s for s in here if s.name == "elementwise"), key=_nbytes, default=None)
    if not flops or largest is None:
        missing = "dot_general" if not flops else "elementwise"
        raise CostError(
            f"cost database {database.path} has no sample of {missing} with {load}, so this "
            "machine's rates are not known. Measure with the number of ranks that will train: "
            f"mpirun -n {sum(ranks_per_host)} python -m hpc_alpa.profiler --out {database.path} "
            "--resume"
        )
    return detect(
        ranks_per_host,
        flops={dtype: _rounded(rate) for dtype, rate in flops.items()},
        memory_bandwidth=_rounded(largest["nbytes"] / largest.seconds.median),
        host_link=_link("host", database, 1),
        network_link=_link("network", database, 2),
        cores=cores,
        name=name,
    )


def _under(sample: Sample, load: Load) -> bool:
    return (sample["threads"], sample["busy"]) == (load.threads, load.busy)


def _nbytes(sample: Sample) -> int:
    return int(sample["nbytes"])


def _link(name: str, database: Database, hosts: int) -> Link | None:
    messages = [s for s in database.samples if s.group == "point_to_point" and s["hosts"] == hosts]
    if not messages:
        return None
    points = [(float(size), q.median) for size, q in pooled(messages, _nbytes)]
    alpha, beta, _ = fit_line(points)
    return Link(name, _rounded(alpha), _rounded(beta))


def _rounded(value: float) -> float:
    return float(f"{value:.1e}")
