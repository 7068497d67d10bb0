"""The setting of this process: its job, its host's cores, the host backend."""

from hpc_alpa.arrays import BACKENDS
from hpc_alpa.profiler.setting import Setting


def connect() -> Setting:
    """The setting of this job, alone or under a launcher. Collective over all ranks of the job."""
    from hpc_alpa.comm.mpi import world as job

    world = job()
    return Setting(world, world.hosts.ranks, world.hosts.cores[0], BACKENDS["host"]())
