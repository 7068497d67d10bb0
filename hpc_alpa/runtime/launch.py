"""The start of a job: which ranks there are, where, and that they really are one job."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import partial

from hpc_alpa.comm.hosts import usable_cores
from hpc_alpa.comm.protocol import Communicator
from hpc_alpa.errors import LaunchError
from hpc_alpa.runtime import hooks
from hpc_alpa.runtime.launchers import Place, check_library, check_size, place
from hpc_alpa.runtime.threads import limit_threads


@dataclass(frozen=True)
class World:
    """All ranks of the job, as one of them sees it.

    `hosts` lists the ranks of each host, hosts by their lowest rank; `cores` are those that the
    ranks of this host may use together, `threads` those of this rank. `communicator` moves objects
    and host arrays; the backend of `comm` for the data is made from it.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    hosts: tuple[tuple[int, ...], ...]
    cores: int
    threads: int
    communicator: Communicator


_world: World | None = None


def init() -> World:
    """Join the job; the same world at each call. Collective over all processes at the first call.

    Without a launcher this process is alone, and MPI is neither started nor needed. With one: MPI
    is started, BLAS and Numba get the rank's share of the host's cores, and at the end the ranks
    wait for each other before MPI ends.

    Raises:
        LaunchError: the launcher's variables and the MPI library do not fit, or mpi4py is missing;
            with the launcher to use.
    """
    global _world
    if _world is None:
        hooks.exit_seconds()  # a malformed variable is told now, not at the end
        found = place(os.environ)
        if (found is not None and found.size > 1) or _mpi_has_ranks():
            _world = _join(found)
        else:
            _world = _alone()
    return _world


def _alone() -> World:
    from hpc_alpa.comm.local import single

    cores = len(usable_cores())
    return World(0, 1, 0, 1, ((0,),), cores, cores, single())


def _mpi_has_ranks() -> bool:
    # The script may have started MPI itself, under a launcher that we do not know.
    library = sys.modules.get("mpi4py.MPI")
    if library is None or not library.Is_initialized() or library.Is_finalized():
        return False
    return bool(library.COMM_WORLD.size > 1)


def _join(found: Place | None) -> World:
    try:
        from hpc_alpa.comm.mpi import world
        from hpc_alpa.comm.mpi_library import MPI, meet, start
    except (ImportError, RuntimeError) as error:  # mpi4py, or the library that it looks for
        raise LaunchError(
            f"{found.launcher.name if found else 'a launcher'} started several processes, but MPI"
            f" cannot be loaded: {error}.\n  Install hpc-alpa[mpich], or build mpi4py for this"
            " machine's MPI."
        ) from error
    version = MPI.Get_library_version()
    if found is not None:
        check_library(found, version)
    start()
    if found is not None:
        check_size(found, MPI.COMM_WORLD.size, version)
    hooks.install(MPI.COMM_WORLD.size)
    # A communicator of its own: what the script left unfinished cannot be taken for the end.
    hooks.at_exit(MPI.COMM_WORLD.rank, partial(meet, MPI.COMM_WORLD.Dup()))

    communicator = world()
    rank = communicator.rank
    hosts = communicator.hosts
    host = hosts.of(rank)
    local = hosts.ranks[host]
    local_rank = local.index(rank)
    if found is not None and found.local_rank not in (None, local_rank):
        # Variables of an outer launcher may be left over; shared memory does not lie.
        print(
            f"hpc_alpa: {hooks.rank_label()} {found.launcher.local_rank}={found.local_rank}, but"
            f" by shared memory the local rank is {local_rank}, which is used.",
            file=sys.stderr,
        )
    threads = max(1, hosts.cores[host] // len(local))
    limit_threads(threads)
    if rank == 0:
        print(
            f"hpc_alpa: {communicator.size} ranks on {_count(len(hosts.ranks), 'host')}; rank 0's"
            f" has {_count(len(local), 'rank')} on {_count(hosts.cores[host], 'core')}:"
            f" {_count(threads, 'thread')} per rank for BLAS and Numba;"
            f" ranks wait {'asleep' if communicator.waits_asleep else 'spinning'}.",
            file=sys.stderr,
        )
    return World(
        rank=rank,
        size=communicator.size,
        local_rank=local_rank,
        local_size=len(local),
        hosts=hosts.ranks,
        cores=hosts.cores[host],
        threads=threads,
        communicator=communicator,
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
