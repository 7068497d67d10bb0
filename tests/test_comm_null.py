"""The backend that only records."""

from __future__ import annotations

import numpy as np
import pytest

from hpc_alpa.comm.null import Call, NullCommunicator
from hpc_alpa.errors import CommError


def test_records_calls_of_all_groups_in_order() -> None:
    comm = NullCommunicator(2, 4)
    group = comm.group((2, 3))
    x = np.ones(6, np.float32)
    comm.all_reduce(x)
    group.all_gather(x, np.zeros((2, 6), np.float32))
    group.reduce_scatter(np.zeros((2, 6)), np.zeros(6), "max")
    comm.all_to_all(np.zeros((4, 2)), np.zeros((4, 2)))
    comm.broadcast(x, root=1)
    request = comm.send(x, 3, channel=5)
    request.wait()
    assert request.test() and comm.recv(x, 1).test()
    comm.barrier()
    assert comm.broadcast_object("plan") == "plan"
    assert comm.gather_objects(1, root=2) == [1, 1, 1, 1] and comm.gather_objects(1) is None
    everyone = (0, 1, 2, 3)
    assert comm.calls[:8] == [
        Call("all_reduce", everyone, 24, "float32", op="sum"),
        Call("all_gather", (2, 3), 24, "float32"),
        Call("reduce_scatter", (2, 3), 96, "float64", op="max"),
        Call("all_to_all", everyone, 64, "float64"),
        Call("broadcast", everyone, 24, "float32", peer=1),
        Call("send", everyone, 24, "float32", peer=3, channel=5),
        Call("recv", everyone, 24, "float32", peer=1, channel=0),
        Call("barrier", everyone),
    ]
    assert group.calls is comm.calls and x.tolist() == [1.0] * 6
    assert (group.rank, group.size, group.ranks) == (0, 2, (2, 3))


def test_arguments_are_checked_as_on_a_real_backend() -> None:
    comm = NullCommunicator(0, 2)
    with pytest.raises(CommError, match="out has shape"):
        comm.all_gather(np.zeros(3), np.zeros(3))
    with pytest.raises(CommError, match="which does not hold it"):
        comm.group((1,))
    with pytest.raises(CommError, match="rank 2 is not in the group"):
        NullCommunicator(2, 2)
    assert comm.calls == []
