"""Device arrays between GPUs, over NCCL as CuPy wraps it.

A thin layer: NCCL's calls go on the communicator's lane (`comm.device`), in the order in which they
are made, and never wait on the host. What NCCL lacks is built from what it has: all_to_all from a
group of sends and receives, the barrier from an all_reduce of one element. Objects go over the
control communicator, which has the same ranks.

NCCL matches messages by their order per pair of ranks, not by channel: both sides must start them
in the same order over all channels, as the checker of programs demands. A NaN and the rounding of
16-bit sums are as the library does them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hpc_alpa.comm.agree import raise_together
from hpc_alpa.comm.base import BaseCommunicator
from hpc_alpa.comm.device import CupyDevice, DeviceAccess, Lane, Mark
from hpc_alpa.comm.dtypes import DTYPES, NCCL_BYTE, REDUCTIONS, Dtype
from hpc_alpa.comm.protocol import Array, Communicator
from hpc_alpa.errors import CommError


def create(
    control: Communicator, *, nccl: Any = None, device: DeviceAccess | None = None
) -> NcclCommunicator:
    """The NCCL communicator of the ranks of `control`, one device each. Collective over `control`.

    Args:
        control: moves objects between the same ranks: MPI's.
        nccl: the module `cupy.cuda.nccl`, or one with its interface.
        device: access to this rank's device; by default CuPy's current one.

    Raises:
        CommError: on all ranks when one of them has no NCCL or no device, or NCCL failed.
    """
    error: Exception | None = None
    try:
        nccl = _cupy_nccl() if nccl is None else nccl
        device = CupyDevice() if device is None else device
    except Exception as caught:  # of any kind: CuPy's, CUDA's, an ImportError
        error = caught
    raise_together(control, error)
    assert device is not None
    return NcclCommunicator(control, nccl, device, 1 + max(control.ranks))


def _cupy_nccl() -> Any:
    from cupy.cuda import nccl

    if not nccl.available:
        raise CommError(
            "NCCL cannot be loaded: cupy.cuda.nccl.available is False. Install hpc-alpa[cuda12]."
        )
    return nccl


class NcclCommunicator(BaseCommunicator):
    """A group of devices (`comm.protocol.Communicator`); made by `create`."""

    def __init__(
        self, control: Communicator, nccl: Any, device: DeviceAccess, world_size: int
    ) -> None:
        super().__init__(control.ranks, control.ranks[control.rank], world_size)
        self._control = control
        self._nccl = nccl
        self._device = device
        self._batch: list[NcclRequest] | None = None
        error: Exception | None = None
        try:
            self._lane: Lane = device.lane()
            self._token = device.empty(1, "int32")
        except Exception as caught:
            error = caught
        # NCCL's start waits for all ranks for ever, so nobody begins it unless everybody can.
        raise_together(control, error)
        self._comm = self._start()

    def _start(self) -> Any:
        # The status travels with the id: a root that fails would leave the others waiting for it.
        status, unique_id = "", b""
        if self._rank == 0:
            try:
                unique_id = self._nccl.get_unique_id()
            except Exception as caught:
                status = f"{type(caught).__name__}: {caught}"
        status, unique_id = self._control.broadcast_object((status, unique_id), 0)
        if status:
            raise CommError(f"rank {self._ranks[0]}: NCCL gives no unique id: {status}")
        comm: Any = None
        error: Exception | None = None
        try:
            comm = self._nccl.NcclCommunicator(self.size, unique_id, self._rank)
        except Exception as caught:
            error = CommError(f"NCCL does not start on ranks {self._ranks}: {caught}")
        raise_together(self._control, error)
        return comm

    def close(self) -> None:
        """Free NCCL's resources of this group. Collective; the communicator is of no use after."""
        self._comm.destroy()

    def ordered(self) -> NcclCommunicator:
        raise CommError(
            "NCCL chooses the order in which it combines terms: deterministic=True runs on the "
            "backends host and local"
        )

    def _group(self, ranks: tuple[int, ...], name: str) -> NcclCommunicator:
        # Not commSplit, which all ranks of the parent would have to call.
        control = self._control.group(ranks, name)
        return NcclCommunicator(control, self._nccl, self._device, self._world_size)

    def _all_reduce(self, x: Array, op: str, row: Dtype) -> None:
        kind = _reducible("all_reduce", x, row)
        p = self._device.pointer(x)
        number = REDUCTIONS[op].nccl
        self._put(x, lambda stream: self._comm.allReduce(p, p, x.size, kind, number, stream))

    def _all_gather(self, x: Array, out: Array, row: Dtype) -> None:
        p, q = self._pointers(x, out)
        count, kind = _elements(x.size, row)
        self._put(x, lambda stream: self._comm.allGather(p, q, count, kind, stream))

    def _reduce_scatter(self, x: Array, out: Array, op: str, row: Dtype) -> None:
        kind = _reducible("reduce_scatter", x, row)
        p, q = self._pointers(x, out)
        number = REDUCTIONS[op].nccl
        self._put(x, lambda stream: self._comm.reduceScatter(p, q, out.size, kind, number, stream))

    def _all_to_all(self, x: Array, out: Array, row: Dtype) -> None:
        p, q = self._pointers(x, out)
        count, kind = _elements(x.size // self.size, row)
        step = x.nbytes // self.size

        def exchange(stream: int) -> None:
            with self._one_group():
                for i in range(self.size):
                    self._comm.send(p + i * step, count, kind, i, stream)
                    self._comm.recv(q + i * step, count, kind, i, stream)

        self._put(x, exchange)

    def _broadcast(self, x: Array, root: int, row: Dtype) -> None:
        p = self._device.pointer(x)
        count, kind = _elements(x.size, row)
        self._put(x, lambda stream: self._comm.broadcast(p, p, count, kind, root, stream))

    def _send(self, x: Array, dest: int, channel: int, row: Dtype) -> NcclRequest:
        return self._message(self._comm.send, x, dest, row)

    def _recv(self, x: Array, source: int, channel: int, row: Dtype) -> NcclRequest:
        return self._message(self._comm.recv, x, source, row)

    @contextmanager
    def batch(self) -> Iterator[None]:
        if self._batch is not None:
            raise CommError("batch: inside another batch of the same communicator; use one.")
        self._batch = []
        try:
            with self._one_group():
                yield
            # NCCL has started them all: one mark stands behind each.
            mark = self._lane.mark()
            for request in self._batch:
                request.mark = mark
        finally:
            self._batch = None

    def barrier(self) -> None:
        """Return on the host when all ranks have come and this rank's lane is done.

        Raises:
            CommError: NCCL reports an error of this or an earlier call.
        """
        stream = self._lane.fork()
        p = self._device.pointer(self._token)
        kind, number = DTYPES["int32"].nccl, REDUCTIONS["max"].nccl
        self._comm.allReduce(p, p, 1, kind, number, stream)
        self._lane.mark().synchronize()
        try:
            self._comm.check_async_error()
        except Exception as error:
            raise CommError(f"NCCL failed on ranks {self._ranks}: {error}") from error

    def _broadcast_object(self, obj: Any, root: int) -> Any:
        return self._control.broadcast_object(obj, root)

    def _gather_objects(self, obj: Any, root: int) -> list[Any] | None:
        return self._control.gather_objects(obj, root)

    def all_gather_objects(self, obj: Any) -> list[Any]:
        return self._control.all_gather_objects(obj)

    def _pointers(self, x: Array, out: Array) -> tuple[int, int]:
        return self._device.pointer(x), self._device.pointer(out)

    def _put(self, x: Array, call: Callable[[int], None]) -> None:
        """Put a collective on the lane; the caller's next work runs after it."""
        if x.size:
            call(self._lane.fork())
            self._lane.mark().join()

    def _message(self, call: Callable[..., None], x: Array, peer: int, row: Dtype) -> NcclRequest:
        request = NcclRequest(x)
        if x.size:
            count, kind = _elements(x.size, row)
            call(self._device.pointer(x), count, kind, peer, self._lane.fork())
        if self._batch is None:
            request.mark = self._lane.mark()
        else:
            self._batch.append(request)
        return request

    @contextmanager
    def _one_group(self) -> Iterator[None]:
        self._nccl.groupStart()
        try:
            yield
        finally:
            self._nccl.groupEnd()


class NcclRequest:
    """A send or receive under way (`comm.protocol.Request`); keeps the array alive."""

    def __init__(self, x: Array) -> None:
        self._x: Array | None = x
        self.mark: Mark | None = None

    def wait(self) -> None:
        self._started().join()

    def test(self) -> bool:
        return self._started().done()

    def _started(self) -> Mark:
        if self.mark is None:
            raise CommError("wait: the transfer starts when its batch ends; wait after the batch.")
        return self.mark


def _elements(size: int, row: Dtype) -> tuple[int, int]:
    """Count and type of `size` elements that are only moved: bytes where NCCL has no such type."""
    return (size * row.nbytes, NCCL_BYTE) if row.nccl is None else (size, row.nccl)


def _reducible(what: str, x: Array, row: Dtype) -> int:
    if row.nccl is None:
        raise CommError(
            f"{what}: x has dtype {x.dtype}, which NCCL cannot combine; expected one of"
            f" {', '.join(name for name, r in DTYPES.items() if r.nccl is not None)}."
            " Convert it with astype."
        )
    return row.nccl
