"""Communication: one protocol, four backends with the same method names, chosen by name.

`mpi` moves host arrays between processes, `nccl` device arrays, `local` runs all ranks as threads
of one process, `null` records calls and moves nothing. Importing this package starts neither MPI
nor CUDA: each backend is imported by its factory.
"""

from __future__ import annotations

from collections.abc import Callable

from hpc_alpa.comm.protocol import Communicator, Request
from hpc_alpa.errors import CommError

__all__ = ["BACKENDS", "Communicator", "Request", "backend"]


def _local(control: Communicator) -> Communicator:
    from hpc_alpa.comm.local import LocalCommunicator

    if isinstance(control, LocalCommunicator):
        return control
    raise CommError(
        f"comm.BACKENDS['local']: the control communicator is a {type(control).__name__}, expected"
        " a LocalCommunicator. Run the ranks as threads: LocalWorld(n).run(function)."
    )


def _mpi(control: Communicator) -> Communicator:
    if control.size == 1:
        return control  # nobody to talk to: works without MPI
    from hpc_alpa.comm.mpi import MpiCommunicator

    if isinstance(control, MpiCommunicator):
        return control
    raise CommError(
        f"comm.BACKENDS['mpi']: the control communicator is a {type(control).__name__} of"
        f" {control.size} ranks, expected an MpiCommunicator. Start the ranks with mpirun or srun."
    )


def _nccl(control: Communicator) -> Communicator:
    from hpc_alpa.comm.nccl import create

    return create(control)


def _null(control: Communicator) -> Communicator:
    from hpc_alpa.comm.null import NullCommunicator

    return NullCommunicator(control.rank, control.size, control=control)


# name -> factory(control) -> the communicator that moves arrays between the ranks of `control`,
# which itself moves objects and host arrays. Alphabetical; the command line takes its choices here.
BACKENDS: dict[str, Callable[[Communicator], Communicator]] = {
    "local": _local,
    "mpi": _mpi,
    "nccl": _nccl,
    "null": _null,
}


def backend(name: str, control: Communicator) -> Communicator:
    """The communicator of backend `name` over the ranks of `control`. Collective over `control`.

    Raises:
        CommError: no such backend, or it cannot run on these ranks.
    """
    factory = BACKENDS.get(name)
    if factory is None:
        raise CommError(f"backend {name!r} is unknown; choose one of {', '.join(BACKENDS)}.")
    return factory(control)
