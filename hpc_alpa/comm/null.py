"""Records what would be communicated and moves nothing: for counting calls and bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hpc_alpa.comm.base import BaseCommunicator
from hpc_alpa.comm.checks import check_index
from hpc_alpa.comm.dtypes import Dtype
from hpc_alpa.comm.protocol import Array, Communicator


@dataclass(frozen=True)
class Call:
    """One recorded call: its name, the group's global ranks, and the bytes of the array given.

    `nbytes` is that of `x` (0 for objects and barriers); `peer` the root, source or destination.
    """

    kind: str
    ranks: tuple[int, ...]
    nbytes: int = 0
    dtype: str | None = None
    peer: int | None = None
    op: str | None = None
    channel: int | None = None


class NullRequest:
    """A transfer that is complete as soon as it is started."""

    def wait(self) -> None:
        return None

    def test(self) -> bool:
        return True


class NullCommunicator(BaseCommunicator):
    """A communicator of any size that one process can hold (`comm.protocol.Communicator`).

    Arguments are checked as on a real backend; arrays stay as they are. `calls` holds the calls on
    this communicator and on all groups made from it, in order.

    Args:
        control: moves objects between the ranks, where there are others; without it each rank
            believes that all gave what it gave.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        *,
        ranks: tuple[int, ...] | None = None,
        control: Communicator | None = None,
    ) -> None:
        check_index("NullCommunicator", "rank", rank, size)
        super().__init__(tuple(range(size)) if ranks is None else ranks, rank, size)
        self._control = control
        self.calls: list[Call] = []

    def _group(self, ranks: tuple[int, ...], name: str) -> NullCommunicator:
        control = None if self._control is None else self._control.group(ranks, name)
        made = NullCommunicator(self._me, self._world_size, ranks=ranks, control=control)
        made.calls = self.calls
        return made

    def _all_reduce(self, x: Array, op: str, row: Dtype) -> None:
        self._record("all_reduce", x, op=op)

    def _all_gather(self, x: Array, out: Array, row: Dtype) -> None:
        self._record("all_gather", x)

    def _reduce_scatter(self, x: Array, out: Array, op: str, row: Dtype) -> None:
        self._record("reduce_scatter", x, op=op)

    def _all_to_all(self, x: Array, out: Array, row: Dtype) -> None:
        self._record("all_to_all", x)

    def _broadcast(self, x: Array, root: int, row: Dtype) -> None:
        self._record("broadcast", x, peer=root)

    def _send(self, x: Array, dest: int, channel: int, row: Dtype) -> NullRequest:
        self._record("send", x, peer=dest, channel=channel)
        return NullRequest()

    def _recv(self, x: Array, source: int, channel: int, row: Dtype) -> NullRequest:
        self._record("recv", x, peer=source, channel=channel)
        return NullRequest()

    def barrier(self) -> None:
        self.calls.append(Call("barrier", self._ranks))

    def _broadcast_object(self, obj: Any, root: int) -> Any:
        self.calls.append(Call("broadcast_object", self._ranks, peer=root))
        return obj if self._control is None else self._control.broadcast_object(obj, root)

    def _gather_objects(self, obj: Any, root: int) -> list[Any] | None:
        self.calls.append(Call("gather_objects", self._ranks, peer=root))
        if self._control is not None:
            return self._control.gather_objects(obj, root)
        return [obj] * self.size if self._rank == root else None

    def all_gather_objects(self, obj: Any) -> list[Any]:
        self.calls.append(Call("all_gather_objects", self._ranks))
        if self._control is not None:
            return self._control.all_gather_objects(obj)
        return [obj] * self.size

    def _record(
        self,
        kind: str,
        x: Array,
        *,
        op: str | None = None,
        peer: int | None = None,
        channel: int | None = None,
    ) -> None:
        call = Call(kind, self._ranks, int(x.nbytes), x.dtype.name, peer, op, channel)
        self.calls.append(call)
