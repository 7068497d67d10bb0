"""The part that all backends share: who is in the group, argument checks, groups made once.

A backend writes the methods with an underscore; they get checked arguments and the dtype's row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from hpc_alpa.comm.checks import (
    check_array,
    check_blocks,
    check_group,
    check_index,
    check_pair,
    check_reduction,
)
from hpc_alpa.comm.dtypes import Dtype
from hpc_alpa.comm.protocol import Array, Request

C = TypeVar("C", bound="BaseCommunicator")


class BaseCommunicator(ABC):
    """A `comm.protocol.Communicator` over `ranks` (global), seen by global rank `me`."""

    def __init__(self, ranks: tuple[int, ...], me: int, world_size: int) -> None:
        self._ranks = ranks
        self._me = me
        self._world_size = world_size
        self._rank = ranks.index(me)
        self._groups: dict[tuple[int, ...], Any] = {ranks: self}

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def size(self) -> int:
        return len(self._ranks)

    @property
    def ranks(self) -> tuple[int, ...]:
        return self._ranks

    def __repr__(self) -> str:
        return f"{type(self).__name__}(ranks={self._ranks}, rank={self._rank})"

    def group(self: C, ranks: tuple[int, ...], name: str = "") -> C:
        ranks = check_group("group", ranks, self._world_size, self._me)
        made: C | None = self._groups.get(ranks)
        if made is None:
            made = self._group(ranks, name)
            made._groups = self._groups
            self._groups[ranks] = made
        return made

    def ordered(self: C) -> C:
        return self

    def all_reduce(self, x: Array, op: str = "sum") -> None:
        row = check_array("all_reduce", "x", x, written=True)
        check_reduction("all_reduce", op, x)
        self._all_reduce(x, op, row)

    def all_gather(self, x: Array, out: Array) -> None:
        row = check_pair("all_gather", x, out, "(size, *x.shape)", (self.size, *x.shape))
        self._all_gather(x, out, row)

    def reduce_scatter(self, x: Array, out: Array, op: str = "sum") -> None:
        check_blocks("reduce_scatter", "x", x, self.size)
        row = check_pair("reduce_scatter", x, out, "x.shape[1:]", tuple(x.shape[1:]))
        check_reduction("reduce_scatter", op, x)
        self._reduce_scatter(x, out, op, row)

    def all_to_all(self, x: Array, out: Array) -> None:
        check_blocks("all_to_all", "x", x, self.size)
        row = check_pair("all_to_all", x, out, "x.shape", tuple(x.shape))
        self._all_to_all(x, out, row)

    def broadcast(self, x: Array, root: int = 0) -> None:
        check_index("broadcast", "root", root, self.size)
        row = check_array("broadcast", "x", x, written=self._rank != root)
        self._broadcast(x, root, row)

    def send(self, x: Array, dest: int, channel: int = 0) -> Request:
        check_index("send", "dest", dest, self.size)
        return self._send(x, dest, channel, check_array("send", "x", x, written=False))

    def recv(self, x: Array, source: int, channel: int = 0) -> Request:
        check_index("recv", "source", source, self.size)
        return self._recv(x, source, channel, check_array("recv", "x", x, written=True))

    @contextmanager
    def batch(self) -> Iterator[None]:
        yield

    def broadcast_object(self, obj: Any, root: int = 0) -> Any:
        check_index("broadcast_object", "root", root, self.size)
        return self._broadcast_object(obj, root)

    def gather_objects(self, obj: Any, root: int = 0) -> list[Any] | None:
        check_index("gather_objects", "root", root, self.size)
        return self._gather_objects(obj, root)

    @abstractmethod
    def barrier(self) -> None: ...
    @abstractmethod
    def all_gather_objects(self, obj: Any) -> list[Any]: ...
    @abstractmethod
    def _group(self: C, ranks: tuple[int, ...], name: str) -> C: ...
    @abstractmethod
    def _all_reduce(self, x: Array, op: str, row: Dtype) -> None: ...
    @abstractmethod
    def _all_gather(self, x: Array, out: Array, row: Dtype) -> None: ...
    @abstractmethod
    def _reduce_scatter(self, x: Array, out: Array, op: str, row: Dtype) -> None: ...
    @abstractmethod
    def _all_to_all(self, x: Array, out: Array, row: Dtype) -> None: ...
    @abstractmethod
    def _broadcast(self, x: Array, root: int, row: Dtype) -> None: ...
    @abstractmethod
    def _send(self, x: Array, dest: int, channel: int, row: Dtype) -> Request: ...
    @abstractmethod
    def _recv(self, x: Array, source: int, channel: int, row: Dtype) -> Request: ...
    @abstractmethod
    def _broadcast_object(self, obj: Any, root: int) -> Any: ...
    @abstractmethod
    def _gather_objects(self, obj: Any, root: int) -> list[Any] | None: ...
