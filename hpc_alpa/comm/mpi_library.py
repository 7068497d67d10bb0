"""The one place that imports the MPI library; starting and ending it are left to `runtime`."""

from __future__ import annotations

import mpi4py

from hpc_alpa.comm.wait import wait_asleep

# Importing must not start MPI (a launcher mismatch is told before MPI_Init), and the end is ours:
# mpi4py's own finalization would wait for ranks that have died. If MPI was imported before by the
# user's script, these come too late and do no harm.
mpi4py.rc.initialize = False
mpi4py.rc.finalize = False

from mpi4py import MPI  # noqa: E402

__all__ = ["MPI", "meet", "start"]


def start() -> None:
    """Initialise MPI, unless it is. Collective over all processes of the job."""
    if not MPI.Is_initialized():
        MPI.Init_thread(MPI.THREAD_FUNNELED)


def meet(comm: MPI.Intracomm, seconds: float) -> bool:
    """Wait asleep until all ranks of `comm` have come here; False if they have not in time."""
    return wait_asleep(comm.Ibarrier().Test, seconds)
