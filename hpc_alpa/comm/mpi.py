"""Host arrays between processes, over MPI.

Collectives go one of two ways (`comm.wait`): with a core for each rank by the library's own, which
spin (`comm.native`); with fewer by messages and naps (`comm.direct`), as objects always do.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from hpc_alpa.comm import direct, native
from hpc_alpa.comm.base import BaseCommunicator
from hpc_alpa.comm.dtypes import Dtype
from hpc_alpa.comm.hosts import HostMap, host_map, usable_cores
from hpc_alpa.comm.mpi_library import MPI, start
from hpc_alpa.comm.protocol import Array
from hpc_alpa.comm.wait import sleeps, wait_asleep
from hpc_alpa.errors import CommError

GROUP_TAG, FIRST_CHANNEL_TAG = direct.TAG + 1, direct.TAG + 2


@dataclass(frozen=True)
class _Job:
    """What all communicators of a process share."""

    world: MPI.Intracomm
    hosts: HostMap
    asleep: bool  # the same on all ranks: a collective goes one way for all of them
    max_channel: int
    ordered: bool = False  # reductions go rank by rank, never by the library's algorithms


def world() -> MpiCommunicator:
    """The communicator of all ranks; the same object at each call. Collective at the first call.

    Raises:
        CommError: MPI has ended.
        LaunchError: HPC_ALPA_WAIT is malformed.
    """
    if "world" not in _WORLD:
        if MPI.Is_finalized():
            raise CommError("MPI has ended in this process; make communicators before it ends.")
        start()
        # A communicator of our own: the script's messages on COMM_WORLD cannot meet ours.
        _WORLD["world"] = over(MPI.COMM_WORLD.Dup())
    return _WORLD["world"]


_WORLD: dict[str, MpiCommunicator] = {}


def over(comm: MPI.Intracomm) -> MpiCommunicator:
    """A world made of the ranks of an MPI communicator, which becomes ours. Collective over it."""
    shared = comm.Split_type(MPI.COMM_TYPE_SHARED)
    leader = shared.bcast(comm.rank)
    shared.Free()
    told = comm.allgather((leader, usable_cores()))
    hosts = host_map([t[0] for t in told], [t[1] for t in told])
    mine = hosts.of(comm.rank)
    here = sleeps(os.environ, len(hosts.ranks[mine]), hosts.cores[mine])
    job = _Job(
        world=comm,
        hosts=hosts,
        asleep=comm.allreduce(here, MPI.LOR),
        max_channel=int(comm.Get_attr(MPI.TAG_UB) or 0) - FIRST_CHANNEL_TAG,
    )
    return MpiCommunicator(job, comm, tuple(range(comm.size)))


class MpiCommunicator(BaseCommunicator):
    """A group of processes (`comm.protocol.Communicator`)."""

    def __init__(self, job: _Job, comm: MPI.Intracomm, ranks: tuple[int, ...]) -> None:
        super().__init__(ranks, job.world.rank, job.world.size)
        comm.Set_errhandler(MPI.ERRORS_RETURN)  # mpi4py then raises
        self._job = job
        self._comm = comm
        self._way: ModuleType = direct if job.asleep else native

    @property
    def hosts(self) -> HostMap:
        """The hosts of all ranks of the job."""
        return self._job.hosts

    @property
    def waits_asleep(self) -> bool:
        """Whether the ranks of the job wait asleep rather than spin."""
        return self._job.asleep

    def _group(self, ranks: tuple[int, ...], name: str) -> MpiCommunicator:
        world = self._job.world
        # The members come one after the other, and Create_group spins: so they meet asleep before.
        nothing = {r: direct.NOTHING for r in ranks if r != self._me}
        self._call("group", direct.exchange, world, nothing, nothing, GROUP_TAG)
        made = self._call("group", world.Create_group, world.Get_group().Incl(ranks))
        made.Set_name(name or f"ranks {ranks}"[: MPI.MAX_OBJECT_NAME - 1])
        return MpiCommunicator(self._job, made, ranks)

    def ordered(self) -> MpiCommunicator:
        return MpiCommunicator(replace(self._job, ordered=True), self._comm, self._ranks)

    # Arrays

    def _all_reduce(self, x: Array, op: str, row: Dtype) -> None:
        if self.size > 1 and x.size:
            way = self._reducing_way(row)
            self._call("all_reduce", way.all_reduce, self._comm, x.reshape(-1), op)

    def _all_gather(self, x: Array, out: Array, row: Dtype) -> None:
        self._call("all_gather", self._way.all_gather, self._comm, x, out)

    def _reduce_scatter(self, x: Array, out: Array, op: str, row: Dtype) -> None:
        way = self._reducing_way(row)
        self._call("reduce_scatter", way.reduce_scatter, self._comm, x, out, op)

    def _all_to_all(self, x: Array, out: Array, row: Dtype) -> None:
        self._call("all_to_all", self._way.all_to_all, self._comm, x, out)

    def _broadcast(self, x: Array, root: int, row: Dtype) -> None:
        self._call("broadcast", self._way.broadcast, self._comm, x, root)

    def barrier(self) -> None:
        self._call("barrier", self._way.barrier, self._comm)

    def _reducing_way(self, row: Dtype) -> ModuleType:
        # MPI has no 16-bit floats: these go the way that combines in NumPy, in float32.
        return direct if row.wide or self._job.ordered else self._way

    def _send(self, x: Array, dest: int, channel: int, row: Dtype) -> MpiRequest:
        what = f"send of {x.dtype}{list(x.shape)} to rank {self._ranks[dest]}, channel {channel}"
        tag = self._tag(what, channel)
        request = self._call(what, self._comm.Isend, native.buffer(x), dest, tag)
        return MpiRequest(request, what, None, self._job.asleep)

    def _recv(self, x: Array, source: int, channel: int, row: Dtype) -> MpiRequest:
        what = (
            f"recv of {x.dtype}{list(x.shape)} from rank {self._ranks[source]}, channel {channel}"
        )
        tag = self._tag(what, channel)
        request = self._call(what, self._comm.Irecv, native.buffer(x), source, tag)
        return MpiRequest(request, what, int(x.nbytes), self._job.asleep)

    # Objects: the ranks may wait long for one that plans, so they always wait asleep.

    def _broadcast_object(self, obj: Any, root: int) -> Any:
        packed = pickle.dumps(obj) if self._rank == root else None
        data = self._call("broadcast_object", direct.broadcast_bytes, self._comm, packed, root)
        return obj if self._rank == root else pickle.loads(data)

    def _gather_objects(self, obj: Any, root: int) -> list[Any] | None:
        packed = pickle.dumps(obj)
        data = self._call("gather_objects", direct.gather_bytes, self._comm, packed, root)
        return None if data is None else [pickle.loads(d) for d in data]

    def all_gather_objects(self, obj: Any) -> list[Any]:
        gathered: list[Any] = self._broadcast_object(self._gather_objects(obj, 0), 0)
        return gathered

    def _tag(self, what: str, channel: int) -> int:
        if not 0 <= channel <= self._job.max_channel:
            raise CommError(
                f"{what}: this MPI library has channels 0 to {self._job.max_channel}"
                " (MPI_TAG_UB). Number the channels from 0."
            )
        return channel + FIRST_CHANNEL_TAG

    def _call(self, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except MPI.Exception as error:
            raise CommError(f"{what} on ranks {self._ranks}: {error}") from error


class MpiRequest:
    """A send or receive under way (`comm.protocol.Request`)."""

    def __init__(self, request: MPI.Request, what: str, nbytes: int | None, asleep: bool) -> None:
        self._request = request
        self._what = what
        self._nbytes = nbytes
        self._asleep = asleep
        self._status = MPI.Status()
        self._done = False

    def wait(self) -> None:
        if self._asleep:
            wait_asleep(self.test)
        elif not self._done:
            self._finish(self._request.Wait)

    def test(self) -> bool:
        if not self._done:
            self._finish(self._request.Test)
        return self._done

    def _finish(self, complete: Callable[[MPI.Status], bool]) -> None:
        try:
            self._done = bool(complete(self._status))
        except MPI.Exception as error:
            raise CommError(
                f"{self._what}: {error}. Sender and receiver must give the same dtype and size."
            ) from error
        # MPI takes a message that is shorter than its receive without a word.
        if self._done and self._nbytes not in (None, self._status.count):
            raise CommError(
                f"{self._what}: {self._status.count} bytes came, expected {self._nbytes}."
                " Sender and receiver must give the same dtype and size."
            )
