"""Numba's CUDA simulator, about twenty times faster and stricter, where greenlet is installed.

The simulator runs each CUDA thread as a thread of the system and polls them all at each barrier.
`install` makes them greenlets of one thread: from barrier to barrier each runs once, in an order
that can be chosen, so a kernel whose result needs a certain order of its threads is found out by
running it in several. It also adds what the plain simulator lacks or gets wrong:

- warp shuffles and votes;
- shared arrays hold NaN at the start of a block, as nobody promises zeros, and two of them
  on one source line are two arrays;
- threads that wait at different barriers are an error: on a device that is undefined;
- device functions stay bound to the simulated device until the launch ends, whoever leaves first.

Set NUMBA_ENABLE_CUDASIM=1 before numba is imported. Written against the simulator of numba 0.68 and
of numba-cuda 0.30, whose classes it patches.
"""

from __future__ import annotations

import contextlib
import importlib.util
import random
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

WARP = 32

ORDERS: dict[str, Callable[[list[Any]], list[Any]]] = {
    "forward": list,
    "reversed": lambda threads: threads[::-1],
    "shuffled": lambda threads: random.Random(len(threads)).sample(threads, len(threads)),
}


class BarrierError(RuntimeError):
    """Threads of one block wait at different barriers."""


def is_available() -> bool:
    """Whether greenlet is there; without it kernels run in the plain simulator."""
    return importlib.util.find_spec("greenlet") is not None


class _State:
    """What the patched simulator shares: the running thread, and the order of the threads."""

    current: Any = None
    order: str = "forward"


class _Threading:
    """Stands in for `threading` inside the simulator: its current thread is a greenlet."""

    @staticmethod
    def current_thread() -> Any:
        return _State.current

    def __getattr__(self, name: str) -> Any:
        return getattr(threading, name)


class _Thread:
    """One CUDA thread, with what the simulator asks of its own thread class."""

    def __init__(self, manager: Any, block: tuple[int, ...], thread: tuple[int, ...], body: Any):
        import greenlet
        from numba.cuda.simulator.kernel import Dim3

        extent = Dim3(*manager._block_dim)
        self.manager = manager
        self.blockIdx = Dim3(*block)
        self.threadIdx = at = Dim3(*thread)
        self.thread_id = at.x + extent.x * (at.y + extent.y * at.z)
        self.parent = greenlet.getcurrent()
        self.greenlet = greenlet.greenlet(body)
        self.barrier: tuple[str, int] | None = None

    def syncthreads(self) -> None:
        # up past this class and the simulator's own function to the kernel's line
        frame = sys._getframe(1)
        while frame.f_back and frame.f_code.co_filename in _MACHINERY:
            frame = frame.f_back
        self.barrier = (frame.f_code.co_filename, frame.f_lineno)
        self.parent.switch()

    def exchange(self, value: Any) -> dict[int, Any]:
        """Every thread's value, by thread number."""
        self.manager.exchanged[self.thread_id] = value
        self.syncthreads()
        values = dict(self.manager.exchanged)
        self.syncthreads()
        return values

    def syncthreads_count(self, value: Any) -> int:
        return sum(map(bool, self.exchange(value).values()))

    def syncthreads_and(self, value: Any) -> int:
        return int(all(self.exchange(value).values()))

    def syncthreads_or(self, value: Any) -> int:
        return int(any(self.exchange(value).values()))


def _run_block(manager: Any, block: tuple[int, ...], *arguments: Any) -> None:
    """Replaces BlockManager.run: all threads to the next barrier, in order, until all are done."""
    from numba.cuda.simulator import kernel

    manager.exchanged = {}
    for shared in kernel._get_kernel_context().shared._allocations.values():
        _poison(shared)
    threads = [
        _Thread(manager, block, thread, lambda: manager._f(*arguments))
        for thread in np.ndindex(*manager._block_dim)
    ]
    while threads:
        for thread in ORDERS[_State.order](threads):
            _State.current = thread
            try:
                thread.greenlet.switch()
            except Exception as error:
                where = f"tid={list(thread.threadIdx)} ctaid={list(thread.blockIdx)}"
                error.add_note(f"in the simulated thread {where}")
                raise
        threads = [thread for thread in threads if not thread.greenlet.dead]
        barriers = {thread.barrier for thread in threads}
        if len(barriers) > 1:
            places = sorted(map(str, barriers))
            raise BarrierError(f"threads of block {list(block)} wait in different places: {places}")


def _poison(shared: np.ndarray[Any, Any]) -> None:
    shared[...] = np.nan if shared.dtype.kind == "f" else shared.dtype.type(-7)


def _shared_array(self: Any, shape: Any, dtype: Any) -> Any:
    """Replaces FakeCUDAShared.array: the place of a call is its instruction, not its line."""
    frame = sys._getframe(1)
    if shape == 0:
        return _dynamic_shared_array(self, shape, dtype)
    place = (frame.f_code, frame.f_lasti)
    if place not in self._allocations:
        from numba.np import numpy_support

        element = dtype if isinstance(dtype, (type, np.dtype)) else numpy_support.as_dtype(dtype)
        self._allocations[place] = np.empty(shape, element)
        _poison(self._allocations[place])
    return self._allocations[place]


_launch: list[tuple[dict[str, Any], dict[str, Any]]] = []


@contextlib.contextmanager
def _bound(function: Any, module: Any) -> Iterator[None]:
    """Replaces swapped_cuda_module: globals of device functions stay bound until the launch ends.

    The simulator's own unbinds when the first thread leaves a function, while others are inside.
    """
    from numba import cuda

    outermost = not _launch
    names = {name: value for name, value in function.__globals__.items() if value is cuda}
    _launch.append((function.__globals__, names))
    function.__globals__.update(dict.fromkeys(names, module))
    try:
        yield
    finally:
        if outermost:
            for scope, originals in _launch:
                scope.update(originals)
            _launch.clear()


def _lanes(values: dict[int, Any]) -> tuple[int, int]:
    thread = _State.current.thread_id
    return thread, thread // WARP * WARP


def _shuffle(choose: Callable[[int, int, int], int]) -> Callable[..., Any]:
    """A warp shuffle: `choose(thread, first of the warp, argument)` names the thread to read."""

    def shuffle(self: Any, mask: int, value: Any, argument: int) -> Any:
        values = _State.current.exchange(value)
        thread, first = _lanes(values)
        source = choose(thread, first, argument)
        return values.get(source, value) if first <= source < first + WARP else value

    return shuffle


def _ballot(self: Any, mask: int, predicate: Any) -> int:
    values = _State.current.exchange(bool(predicate))
    _, first = _lanes(values)
    return sum(1 << (i - first) for i, v in values.items() if v and first <= i < first + WARP)


INTRINSICS = {
    "ballot_sync": _ballot,
    "shfl_down_sync": _shuffle(lambda thread, first, delta: thread + delta),
    "shfl_sync": _shuffle(lambda thread, first, lane: first + lane % WARP),
    "shfl_up_sync": _shuffle(lambda thread, first, delta: thread - delta),
    "shfl_xor_sync": _shuffle(lambda thread, first, mask: thread ^ mask),
}

_MACHINERY: set[str] = {__file__}
_dynamic_shared_array: Any = None


def install() -> bool:
    """Patch the simulator of this process; without greenlet change nothing and return False."""
    global _dynamic_shared_array
    if not is_available():
        return False
    from numba.cuda.simulator import kernel, kernelapi

    if _dynamic_shared_array is not None:
        return True
    _MACHINERY.add(kernelapi.__file__)
    _dynamic_shared_array = kernelapi.FakeCUDAShared.array
    kernelapi.FakeCUDAShared.array = _shared_array
    kernelapi.threading = _Threading()
    kernel.swapped_cuda_module = _bound
    kernel.BlockManager.run = _run_block
    for name, intrinsic in INTRINSICS.items():
        setattr(kernelapi.FakeCUDAModule, name, intrinsic)
    return True


@contextlib.contextmanager
def thread_order(order: str) -> Iterator[None]:
    """Run the threads of each block in one of ORDERS."""
    before, _State.order = _State.order, order
    try:
        yield
    finally:
        _State.order = before
