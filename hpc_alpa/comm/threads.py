"""What the threads of a local world share: exchanges of values, messages, who waits for what."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

from hpc_alpa.comm.protocol import Array
from hpc_alpa.errors import CommError


class BrokenWorldError(CommError):
    """Another rank of the local world failed; its error is the one that `LocalWorld.run` raises."""


class Transfer:
    """One side of a message."""

    def __init__(self, x: Array, rank: int, what: str) -> None:
        self.x = x
        self.rank = rank
        self.what = what
        self.done = False


class Meeting:
    """Where the ranks of one group exchange values, round by round."""

    def __init__(self, ranks: tuple[int, ...]) -> None:
        self.ranks = ranks
        self.calls: dict[int, str] = {}
        self.values: dict[int, Any] = {}
        self.round = 0
        self.result: tuple[Any, ...] = ()


class State:
    """All that the threads of one run share, behind one lock."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.error: BaseException | None = None
        self._failed: int | None = None
        self._changed = threading.Condition()
        self._finished: set[int] = set()
        self._blocked: dict[int, tuple[str, Callable[[], bool]]] = {}
        self._meetings: dict[tuple[int, ...], Meeting] = {}
        self._posted: dict[tuple[Any, ...], deque[Transfer]] = defaultdict(deque)

    def meeting(self, ranks: tuple[int, ...]) -> Meeting:
        with self._changed:
            return self._meetings.setdefault(ranks, Meeting(ranks))

    def exchange(
        self, meeting: Meeting, index: int, me: int, call: str, value: Any
    ) -> tuple[Any, ...]:
        """The values of all ranks of the group, once all have come with the same call."""
        with self._changed:
            self._check_whole()
            current = meeting.round
            meeting.calls[index] = call
            meeting.values[index] = value
            if len(meeting.values) == len(meeting.ranks):
                self._check_calls(meeting, me)
                meeting.result = tuple(meeting.values[i] for i in range(len(meeting.ranks)))
                meeting.calls, meeting.values = {}, {}
                meeting.round += 1
                self._changed.notify_all()
            else:
                where = f"{call} on ranks {meeting.ranks}"
                self._block(me, where, lambda: meeting.round > current)
            # The next round cannot end before this rank comes to it: the result is this round's.
            return meeting.result

    def post(self, side: str, key: tuple[Any, ...], transfer: Transfer) -> None:
        """Match a transfer with the oldest waiting one of the other side, or queue it."""
        with self._changed:
            self._check_whole()
            waiting = self._posted[("recv" if side == "send" else "send", *key)]
            if not waiting:
                self._posted[(side, *key)].append(transfer)
                return
            other = waiting.popleft()
            source, target = (transfer, other) if side == "send" else (other, transfer)
            if source.x.size != target.x.size or source.x.dtype != target.x.dtype:
                raise self._break(
                    transfer.rank,
                    CommError(
                        f"message does not fit: rank {source.rank} calls {source.what}, rank"
                        f" {target.rank} calls {target.what}. Give both the same dtype and size."
                    ),
                )
            target.x.reshape(-1)[...] = source.x.reshape(-1)
            source.done = target.done = True
            self._changed.notify_all()

    def wait(self, transfer: Transfer) -> None:
        with self._changed:
            self._block(transfer.rank, transfer.what, lambda: transfer.done)

    def test(self, transfer: Transfer) -> bool:
        with self._changed:
            if not transfer.done:
                self._check_whole()
            return transfer.done

    def fail(self, rank: int | None, error: BaseException) -> None:
        """Note a rank's error, unless it is only the echo of an earlier one."""
        with self._changed:
            if self.error is None:
                self._break(rank, error)

    def finish(self, rank: int) -> None:
        with self._changed:
            self._finished.add(rank)
            self._check_progress()

    def _block(self, rank: int, what: str, ready: Callable[[], bool]) -> None:
        while not ready():
            self._check_whole()
            self._blocked[rank] = (what, ready)
            self._check_progress()
            if self.error is None:
                self._changed.wait()
        self._blocked.pop(rank, None)

    def _check_whole(self) -> None:
        if self.error is not None:
            who = "the caller" if self._failed is None else f"rank {self._failed}"
            raise BrokenWorldError(f"{who} failed: {type(self.error).__name__}: {self.error}")

    def _check_calls(self, meeting: Meeting, me: int) -> None:
        if len(set(meeting.calls.values())) > 1:
            calls = ", ".join(
                f"rank {rank} calls {meeting.calls[i]}" for i, rank in enumerate(meeting.ranks)
            )
            raise self._break(
                me,
                CommError(
                    f"ranks disagree about a collective: {calls}. All ranks of a group make the"
                    " same calls in the same order, with the same shapes and dtypes."
                ),
            )

    def _check_progress(self) -> None:
        if self.error is not None or len(self._blocked) + len(self._finished) < self.size:
            return
        if not self._blocked or any(ready() for _, ready in self._blocked.values()):
            return
        waits = [f"rank {r} waits at {what}" for r, (what, _) in sorted(self._blocked.items())]
        ends = [f"rank {r} has returned" for r in sorted(self._finished)]
        self._break(min(self._blocked), CommError(f"deadlock: {', '.join(waits + ends)}."))

    def _break(self, rank: int | None, error: BaseException) -> BaseException:
        self.error = error
        self._failed = rank
        self._changed.notify_all()
        return error
