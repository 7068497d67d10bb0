"""Every collective as a case `case(comm, dtype)` that a rank runs and checks for itself.

Written once, run over every backend: threads and processes (host arrays), and NCCL's double. Each
rank computes all ranks' inputs from their seeds, so the expected values come from plain NumPy.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from hpc_alpa.comm.protocol import Communicator
from hpc_alpa.errors import CommError

Array = Any
FLOATS = ("float16", "bfloat16", "float32", "float64")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
DTYPES = (*FLOATS, *INTEGERS, "bool")
NCCL_CANNOT_REDUCE = ("int16", "uint16")
SHAPES: tuple[tuple[int, ...], ...] = ((), (7,), (3, 0), (4, 129))


def as_dtype(name: str) -> np.dtype[Any]:
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def data(rank: int, shape: tuple[int, ...], dtype: str, salt: int = 0) -> Array:
    """The input of one rank: values whose sum over 16 ranks fits every dtype."""
    rng = np.random.default_rng([rank, salt, *shape])
    kind = as_dtype(dtype)
    if dtype == "bool":
        return np.asarray(rng.random(shape) < 0.4)
    if dtype in FLOATS:
        return np.asarray(rng.standard_normal(shape)).astype(kind)
    return np.asarray(rng.integers(0 if dtype[0] == "u" else -7, 8, shape)).astype(kind)


def equal(got: Array, expected: Array) -> None:
    np.testing.assert_array_equal(got.astype(np.float64), expected.astype(np.float64))
    assert got.dtype == expected.dtype and got.shape == expected.shape


def close(got: Array, terms: list[Array], op: str) -> None:
    """`got` is the combination of `terms`, but for the order of a sum and one rounding."""
    wide = [np.asarray(term, np.float64) for term in terms]
    expected = getattr(np, op)(wide, axis=0)
    if op != "sum" or got.dtype.kind in "iub":
        np.testing.assert_array_equal(got.astype(np.float64), expected)
        return
    epsilon = float(ml_dtypes.finfo(got.dtype).eps)
    size = np.sum(np.abs(wide), axis=0)
    error = np.abs(got.astype(np.float64) - expected)
    assert np.all(error <= epsilon * (np.abs(expected) + len(terms) * size / 4)), error.max()


def ops(dtype: str) -> tuple[str, ...]:
    return ("max", "min") if dtype == "bool" else ("sum", "max", "min")


def all_reduce(comm: Communicator, dtype: str) -> None:
    bits = b""
    for salt, (shape, op) in enumerate(itertools.product(SHAPES, ops(dtype))):
        x = data(comm.rank, shape, dtype, salt)
        comm.all_reduce(x, op)
        close(x, [data(r, shape, dtype, salt) for r in range(comm.size)], op)
        bits += x.tobytes()
    assert len(set(comm.all_gather_objects(bits))) == 1, "the ranks have different bits"


def all_gather(comm: Communicator, dtype: str) -> None:
    for shape in SHAPES:
        out = data(99, (comm.size, *shape), dtype)
        comm.all_gather(data(comm.rank, shape, dtype), out)
        equal(out, np.stack([data(r, shape, dtype) for r in range(comm.size)]))


def reduce_scatter(comm: Communicator, dtype: str) -> None:
    for shape, op in itertools.product(SHAPES, ops(dtype)):
        x = data(comm.rank, (comm.size, *shape), dtype)
        out = data(99, shape, dtype)
        comm.reduce_scatter(x, out, op)
        inputs = [data(r, (comm.size, *shape), dtype) for r in range(comm.size)]
        close(out, [i[comm.rank] for i in inputs], op)
        equal(x, inputs[comm.rank])


def all_to_all(comm: Communicator, dtype: str) -> None:
    for shape in SHAPES:
        x = data(comm.rank, (comm.size, *shape), dtype)
        out = data(99, x.shape, dtype)
        comm.all_to_all(x, out)
        equal(out, np.stack([data(r, x.shape, dtype)[comm.rank] for r in range(comm.size)]))


def broadcast(comm: Communicator, dtype: str) -> None:
    for shape, root in itertools.product(SHAPES, range(comm.size)):
        x = data(comm.rank, shape, dtype, root)
        if comm.rank == root:
            x.flags.writeable = False  # the root's array is only read
        comm.broadcast(x, root)
        equal(x, data(root, shape, dtype, root))


def ring(comm: Communicator, dtype: str) -> None:
    """Everybody sends to the right and receives from the left."""
    right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for shape in SHAPES:
        out = data(99, shape, dtype)
        with comm.batch():
            requests = [comm.send(data(comm.rank, shape, dtype), right), comm.recv(out, left)]
        for request in requests:
            request.wait()
            request.wait()  # again is allowed
            assert request.test()
        equal(out, data(left, shape, dtype))


BY_DTYPE: dict[str, Callable[[Communicator, str], None]] = {
    f.__name__: f for f in (all_gather, all_reduce, all_to_all, broadcast, reduce_scatter, ring)
}


def order_per_channel(comm: Communicator) -> None:
    """Messages of one pair and channel arrive in order, whichever is waited for first."""
    if comm.size == 1:
        return
    count = 5
    if comm.rank == 0:
        for request in [comm.send(np.full(3, i, np.float32), 1) for i in range(count)]:
            request.wait()
    elif comm.rank == 1:
        outs = [np.zeros(3, np.float32) for _ in range(count)]
        requests = [comm.recv(out, 0) for out in outs]
        for request in reversed(requests):
            request.wait()
        assert [out[0] for out in outs] == list(range(count))


def channels(comm: Communicator) -> None:
    """Channels do not mix: the receiver takes them in another order than the sender sends."""
    if comm.size == 1:
        return
    order = (7, 0, 3)
    if comm.rank == 0:
        for request in [comm.send(np.full(2, c, np.int64), 1, channel=c) for c in order]:
            request.wait()
    elif comm.rank == 1:
        outs = {c: np.zeros(2, np.int64) for c in sorted(order)}
        for request in [comm.recv(out, 0, channel=c) for c, out in outs.items()]:
            request.wait()
        assert all(np.all(out == c) for c, out in outs.items())


def send_to_self(comm: Communicator) -> None:
    x, out = data(comm.rank, (5,), "float32"), np.zeros(5, np.float32)
    with comm.batch():
        received = comm.recv(out, comm.rank)
        sent = comm.send(x, comm.rank)
    received.wait()
    sent.wait()
    equal(out, x)


def large_messages(comm: Communicator) -> None:
    """Larger than the library's own buffers, and than a chunk of all_reduce."""
    right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    x = np.full(5 << 20 >> 2, comm.rank + 1, np.float32)
    out = np.zeros_like(x)
    with comm.batch():
        requests = [comm.recv(out, left), comm.send(x, right)]
    for request in requests:
        while not request.test():
            pass
    assert np.all(out == left + 1)
    x[-1] = 0.5
    comm.all_reduce(x)
    total = comm.size * (comm.size + 1) / 2
    assert np.all(x[:-1] == total) and x[-1] == 0.5 * comm.size


def groups(comm: Communicator) -> None:
    """Every group of ranks, in order and reversed; made once; roots count within the group."""
    everyone = comm.ranks
    for length in range(1, comm.size + 1):
        for members in itertools.combinations(everyone, length):
            for ranks in {members, members[::-1]}:
                if comm.ranks[comm.rank] not in ranks:
                    continue
                group = comm.group(ranks, name="test")
                assert group.ranks == ranks and group.size == length
                assert group.ranks[group.rank] == comm.ranks[comm.rank]
                x = data(group.ranks[group.rank], (6,), "float64")
                group.all_reduce(x)
                close(x, [data(r, (6,), "float64") for r in ranks], "sum")
                y = np.array([group.ranks[group.rank]])
                group.broadcast(y, root=length - 1)
                assert y[0] == ranks[-1]
                assert group.all_gather_objects(group.rank) == list(range(length))
                assert comm.group(ranks) is group and group.group(ranks) is group
    assert comm.group(everyone) is comm


def rows_and_columns(comm: Communicator) -> None:
    """The groups of a mesh (n / 2, 2): one along each axis for every rank."""
    if comm.size % 2:
        return
    ranks = np.array(comm.ranks).reshape(-1, 2)
    i, j = divmod(comm.rank, 2)
    row, column = comm.group(tuple(ranks[i].tolist())), comm.group(tuple(ranks[:, j].tolist()))
    x = np.array([comm.rank], np.int64)
    row.all_reduce(x)
    column.all_reduce(x)
    assert x[0] == sum(range(comm.size))
    out = np.zeros((column.size, 1), np.int64)
    column.all_gather(np.array([comm.rank]), out)
    assert out[:, 0].tolist() == list(range(j, comm.size, 2))


def objects(comm: Communicator) -> None:
    for root in range(comm.size):
        mine = {"rank": comm.rank, "text": "x" * 1000 * comm.rank}
        got = comm.broadcast_object(mine, root)
        assert got == {"rank": root, "text": "x" * 1000 * root}
        everything = comm.gather_objects(mine, root)
        assert (everything is None) == (comm.rank != root)
        if everything is not None:
            assert [e["rank"] for e in everything] == list(range(comm.size))
        assert comm.broadcast_object(None, root) is None
    shared = [comm.rank]
    gathered = comm.all_gather_objects(shared)
    assert gathered == [[r] for r in range(comm.size)]


def barriers(comm: Communicator) -> None:
    for _ in range(3):
        comm.barrier()


def nan_wins(comm: Communicator) -> None:
    for who, dtype, op in itertools.product(range(comm.size), FLOATS, ("max", "min")):
        x = np.full(3, comm.rank, as_dtype(dtype))
        if comm.rank == who:
            x[1] = np.nan
        comm.all_reduce(x, op)
        assert np.isnan(x.astype(np.float64)).tolist() == [False, True, False]
        y = np.full((comm.size, 2), comm.rank, as_dtype(dtype))
        if comm.rank == who:
            y[:, 1] = np.nan
        out = np.zeros(2, as_dtype(dtype))
        comm.reduce_scatter(y, out, op)
        assert np.isnan(out.astype(np.float64)).tolist() == [False, True]


def sixteen_bits_accumulate_wide(comm: Communicator) -> None:
    """A large term and many small ones: each would be lost if sums were rounded on the way."""
    for dtype, large in (("float16", 2048.0), ("bfloat16", 256.0)):
        x = np.array([large if comm.rank == 0 else 0.5] * 5).astype(as_dtype(dtype))
        comm.all_reduce(x)
        expected = np.array([large + 0.5 * (comm.size - 1)] * 5).astype(as_dtype(dtype))
        equal(x, expected)


def named_errors(comm: Communicator) -> None:
    """Wrong arguments are told before anything is sent, so no rank is left waiting."""
    n = comm.size
    f = np.zeros
    wrong: dict[str, Callable[[], Any]] = {
        "op 'mean' is unknown": lambda: comm.all_reduce(f(3), "mean"),
        "bool has no sum": lambda: comm.all_reduce(f(3, bool)),
        "which cannot be sent": lambda: comm.all_reduce(f(3, complex)),
        "native byte order": lambda: comm.all_reduce(f(3, ">f4")),
        "expected contiguous memory": lambda: comm.all_reduce(f((4, 4))[:, 1]),
        "expected an array": lambda: comm.all_reduce(3.0),
        "is read-only": lambda: comm.all_reduce(np.broadcast_to(np.float64(1), (1,))),
        "out has shape": lambda: comm.all_gather(f(3), f((n + 1, 3))),
        "expected the same dtype": lambda: comm.all_gather(f(3), f((n, 3), "f4")),
        "one block for each": lambda: comm.all_to_all(f((n + 1, 3)), f((n + 1, 3))),
        "expected (3,) = x.shape[1:]": lambda: comm.reduce_scatter(f((n, 3)), f(4)),
        "share memory": lambda: (lambda x: comm.all_to_all(x, x))(f((n, 2))),
        f"root {n} is not in the group": lambda: comm.broadcast(f(3), root=n),
        "source -1 is not in the group": lambda: comm.recv(f(3), -1),
        "are not distinct global ranks": lambda: comm.group((0, 0)),
        "asks for the group ()": lambda: comm.group(()),
    }
    for text, call in wrong.items():
        with pytest.raises(CommError) as caught:
            call()
        assert text in str(caught.value)
    comm.barrier()


CASES: dict[str, Callable[[Communicator], None]] = {
    f.__name__: f
    for f in (
        barriers,
        channels,
        groups,
        large_messages,
        named_errors,
        nan_wins,
        objects,
        order_per_channel,
        rows_and_columns,
        send_to_self,
        sixteen_bits_accumulate_wide,
    )
}
