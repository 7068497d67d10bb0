"""The cases over the NCCL backend on its double. Run by tests/test_comm_nccl.py under mpiexec."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest

from hpc_alpa.comm.nccl import NcclCommunicator, create
from hpc_alpa.errors import CommError
from hpc_alpa.runtime.launch import init
from tests.helpers import fake_nccl
from tests.mpi import collective_cases as cases

REDUCTIONS = ("all_reduce", "reduce_scatter")
# NCCL matches by order, not by channel; NaN and rounding are the library's own.
NOT_NCCL = ("channels", "nan_wins", "sixteen_bits_accumulate_wide")


@cache
def nccl() -> NcclCommunicator:
    return create(init().communicator, nccl=fake_nccl, device=fake_nccl.HostDevice())


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("case", cases.BY_DTYPE)
def test_by_dtype(case: str, dtype: str) -> None:
    if case in REDUCTIONS and dtype in cases.NCCL_CANNOT_REDUCE:
        with pytest.raises(CommError, match=f"dtype {dtype}, which NCCL cannot combine"):
            cases.BY_DTYPE[case](nccl(), dtype)
    else:
        cases.BY_DTYPE[case](nccl(), dtype)


@pytest.mark.parametrize("case", [c for c in cases.CASES if c not in NOT_NCCL])
def test_case(case: str) -> None:
    cases.CASES[case](nccl())


@pytest.fixture
def log() -> Iterator[list[tuple[Any, ...]]]:
    nccl()
    fake_nccl.log.clear()
    yield fake_nccl.log


STREAM = fake_nccl.HostLane.STREAM


def test_sequence_of_collectives(log: list[tuple[Any, ...]]) -> None:
    comm, n = nccl(), nccl().size
    x = np.zeros((n, 6), np.float32)
    comm.all_reduce(x, "max")
    comm.all_gather(x[0], np.zeros_like(x))
    comm.reduce_scatter(x, np.zeros(6, np.float32))
    comm.broadcast(x, root=n - 1)
    comm.all_reduce(np.zeros(3, bool), "min")
    comm.all_gather(np.zeros(4, np.int16), np.zeros((n, 4), np.int16))  # moved as bytes
    assert log == [
        ("allReduce", 6 * n, 7, 2, STREAM),
        ("allGather", 6, 7, STREAM),
        ("reduceScatter", 6, 7, 0, STREAM),
        ("broadcast", 6 * n, 7, n - 1, STREAM),
        ("allReduce", 3, 1, 3, STREAM),
        ("allGather", 8, 1, STREAM),
    ]


def test_all_to_all_is_one_group(log: list[tuple[Any, ...]]) -> None:
    comm, n = nccl(), nccl().size
    comm.all_to_all(np.zeros((n, 5)), np.zeros((n, 5)))
    pairs = [(name, 5, 8, i, STREAM) for i in range(n) for name in ("send", "recv")]
    assert log == [("groupStart",), *pairs, ("groupEnd",)]


def test_barrier_waits_on_the_host(log: list[tuple[Any, ...]]) -> None:
    comm = nccl()
    comm._lane.events.clear()  # type: ignore[attr-defined]
    comm.barrier()
    assert log == [("allReduce", 1, 2, 2, STREAM), ("check_async_error",)]
    assert comm._lane.events == ["fork", "mark", "synchronize"]  # type: ignore[attr-defined]


def test_empty_arrays_are_not_sent(log: list[tuple[Any, ...]]) -> None:
    comm = nccl()
    comm.all_reduce(np.zeros((0, 3)))
    comm.all_to_all(np.zeros((comm.size, 0)), np.zeros((comm.size, 0)))
    assert log == []


def test_order_between_lane_and_caller(log: list[tuple[Any, ...]]) -> None:
    """A collective is joined at once; a message only when it is waited for."""
    comm = nccl()
    events = comm._lane.events  # type: ignore[attr-defined]
    events.clear()
    comm.all_reduce(np.zeros(3))
    assert events == ["fork", "mark", "join"]
    events.clear()
    with comm.batch():
        sent, received = comm.send(np.zeros(3), comm.rank), comm.recv(np.zeros(3), comm.rank)
        with pytest.raises(CommError, match="wait after the batch"):
            sent.wait()
        assert events == ["fork", "fork"]
    assert events == ["fork", "fork", "mark"]
    sent.wait()
    received.wait()
    assert events[3:] == ["join", "join"] and received.test()


def test_failing_root_ends_on_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 cannot make an id: the others are told instead of waiting for it."""
    control = init().communicator

    def fail() -> bytes:
        raise fake_nccl.NcclError(2)

    monkeypatch.setattr(fake_nccl, "get_unique_id", fail)
    with pytest.raises(CommError, match="rank 0: NCCL gives no unique id: NcclError: .*SYSTEM"):
        create(control, nccl=fake_nccl, device=fake_nccl.HostDevice())


def test_one_rank_without_a_device_ends_on_all_ranks() -> None:
    control = init().communicator

    class Broken(fake_nccl.HostDevice):
        def lane(self) -> fake_nccl.HostLane:
            raise RuntimeError("no device")

    last = control.rank == control.size - 1
    device = Broken() if last else fake_nccl.HostDevice()
    with pytest.raises((CommError, RuntimeError), match="no device"):
        create(control, nccl=fake_nccl, device=device)


def test_split_of_the_double() -> None:
    world = init().communicator
    made = fake_nccl.NcclCommunicator(
        world.size,
        world.broadcast_object(fake_nccl.get_unique_id() if world.rank == 0 else None),
        world.rank,
    )
    part = made.commSplit(world.rank % 2, -world.rank)
    assert part is not None and part.size() == (world.size + 1 - world.rank % 2) // 2
    assert made.commSplit(-1, 0) is None
