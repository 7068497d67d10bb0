"""Ranks as threads of one process: for tests, notebooks and debuggers.

`LocalWorld(n).run(function)` calls `function(comm)` on n threads. Nothing is buffered: a send
completes only with its receive. What MPI leaves to chance is an error here: collectives that
differ between ranks, messages that do not fit their receive, and a deadlock (every thread waits
and nobody can go on), which names what each rank waits for.
"""

from __future__ import annotations

import contextvars
import pickle
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from hpc_alpa.comm.base import BaseCommunicator
from hpc_alpa.comm.dtypes import Dtype
from hpc_alpa.comm.protocol import Array
from hpc_alpa.comm.reduce import combine, shard_bounds
from hpc_alpa.comm.threads import State, Transfer
from hpc_alpa.errors import CommError

T = TypeVar("T")


class LocalWorld:
    """`size` ranks in one process."""

    def __init__(self, size: int) -> None:
        if size < 1:
            raise CommError(f"LocalWorld: size is {size}, expected at least one rank.")
        self.size = size

    def run(self, function: Callable[[LocalCommunicator], T]) -> list[T]:
        """Call `function(comm)` on every rank at once; the results in rank order.

        Raises:
            The first error that a rank raised. The other ranks are broken out of what they wait
            for; a rank that computes is waited for.
        """
        state = State(self.size)
        results: list[Any] = [None] * self.size

        def work(rank: int) -> None:
            try:
                results[rank] = function(LocalCommunicator(state, tuple(range(self.size)), rank))
            except BaseException as error:  # the caller of run gets it
                state.fail(rank, error)
            else:
                state.finish(rank)

        # The copied context carries NumPy's errstate (and any trace) into the threads.
        threads = [
            threading.Thread(
                target=contextvars.copy_context().run, args=(work, r), name=f"rank {r}", daemon=True
            )
            for r in range(self.size)
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException as error:  # KeyboardInterrupt in the caller's thread
            state.fail(None, error)
            raise
        if state.error is not None:
            raise state.error
        return results


def single() -> LocalCommunicator:
    """The communicator of a process that is alone: rank 0 of 1, without threads or MPI."""
    return LocalCommunicator(State(1), (0,), 0)


class LocalCommunicator(BaseCommunicator):
    """A group of threads (`comm.protocol.Communicator`)."""

    def __init__(self, state: State, ranks: tuple[int, ...], me: int) -> None:
        super().__init__(ranks, me, state.size)
        self._state = state
        self._meeting = state.meeting(ranks)

    def _group(self, ranks: tuple[int, ...], name: str) -> LocalCommunicator:
        return LocalCommunicator(self._state, ranks, self._me)

    def _all_reduce(self, x: Array, op: str, row: Dtype) -> None:
        flat = x.reshape(-1)
        bounds = shard_bounds(flat.size, self.size)
        start, stop = bounds[self._rank]
        terms = self._exchange(f"all_reduce({_form(x)}, {op})", flat)
        shard = combine([term[start:stop] for term in terms], op)
        # All have read all terms when the shards are there, so x may be written.
        for (start, stop), part in zip(bounds, self._exchange("all_reduce", shard), strict=True):
            flat[start:stop] = part

    def _all_gather(self, x: Array, out: Array, row: Dtype) -> None:
        for i, block in enumerate(self._exchange(f"all_gather({_form(x)})", x)):
            out[i] = block
        self._exchange("all_gather")

    def _reduce_scatter(self, x: Array, out: Array, op: str, row: Dtype) -> None:
        terms = self._exchange(f"reduce_scatter({_form(x)}, {op})", x)
        out[...] = combine([term[self._rank, ...] for term in terms], op)
        self._exchange("reduce_scatter")

    def _all_to_all(self, x: Array, out: Array, row: Dtype) -> None:
        for i, blocks in enumerate(self._exchange(f"all_to_all({_form(x)})", x)):
            out[i] = blocks[self._rank]
        self._exchange("all_to_all")

    def _broadcast(self, x: Array, root: int, row: Dtype) -> None:
        values = self._exchange(f"broadcast({_form(x)}, root {root})", x)
        if self._rank != root:
            x[...] = values[root]
        self._exchange("broadcast")

    def _send(self, x: Array, dest: int, channel: int, row: Dtype) -> LocalRequest:
        what = f"send({_form(x)}) to rank {self._ranks[dest]}, channel {channel}"
        return self._post("send", x, (self._ranks, self._rank, dest, channel), what)

    def _recv(self, x: Array, source: int, channel: int, row: Dtype) -> LocalRequest:
        what = f"recv({_form(x)}) from rank {self._ranks[source]}, channel {channel}"
        return self._post("recv", x, (self._ranks, source, self._rank, channel), what)

    def barrier(self) -> None:
        self._exchange("barrier")

    # Objects are pickled, so that the ranks share none, as between processes.

    def _broadcast_object(self, obj: Any, root: int) -> Any:
        packed = pickle.dumps(obj) if self._rank == root else None
        packed = self._exchange(f"broadcast_object(root {root})", packed)[root]
        return obj if self._rank == root else pickle.loads(packed)

    def _gather_objects(self, obj: Any, root: int) -> list[Any] | None:
        packed = self._exchange(f"gather_objects(root {root})", pickle.dumps(obj))
        return [pickle.loads(p) for p in packed] if self._rank == root else None

    def all_gather_objects(self, obj: Any) -> list[Any]:
        packed = self._exchange("all_gather_objects", pickle.dumps(obj))
        return [pickle.loads(p) for p in packed]

    def _exchange(self, call: str, value: Any = None) -> tuple[Any, ...]:
        return self._state.exchange(self._meeting, self._rank, self._me, call, value)

    def _post(self, side: str, x: Array, key: tuple[Any, ...], what: str) -> LocalRequest:
        transfer = Transfer(x, self._me, what)
        self._state.post(side, key, transfer)
        return LocalRequest(self._state, transfer)


class LocalRequest:
    """A send or receive between two threads (`comm.protocol.Request`)."""

    def __init__(self, state: State, transfer: Transfer) -> None:
        self._state = state
        self._transfer = transfer

    def wait(self) -> None:
        self._state.wait(self._transfer)

    def test(self) -> bool:
        return self._state.test(self._transfer)


def _form(x: Array) -> str:
    return f"{x.dtype}[{', '.join(map(str, x.shape))}]"
