"""What `comm.nccl` needs from a device: addresses of arrays, and queues of work with marks.

The order of work on a device is that of its queues (CUDA's streams). The caller's work is on the
current one; each communicator has a lane of its own, so that its messages pass beside the caller's
kernels, and forks from and joins the caller's work by marks (CUDA's events).
"""

from __future__ import annotations

from typing import Any, Protocol

from hpc_alpa.comm.protocol import Array


class Mark(Protocol):
    """A point in a lane."""

    def join(self) -> None:
        """What the caller queues from now on runs after the mark; the host does not wait."""

    def done(self) -> bool:
        """Whether the work up to the mark is complete."""

    def synchronize(self) -> None:
        """The host waits for the mark."""


class Lane(Protocol):
    """A queue of work beside the caller's own."""

    def fork(self) -> int:
        """What is put on the lane from now on runs after the caller's work.

        Returns the address of the lane's stream.
        """

    def mark(self) -> Mark:
        """A mark after what is on the lane now."""


class DeviceAccess(Protocol):
    """A device and its arrays."""

    def pointer(self, x: Array) -> int:
        """The address of the first element."""

    def empty(self, length: int, dtype: str) -> Array:
        """New memory for `length` elements."""

    def lane(self) -> Lane:
        """A new lane."""


class CupyDevice:
    """The current CUDA device, through CuPy."""

    def __init__(self) -> None:
        import cupy

        self._cupy = cupy
        self._device = cupy.cuda.Device()

    def pointer(self, x: Array) -> int:
        return int(x.data.ptr)

    def empty(self, length: int, dtype: str) -> Array:
        return self._cupy.empty(length, dtype)

    def lane(self) -> CupyLane:
        with self._device:
            return CupyLane(self._cupy)


class CupyLane:
    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._stream = cupy.cuda.Stream(non_blocking=True)

    def fork(self) -> int:
        self._stream.wait_event(self._cupy.cuda.get_current_stream().record())
        return int(self._stream.ptr)

    def mark(self) -> CupyMark:
        # disable_timing: an event with a time stamp costs a wait of its own on the device
        event = self._cupy.cuda.Event(disable_timing=True)
        event.record(self._stream)
        return CupyMark(self._cupy, event)


class CupyMark:
    def __init__(self, cupy: Any, event: Any) -> None:
        self._cupy = cupy
        self._event = event

    def join(self) -> None:
        self._cupy.cuda.get_current_stream().wait_event(self._event)

    def done(self) -> bool:
        return bool(self._event.done)

    def synchronize(self) -> None:
        self._event.synchronize()
