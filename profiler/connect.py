"""The setting of this process: its job, its host's cores, the host backend."""

from hpc_alpa.arrays import BACKENDS
from hpc_alpa.profiler.setting import Setting
from hpc_alpa.runtime import launch


def connect() -> Setting:
    """The setting of this job, alone or under a launcher. Collective over all ranks of the job."""
    job = launch.init()
    # Loads are those of rank 0's host: all ranks must make the same list of points.
    cores = job.communicator.broadcast_object(job.cores)
    return Setting(job.communicator, job.hosts, cores, BACKENDS["host"]())
