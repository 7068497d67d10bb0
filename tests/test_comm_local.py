"""The collectives over threads, and what only threads can show: mistakes end, none hangs."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from hpc_alpa.comm import backend
from hpc_alpa.comm.agree import raise_together
from hpc_alpa.comm.local import LocalCommunicator, LocalWorld, single
from hpc_alpa.errors import CommError
from tests.mpi import collective_cases as cases

SIZES = (1, 2, 3, 4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("case", cases.BY_DTYPE)
def test_by_dtype(case: str, dtype: str, size: int) -> None:
    LocalWorld(size).run(lambda comm: cases.BY_DTYPE[case](comm, dtype))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", cases.CASES)
def test_case(case: str, size: int) -> None:
    LocalWorld(size).run(cases.CASES[case])


def test_single_process() -> None:
    comm = single()
    for dtype in cases.DTYPES:
        for by_dtype in cases.BY_DTYPE.values():
            by_dtype(comm, dtype)
    for case in cases.CASES.values():
        case(comm)


def test_results_are_in_rank_order() -> None:
    assert LocalWorld(5).run(lambda comm: comm.rank**2) == [0, 1, 4, 9, 16]


def test_first_error_ends_all_ranks() -> None:
    ended: list[int] = []

    def work(comm: LocalCommunicator) -> None:
        try:
            if comm.rank == 2:
                time.sleep(0.05)  # the others wait in different places by now
                raise ZeroDivisionError("step 3")
            if comm.rank == 0:
                comm.recv(np.zeros(3), 1).wait()
            comm.all_reduce(np.zeros(3))
        finally:
            ended.append(comm.rank)

    start = time.perf_counter()
    with pytest.raises(ZeroDivisionError, match="step 3"):
        LocalWorld(4).run(work)
    assert sorted(ended) == [0, 1, 2, 3] and time.perf_counter() - start < 5
    assert not [t for t in threading.enumerate() if t.name.startswith("rank ")]


def test_world_runs_again_after_an_error() -> None:
    world = LocalWorld(2)
    with pytest.raises(CommError):
        world.run(lambda comm: comm.group((1 - comm.rank,)))
    assert world.run(lambda comm: comm.all_gather_objects(comm.rank)) == [[0, 1], [0, 1]]


def both_send_first(comm: LocalCommunicator) -> None:
    comm.send(np.zeros(1), 1 - comm.rank).wait()
    comm.recv(np.zeros(1), 1 - comm.rank).wait()


def one_leaves(comm: LocalCommunicator) -> None:
    if comm.rank == 0:
        comm.barrier()


def different_order(comm: LocalCommunicator) -> None:
    if comm.rank == 0:
        comm.barrier()
    else:
        comm.recv(np.zeros(1), 0).wait()


@pytest.mark.parametrize(
    ("work", "texts"),
    [
        (
            both_send_first,
            ["deadlock", "rank 0 waits at send(float64[1]) to rank 1", "rank 1 waits"],
        ),
        (one_leaves, ["deadlock", "rank 0 waits at barrier", "rank 1 has returned"]),
        (different_order, ["deadlock", "rank 0 waits at barrier", "rank 1 waits at recv("]),
    ],
)
def test_deadlock_is_told(work: object, texts: list[str]) -> None:
    with pytest.raises(CommError) as caught:
        LocalWorld(2).run(work)  # type: ignore[arg-type]
    assert all(text in str(caught.value) for text in texts)


def different_shapes(comm: LocalCommunicator) -> None:
    comm.all_reduce(np.zeros(2 + comm.rank))


def different_roots(comm: LocalCommunicator) -> None:
    comm.broadcast(np.zeros(2), root=comm.rank)


def different_calls(comm: LocalCommunicator) -> None:
    comm.barrier() if comm.rank else comm.all_reduce(np.zeros(2))


@pytest.mark.parametrize("work", [different_shapes, different_roots, different_calls])
def test_disagreement_is_told(work: object) -> None:
    with pytest.raises(CommError, match="ranks disagree about a collective: rank 0 calls .*rank 1"):
        LocalWorld(2).run(work)  # type: ignore[arg-type]


def test_message_that_does_not_fit_is_told() -> None:
    def work(comm: LocalCommunicator) -> None:
        if comm.rank == 0:
            comm.send(np.zeros(3, np.float32), 1).wait()
        else:
            comm.recv(np.zeros(4, np.float32), 0).wait()

    with pytest.raises(CommError, match=r"rank 0 calls send\(float32\[3\]\).*recv\(float32\[4\]\)"):
        LocalWorld(2).run(work)


def test_send_completes_only_with_its_receive() -> None:
    def work(comm: LocalCommunicator) -> bool:
        if comm.rank == 0:
            request = comm.send(np.zeros(1), 1)
            early = request.test()
            comm.barrier()
            request.wait()
            return early
        comm.barrier()
        comm.recv(np.zeros(1), 0).wait()
        return False

    assert LocalWorld(2).run(work) == [False, False]


def test_context_of_the_caller_is_seen_in_the_threads() -> None:
    with np.errstate(divide="raise"), pytest.raises(FloatingPointError):
        LocalWorld(2).run(lambda comm: np.float64(1) / np.float64(0))


def test_error_of_one_rank_is_raised_together() -> None:
    def work(comm: LocalCommunicator) -> str:
        try:
            raise_together(comm, ValueError("no device") if comm.rank == 1 else None)
        except (CommError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        return ""

    results = LocalWorld(3).run(work)
    assert results[1] == "ValueError: no device"
    assert results[0] == results[2] == "CommError: rank 1: ValueError: no device"


def test_backend_by_name() -> None:
    comm = single()
    assert backend("local", comm) is comm and backend("mpi", comm) is comm
    assert backend("null", comm).size == 1
    with pytest.raises(CommError, match="backend 'gloo' is unknown; choose one of local, mpi"):
        backend("gloo", comm)
    with pytest.raises(CommError, match="Start the ranks with mpirun"):
        LocalWorld(2).run(lambda comm: backend("mpi", comm))
