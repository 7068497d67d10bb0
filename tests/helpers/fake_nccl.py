"""A double of `cupy.cuda.nccl` (CuPy 14.2.0) over host memory: same names, arguments, numbers.

Pointers are addresses of NumPy arrays (`ndarray.ctypes.data`), `stream` is taken and ignored, the
data go over mpi4py. Calls inside a group run when the outermost group ends, sends and receives
before collectives. `log` holds the calls of this process in order, for tests of the call sequence.
`HostDevice` is the access to arrays that goes with it.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from mpi4py import MPI

Array = Any

NCCL_INT8 = NCCL_CHAR = 0
NCCL_UINT8 = 1
NCCL_INT32 = NCCL_INT = 2
NCCL_UINT32 = 3
NCCL_INT64 = 4
NCCL_UINT64 = 5
NCCL_FLOAT16 = NCCL_HALF = 6
NCCL_FLOAT32 = NCCL_FLOAT = 7
NCCL_FLOAT64 = NCCL_DOUBLE = 8
NCCL_BFLOAT16 = 9
NCCL_SUM, NCCL_PROD, NCCL_MAX, NCCL_MIN, NCCL_AVG = range(5)

_DTYPES: list[Any] = [
    np.int8, np.uint8, np.int32, np.uint32, np.int64, np.uint64,
    np.float16, np.float32, np.float64, ml_dtypes.bfloat16,
]  # fmt: skip
_UFUNCS = {
    NCCL_SUM: np.add,
    NCCL_PROD: np.multiply,
    NCCL_MAX: np.maximum,
    NCCL_MIN: np.minimum,
    NCCL_AVG: np.add,
}
_ERRORS = {
    1: "NCCL_ERROR_UNHANDLED_CUDA_ERROR",
    2: "NCCL_ERROR_SYSTEM_ERROR",
    3: "NCCL_ERROR_INTERNAL_ERROR",
    4: "NCCL_ERROR_INVALID_ARGUMENT",
    5: "NCCL_ERROR_INVALID_USAGE",
}
INVALID_ARGUMENT, INVALID_USAGE = 4, 5

available = True
log: list[tuple[Any, ...]] = []


class NcclError(RuntimeError):
    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(_ERRORS[status])


def check_status(status: int) -> None:
    if status:
        raise NcclError(status)


def get_version() -> int:
    return 23203


def get_build_version() -> int:
    return 22501


def get_unique_id() -> bytes:
    # As NCCL's, the id says where its maker is to be found.
    return MPI.COMM_WORLD.rank.to_bytes(4, "little") + os.urandom(124)


class NcclConfig:
    def __init__(self, split_share: int = 0) -> None:
        self.split_share = split_share


@dataclass
class _Call:
    """One call of one rank; `peer` is the root, or the other side of a message."""

    comm: NcclCommunicator
    name: str
    send: int
    recv: int
    count: int
    datatype: int
    op: int = NCCL_SUM
    peer: int = 0


class _Group(threading.local):
    depth = 0

    def __init__(self) -> None:
        self.calls: list[_Call] = []


_group = _Group()


def groupStart() -> None:
    log.append(("groupStart",))
    _group.depth += 1


def groupEnd() -> None:
    log.append(("groupEnd",))
    if _group.depth == 0:
        raise NcclError(INVALID_USAGE)
    _group.depth -= 1
    if _group.depth == 0:
        calls, _group.calls = _group.calls, []
        _run(calls)


def _submit(call: _Call) -> None:
    if _group.depth:
        _group.calls.append(call)
    else:
        _run([call])


def _run(calls: list[_Call]) -> None:
    cliques = {id(call.comm._clique): call.comm._clique for call in calls}
    for key, clique in cliques.items():
        mine = [call for call in calls if id(call.comm._clique) == key]
        clique.messages([call for call in mine if call.name in ("send", "recv")])
        clique.collectives([call for call in mine if call.name not in ("send", "recv")])


class NcclCommunicator:
    _clique: Any
    _rank: int

    def __init__(
        self, ndev: int, commId: bytes, rank: int, config: NcclConfig | None = None
    ) -> None:
        if not isinstance(commId, bytes) or len(commId) != 128:
            raise NcclError(INVALID_ARGUMENT)
        self._clique, self._rank = _Processes(_find(ndev, commId, rank)), rank

    @property
    def comm(self) -> int:
        return id(self._clique)

    @staticmethod
    def initAll(devices: int | list[int]) -> list[NcclCommunicator]:
        size = devices if isinstance(devices, int) else len(devices)
        clique = _Threadless(size)
        return [NcclCommunicator._made(clique, rank) for rank in range(size)]

    @staticmethod
    def _made(clique: Any, rank: int) -> NcclCommunicator:
        made = NcclCommunicator.__new__(NcclCommunicator)
        made._clique, made._rank = clique, rank
        return made

    def rank_id(self) -> int:
        return self._rank

    def size(self) -> int:
        return int(self._clique.size)

    def device_id(self) -> int:
        return 0

    def destroy(self) -> None:
        self._clique.free()

    def abort(self) -> None:
        self._clique.free()

    def check_async_error(self) -> None:
        log.append(("check_async_error",))

    def commSplit(
        self, color: int, key: int, config: NcclConfig | None = None
    ) -> NcclCommunicator | None:
        comm = self._clique.comm.Split(MPI.UNDEFINED if color == -1 else color, key)
        if comm == MPI.COMM_NULL:
            return None
        return NcclCommunicator._made(_Processes(comm), comm.rank)

    def allReduce(
        self, sendbuf: int, recvbuf: int, count: int, datatype: int, op: int, stream: int
    ) -> None:
        log.append(("allReduce", count, datatype, op, stream))
        _submit(_Call(self, "allReduce", sendbuf, recvbuf, count, datatype, op))

    def reduce(
        self, sendbuf: int, recvbuf: int, count: int, datatype: int, op: int, root: int, stream: int
    ) -> None:
        log.append(("reduce", count, datatype, op, root, stream))
        _submit(_Call(self, "reduce", sendbuf, recvbuf, count, datatype, op, root))

    def reduceScatter(
        self, sendbuf: int, recvbuf: int, recvcount: int, datatype: int, op: int, stream: int
    ) -> None:
        log.append(("reduceScatter", recvcount, datatype, op, stream))
        _submit(_Call(self, "reduceScatter", sendbuf, recvbuf, recvcount, datatype, op))

    def allGather(self, sendbuf: int, recvbuf: int, count: int, datatype: int, stream: int) -> None:
        log.append(("allGather", count, datatype, stream))
        _submit(_Call(self, "allGather", sendbuf, recvbuf, count, datatype))

    def broadcast(
        self, sendbuff: int, recvbuff: int, count: int, datatype: int, root: int, stream: int
    ) -> None:
        log.append(("broadcast", count, datatype, root, stream))
        _submit(_Call(self, "broadcast", sendbuff, recvbuff, count, datatype, peer=root))

    def bcast(self, buff: int, count: int, datatype: int, root: int, stream: int) -> None:
        self.broadcast(buff, buff, count, datatype, root, stream)

    def send(self, sendbuf: int, count: int, datatype: int, peer: int, stream: int) -> None:
        log.append(("send", count, datatype, peer, stream))
        _submit(_Call(self, "send", sendbuf, 0, count, datatype, peer=peer))

    def recv(self, recvbuf: int, count: int, datatype: int, peer: int, stream: int) -> None:
        log.append(("recv", count, datatype, peer, stream))
        _submit(_Call(self, "recv", 0, recvbuf, count, datatype, peer=peer))


def _find(ndev: int, commId: bytes, rank: int) -> MPI.Intracomm:
    """The processes that hold the same id: they meet at the one that made it."""
    world = MPI.COMM_WORLD
    root = int.from_bytes(commId[:4], "little")
    tag = int.from_bytes(commId[4:6], "little") % 30000
    if world.rank == root:
        place = {rank: root}
        while len(place) < ndev:
            place.update([world.recv(source=MPI.ANY_SOURCE, tag=tag)])
        for other in set(place.values()) - {root}:
            world.send(place, other, tag + 1)
    else:
        world.send((rank, world.rank), root, tag)
        place = world.recv(source=root, tag=tag + 1)
    return world.Create_group(world.group.Incl([place[r] for r in range(ndev)]), tag)


def _view(pointer: int, count: int, datatype: int) -> Array:
    dtype = np.dtype(_DTYPES[datatype])
    if not count:
        return np.empty(0, dtype)
    memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(pointer)
    return np.frombuffer(memory, np.uint8).view(dtype)


def _combine(terms: list[Array], op: int) -> Array:
    dtype = terms[0].dtype
    wide = [t.astype(np.float32) if dtype.itemsize == 2 else t for t in terms]
    total = wide[0].copy()
    for term in wide[1:]:
        _UFUNCS[op](total, term, out=total)
    return (total / len(terms) if op == NCCL_AVG else total).astype(dtype)


# What rank `r` receives, from the operands of all ranks; None: nothing.
_OUTCOMES: dict[str, Callable[[_Call, int, list[Array]], Array | None]] = {
    "allGather": lambda call, r, terms: np.concatenate(terms),
    "allReduce": lambda call, r, terms: _combine(terms, call.op),
    "broadcast": lambda call, r, terms: terms[call.peer],
    "reduce": lambda call, r, terms: _combine(terms, call.op) if r == call.peer else None,
    "reduceScatter": lambda call, r, terms: _combine(
        [t.reshape(len(terms), -1)[r] for t in terms], call.op
    ),
}


def _operand(call: _Call, size: int) -> Array:
    count = call.count * (size if call.name == "reduceScatter" else 1)
    # Only the root's operand of a broadcast need be there.
    pointer = call.recv if call.name == "broadcast" and call.peer != call.comm._rank else call.send
    return _view(pointer, count, call.datatype)


def _store(call: _Call, result: Array | None) -> None:
    if result is not None:
        _view(call.recv, result.size, call.datatype)[...] = result


class _Processes:
    """One rank per process."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self.comm = comm
        self.size = comm.size

    def free(self) -> None:
        if self.comm != MPI.COMM_NULL:
            self.comm.Free()

    def messages(self, calls: list[_Call]) -> None:
        requests = []
        for call in calls:
            if call.name == "send":
                data = _view(call.send, call.count, call.datatype).view(np.uint8)
                requests.append(self.comm.Isend(data, call.peer))
            else:
                data = _view(call.recv, call.count, call.datatype).view(np.uint8)
                requests.append(self.comm.Irecv(data, call.peer))
        MPI.Request.Waitall(requests)

    def collectives(self, calls: list[_Call]) -> None:
        for call in calls:
            mine = _operand(call, self.size)
            terms = np.empty((self.size, mine.size), mine.dtype)
            self.comm.Allgather(mine.copy().view(np.uint8), terms.view(np.uint8))
            _store(call, _OUTCOMES[call.name](call, self.comm.rank, list(terms)))


@dataclass
class _Threadless:
    """All ranks in one process, by initAll: a group holds the calls of every rank."""

    size: int
    comm: None = None
    _sent: dict[tuple[int, int], deque[Array]] = field(default_factory=lambda: defaultdict(deque))

    def free(self) -> None:
        return None

    def messages(self, calls: list[_Call]) -> None:
        for call in calls:
            if call.name == "send":
                data = _view(call.send, call.count, call.datatype).copy()
                self._sent[call.comm._rank, call.peer].append(data)
        for call in calls:
            if call.name == "recv":
                _store(call, self._sent[call.peer, call.comm._rank].popleft())

    def collectives(self, calls: list[_Call]) -> None:
        by_rank: list[list[_Call]] = [[] for _ in range(self.size)]
        for call in calls:
            by_rank[call.comm._rank].append(call)
        for together in zip(*by_rank, strict=True):
            terms = [_operand(call, self.size).copy() for call in together]
            for rank, call in enumerate(together):
                _store(call, _OUTCOMES[call.name](call, rank, terms))


class HostDevice:
    """Access to NumPy arrays as if they were a device's (`hpc_alpa.comm.device.DeviceAccess`)."""

    def pointer(self, x: Array) -> int:
        return int(x.ctypes.data)

    def empty(self, length: int, dtype: str) -> Array:
        return np.zeros(length, dtype)

    def lane(self) -> HostLane:
        return HostLane()


class HostLane:
    """A queue whose work is complete when the call returns; `events` tells what was asked of it."""

    STREAM = 77

    def __init__(self) -> None:
        self.events: list[str] = []

    def fork(self) -> int:
        self.events.append("fork")
        return self.STREAM

    def mark(self) -> HostMark:
        self.events.append("mark")
        return HostMark(self.events)


@dataclass
class HostMark:
    events: list[str]

    def join(self) -> None:
        self.events.append("join")

    def done(self) -> bool:
        return True

    def synchronize(self) -> None:
        self.events.append("synchronize")
