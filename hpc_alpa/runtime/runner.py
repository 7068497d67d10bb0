"""Who runs the ranks of a program: this process is one of them (MPI), or all of them (threads)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from threadpoolctl import ThreadpoolController

from hpc_alpa.comm.hosts import usable_cores
from hpc_alpa.comm.local import LocalWorld, single
from hpc_alpa.comm.protocol import Communicator
from hpc_alpa.errors import HpcAlpaError

T = TypeVar("T")


class Runner(Protocol):
    """Ranks that run together.

    Attributes:
        size: number of ranks in all.
        here: the ranks of this process.
        hosts: the ranks of each host.
    """

    size: int
    here: tuple[int, ...]
    hosts: tuple[tuple[int, ...], ...]

    def each(self, function: Callable[[Communicator], T]) -> dict[int, T]:
        """Call a function with the communicator of every rank of this process. Collective."""

    def first(self, function: Callable[[], T]) -> T:
        """What rank 0 computes, on every rank; its error is every rank's error. Collective."""


class ProcessRunner:
    """One rank of an MPI job, or a process that is alone."""

    def __init__(
        self,
        world: Communicator | None = None,
        hosts: tuple[tuple[int, ...], ...] = ((0,),),
    ) -> None:
        self.world = world if world is not None else single()
        self.hosts = hosts
        self.size = self.world.size
        self.here: tuple[int, ...] = (self.world.rank,)

    def each(self, function: Callable[[Communicator], T]) -> dict[int, T]:
        return {self.world.rank: function(self.world)}

    def first(self, function: Callable[[], T]) -> T:
        if self.size == 1:
            return function()
        # The status goes first: an error on rank 0 must not leave the others waiting.
        outcome: tuple[Any, HpcAlpaError | None] = (None, None)
        unexpected: BaseException | None = None
        if self.world.rank == 0:
            try:
                outcome = (function(), None)
            except HpcAlpaError as error:
                outcome = (None, error)
            except Exception as error:
                unexpected = error
                outcome = (None, HpcAlpaError(f"rank 0 failed: {type(error).__name__}: {error}"))
        value, failure = self.world.broadcast_object(outcome, 0)
        if unexpected is not None:
            raise unexpected
        if failure is not None:
            raise failure
        return value  # type: ignore[no-any-return]


class ThreadRunner:
    """All ranks as threads of this process."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.here = tuple(range(size))
        self.hosts: tuple[tuple[int, ...], ...] = (self.here,)
        self._world = LocalWorld(size)
        self._blas = ThreadpoolController().select(user_api="blas")
        now = min((b.num_threads for b in self._blas.lib_controllers), default=1)
        self._threads = min(now, max(1, len(usable_cores()) // size))

    def each(self, function: Callable[[Communicator], T]) -> dict[int, T]:
        # The ranks share the cores: more BLAS threads than that would wait for each other.
        with self._blas.limit(limits=self._threads):
            return dict(enumerate(self._world.run(function)))

    def first(self, function: Callable[[], T]) -> T:
        return function()
