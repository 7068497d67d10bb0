"""All cases over MPI. Run by tests/test_comm_mpi.py on 1 to 4 ranks, in one job each."""

from __future__ import annotations

import atexit
from functools import cache

import numpy as np
import pytest

from hpc_alpa.comm.mpi import MpiCommunicator, world
from hpc_alpa.comm.mpi_library import MPI
from hpc_alpa.errors import CommError
from hpc_alpa.runtime.launch import init
from tests.mpi import collective_cases as cases


@cache
def comm() -> MpiCommunicator:
    if init().size == 1:  # which does without MPI, and so does not end it
        atexit.register(MPI.Finalize)
    return world()


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("case", cases.BY_DTYPE)
def test_by_dtype(case: str, dtype: str) -> None:
    cases.BY_DTYPE[case](comm(), dtype)


@pytest.mark.parametrize("case", cases.CASES)
def test_case(case: str) -> None:
    cases.CASES[case](comm())


def test_channel_outside_the_library_s_tags() -> None:
    for channel in (-1, 1 << 40):
        with pytest.raises(CommError, match=f"channel {channel}: this MPI library has channels 0"):
            comm().send(np.zeros(1), 0, channel=channel)


@pytest.mark.parametrize("length", [2, 5])
def test_message_of_another_length_is_told(length: int) -> None:
    """MPI tells a message that is too long, and takes one that is too short without a word."""
    if comm().size == 1:
        return
    if comm().rank == 0:
        comm().send(np.zeros(length, np.float32), 1).wait()
    elif comm().rank == 1:
        request = comm().recv(np.zeros(3, np.float32), 0)
        with pytest.raises(
            CommError, match="(?s)recv of float32.*from rank 0, channel 0.*same dtype"
        ):
            request.wait()
    comm().barrier()


def test_same_bits_as_threads_when_asleep() -> None:
    """Waiting asleep, terms are combined in the order of the ranks, as on threads."""
    if comm().waits_asleep:
        in_order_of_the_ranks(comm())


def test_ordered_gives_the_same_bits_however_the_ranks_wait() -> None:
    in_order_of_the_ranks(comm().ordered())
    if comm().size > 2 and comm().rank < 3:
        in_order_of_the_ranks(comm().ordered().group((0, 1, 2)))
    comm().barrier()


def in_order_of_the_ranks(comm: MpiCommunicator) -> None:
    for shape in ((5,), (3000,)):  # in one hop, in shards
        x = cases.data(comm.rank, shape, "float32")
        comm.all_reduce(x)
        expected = cases.data(0, shape, "float32")
        for r in range(1, comm.size):
            expected += cases.data(r, shape, "float32")
        cases.equal(x, expected)


def test_disagreement_is_told_when_asleep() -> None:
    if not comm().waits_asleep or comm().size == 1:
        return
    pair = comm().group((0, 1)) if comm().rank < 2 else None
    if pair is not None:
        length = 2 + pair.rank  # rank 0's receive is too short, rank 1's too long
        with pytest.raises(CommError, match="all_to_all on ranks|ranks disagree"):
            pair.all_to_all(np.zeros((2, length)), np.zeros((2, length)))
    comm().barrier()
