"""Bytes by replay: layouts against NumPy, and programs against the executor, byte for byte."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest

from hpc_alpa.ir.types import TensorType
from hpc_alpa.lower.program import AllGather, AllReduce, AllToAll, Program, ReduceScatter
from hpc_alpa.simulate import peak_bytes, replay, simulate
from hpc_alpa.simulate.layout import Layout
from hpc_alpa.simulate.memory import peaks
from tests.helpers.lowered import lowered, measured_bytes, single_kernels
from tests.helpers.programs import VECTOR, Rank, kernel, mixed, pipeline, unit_cost


# ---------------------------------------------------------------------------------------- layouts
def layout_of(x: np.ndarray) -> Layout:
    return Layout(x.shape, tuple(s // x.itemsize for s in x.strides))


@pytest.mark.parametrize("seed", range(60))
def test_layouts_follow_numpy(seed: int) -> None:
    """Random views; a reshape is a view exactly where NumPy makes one."""
    rng = random.Random(seed)
    shape = [rng.choice([1, 2, 3, 4, 6]) for _ in range(rng.randint(0, 4))]
    x = np.zeros(shape, "float32")
    layout = Layout.c_order(shape)
    for _ in range(6):
        what = rng.choice(["transpose", "window", "reshape", "broadcast", "move_dim"])
        if what == "transpose":
            perm = rng.sample(range(x.ndim), x.ndim)
            x, layout = x.transpose(perm), layout.transpose(perm)
        elif what == "window" and x.ndim:  # x[()] is no array
            cut = [sorted(rng.sample(range(n + 1), 2)) for n in x.shape]
            x = x[tuple(slice(a, b) for a, b in cut)]
            layout = layout.window(x.shape)
        elif what == "move_dim" and x.ndim:
            a, b = rng.randrange(x.ndim), rng.randrange(x.ndim)
            x, layout = np.moveaxis(x, a, b), layout.move_dim(a, b)
        elif what == "broadcast" and x.ndim < 4:
            dim, extent = rng.randint(0, x.ndim), rng.choice([1, 2, 3])
            dims = [d if d < dim else d + 1 for d in range(x.ndim)]
            target = (*x.shape[:dim], extent, *x.shape[dim:])
            x = np.broadcast_to(np.expand_dims(x, dim), target)
            layout = layout.broadcast(target, dims)
        elif what == "reshape":
            target = tuple(_factors(x.size, rng))
            y = x.reshape(target)
            made = layout.reshape(target)
            assert (made is not None) == (np.shares_memory(x, y) or x.size == 0), (x.strides, y)
            x, layout = y, made or Layout.c_order(target)
        assert layout.shape == x.shape
        assert layout.is_contiguous == x.flags.c_contiguous
        if x.size:  # NumPy's strides of dims of one element, and of no elements, mean nothing
            mine = [s for s, n in zip(layout.strides, layout.shape, strict=True) if n > 1]
            assert mine == [s // 4 for s, n in zip(x.strides, x.shape, strict=True) if n > 1]


def _factors(size: int, rng: random.Random) -> list[int]:
    """A random shape of this size."""
    if size == 0:
        return [0]
    shape: list[int] = []
    left = size
    while left > 1 and len(shape) < 4:
        n = rng.choice([d for d in range(1, left + 1) if left % d == 0])
        shape.append(n)
        left //= n
    return [*shape, left] if left > 1 else shape


# ------------------------------------------------------------------------------------ by hand
def after(r: Rank) -> list[int]:
    return list(replay(r.program()).after)


def test_views_share_and_the_last_name_frees() -> None:
    r = (
        Rank(0)
        .input("x")
        .body("view", kernel("reshape", ["x"], "y", type=TensorType((2, 2), "float32")))
    )
    assert after(r.run("view").free("x").free("y")) == [16, 16, 0]


def test_a_reshape_of_a_transposed_view_copies() -> None:
    square, flat = TensorType((3, 5), "float32"), TensorType((15,), "float32")
    turned = TensorType((5, 3), "float32")
    r = Rank(0).input("x", square)
    r.body("turn", kernel("transpose", ["x"], "y", type=turned, perm=(1, 0)))
    r.body("flat", kernel("reshape", ["y"], "z", type=flat))
    assert after(r.run("turn").run("flat").free("x", "y").free("z")) == [60, 120, 60, 0]


def test_sums_over_one_and_over_several_microbatches() -> None:
    r = Rank(0).input("x").body("one", kernel("accumulate", ["x"], "total", slots=1))
    assert after(r.run("one", 0).free("x").free("total")) == [16, 16, 0]
    r = Rank(0).input("x").body("all", kernel("accumulate", ["x"], "total", slots=2))
    assert after(r.run("all", 0).run("all", 1).free("x").free("total")) == [32, 32, 16, 0]
    whole = TensorType((8,), "float32")
    r = Rank(0).input("x").body("put", kernel("stack", ["x"], "rows", type=whole, dim=0, slots=2))
    assert after(r.run("put", 0).run("put", 1).free("rows")) == [48, 48, 16]


def test_kernels_within_a_body_count_for_the_peak() -> None:
    r = Rank(0).input("x").body(
        "b",
        kernel("neg", ["x"], "y"), kernel("neg", ["y"], "z", frees=["y"]),
        kernel("neg", ["z"], "u", frees=["z"]),
    ).run("b")  # fmt: skip
    memory = replay(r.program())
    assert memory.after == (32,) and memory.peak == 48


def test_a_bucket_goes_with_its_last_target() -> None:
    r = Rank(0).input("a").input("b", TensorType((2, 3), "float32"))
    r.add(AllReduce(("a", "b"), ("c", "d"), (0, 1), "sum", 40)).free("a", "b").free("c").free("d")
    assert after(r) == [80, 40, 40, 0]
    r = Rank(0).input("a").input("b")
    r.add(ReduceScatter(("a", "b"), ("c", "d"), (0, 0), (0, 1), "sum", 32))
    r.free("a").free("c").free("d")
    assert after(r) == [48, 32, 32, 16]
    assert peak_bytes(r.program()) == 48 + 32  # the packed copy


def test_gathered_values_are_views_or_copies() -> None:
    tile = TensorType((2, 3), "float32")
    views = Rank(0).input("a", tile).add(AllGather(("a",), ("b",), (0,), (0, 1), 48))
    assert after(views.free("b")) == [72, 24]
    assert peak_bytes(views.program()) == 24 + 24 + 48
    copied = Rank(0).input("a", tile).add(AllGather(("a",), ("b",), (1,), (0, 1), 48))
    assert after(copied) == [72]
    assert peak_bytes(copied.program()) == 24 + 24 + 48 + 48
    # One of a bucket's two lies in order only by chance: rows of the bucket are longer than it.
    two = Rank(0).input("a", tile).input("c")
    two.add(AllGather(("a", "c"), ("b", "d"), (0, 0), (0, 1), 80))
    assert after(two.free("b", "d")) == [120, 40]
    change = Rank(0).input("a", TensorType((4, 4), "float32"))
    change.add(AllToAll("a", "b", 0, 1, (0, 1), 128))
    assert after(change) == [128] and peak_bytes(change.program()) == 64 * 4


def test_copies_of_what_is_sent() -> None:
    square = TensorType((4, 4), "float32")
    for region, copy in ((((0, 2), (0, 4)), 0), (((0, 4), (0, 2)), 32)):
        r = Rank(0).input("x", square).send("x", 1, "s", region=region, nbytes=32).wait("s")
        memory = replay(r.program())
        assert memory.after == (64, 64) and memory.peak == 64 + copy


def test_1f1b_holds_less_than_gpipe() -> None:
    held = {
        schedule: [peak_bytes(p) for p in pipeline(4, 8, schedule)]
        for schedule in ("gpipe", "1f1b")
    }
    assert all(a < b for a, b in zip(held["1f1b"], held["gpipe"], strict=True))
    # Each microbatch in flight holds what the one before it does.
    steps = {a - b for a, b in zip(held["1f1b"][1:-1], held["1f1b"][2:-1], strict=False)}
    assert len(steps) == 1


def test_peaks_of_programs_that_do_the_same() -> None:
    for programs in (mixed(), pipeline(3, 2)):
        assert peaks(programs) == tuple(peak_bytes(p) for p in programs)
        assert simulate(programs, unit_cost()).peak_bytes == peaks(programs)
    assert VECTOR.nbytes == 16


# ------------------------------------------------------------------------ against the executor
CASES = [  # model, method, ranks, microbatches, schedule, resharding
    ("gpt", "tp2pp2", 4, 2, "gpipe", "send_recv"),
    ("mlp", "dp1", 1, 1, "1f1b", "send_recv"),
    ("mlp", "tp2", 2, 1, "1f1b", "send_recv"),
    ("mlp", "dp2pp2", 4, 4, "1f1b", "broadcast"),
    ("mlp", "dp2tp2", 4, 2, "1f1b", "send_recv"),
    ("mlp", "pp3", 3, 4, "1f1b", "send_recv"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c)))
def test_live_bytes_equal_the_executors(case: tuple[str, str, int, int, str, str]) -> None:
    """After every instruction of every rank, and after every kernel of its bodies."""
    made = lowered(*case)
    for programs in (made.programs, tuple(map(single_kernels, made.programs))):
        measured = measured_bytes(made, programs)
        for p in programs:
            assert_same(p, replay(p).after, measured[p.rank])


def assert_same(program: Program, mine: Sequence[int], measured: Sequence[int]) -> None:
    assert len(mine) == len(measured) == len(program.instructions)
    for k, (a, b) in enumerate(zip(mine, measured, strict=True)):
        assert a == b, f"rank {program.rank}, instruction {k} '{program.instructions[k]}'"


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c)))
def test_peak_counts_kernels_and_copies(case: tuple[str, str, int, int, str, str]) -> None:
    for p in lowered(*case).programs:
        memory, each = replay(p), replay(single_kernels(p))
        assert memory.peak == each.peak >= max(each.after) >= max(memory.after)
