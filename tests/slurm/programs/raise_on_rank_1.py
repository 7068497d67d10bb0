"""One rank of a training script fails while the others wait for it; that must end the job."""

from mpi4py import MPI

import hpc_alpa  # noqa: F401  (installs the hook that is tested here)

MPI.COMM_WORLD.Barrier()
if MPI.COMM_WORLD.rank == 1:
    raise ValueError("this rank fails on purpose")
MPI.COMM_WORLD.Barrier()
