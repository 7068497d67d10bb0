"""What the profiler measures: every class and collective, coarse before fine, groups that fit."""

import itertools
import math
import random
from typing import Any

import numpy as np
import pytest

from hpc_alpa.arrays import BACKENDS
from hpc_alpa.cluster import Cluster, Host, Link
from hpc_alpa.comm.local import LocalWorld
from hpc_alpa.comm.null import NullCommunicator
from hpc_alpa.cost import COLLECTIVES, DatabaseCost, Load, Work, append, new
from hpc_alpa.cost.classes import CLASSES, operator_class
from hpc_alpa.cost.sample import Run
from hpc_alpa.errors import CostError
from hpc_alpa.ir.op import TABLE
from hpc_alpa.profiler import collectives, matmul
from hpc_alpa.profiler.arena import sets_of
from hpc_alpa.profiler.clock import CLOCKS, MAX_REPEATS, MIN_REPEATS, repeat
from hpc_alpa.profiler.collectives import disjoint_groups, group_sizes, message_levels
from hpc_alpa.profiler.operators import CASES, TensorType, prepared
from hpc_alpa.profiler.profile import all_points
from hpc_alpa.profiler.setting import Setting
from hpc_alpa.profiler.sweep import ordered

BACKEND = BACKENDS["host"]()


def setting(ranks_by_host, cores, seconds=0.001):
    world = NullCommunicator(0, sum(map(len, ranks_by_host)))
    return Setting(world, ranks_by_host, cores, BACKEND, seconds)


def test_every_class_of_the_operator_table_is_measured():
    assert {row.cost for row in TABLE.values()} <= set(CLASSES)
    assert {name for name, _, _ in CASES} | {"dot_general"} == set(CLASSES)
    assert operator_class("mul") == "elementwise" == operator_class("elementwise")
    with pytest.raises(CostError, match="'nonsense' is in no class"):
        operator_class("nonsense")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cases_run_the_operator_and_count_its_bytes(case, dtype):
    _, _, make = case
    operation = make(BACKEND, 2048, dtype)
    for arrays in sets_of(operation.inputs)[:2]:
        assert [TensorType.of(x) for x in arrays] == list(operation.inputs)
        result = operation.run(*arrays)
        assert TensorType.of(result) == operation.output
    sizes = [math.prod(t.shape) * np.dtype(t.dtype).itemsize for t in operation.inputs]
    assert operation.nbytes == sum(sizes) + result.nbytes
    prepared(operation)(0)


@pytest.mark.parametrize("layout", list(matmul.LAYOUTS))
@pytest.mark.parametrize("dims", [(1, 5, 6, 7), (3, 5, 6, 7), (8, 5, 6, 7), (10, 5, 6, 7)])
def test_products_are_those_of_the_layout(layout, dims):
    operation = matmul.product(setting(((0,),), 1), dims, layout, "float64")
    x, y = sets_of(operation.inputs)[0]
    if dims[0] > 1:  # heads between rows and width
        x = x.swapaxes(1, 2) if layout == "nt" else x
        y = y.swapaxes(1, 2)
        assert x.shape[:2] == y.shape[:2] and math.prod(x.shape[:2]) == dims[0]
    x = np.swapaxes(x, -1, -2) if layout[0] == "t" else x
    y = np.swapaxes(y, -1, -2) if layout[1] == "t" else y
    np.testing.assert_allclose(operation.run(*sets_of(operation.inputs)[0]), x @ y, rtol=1e-12)
    assert x.shape[-2:] == (5, 7) and y.shape[-2:] == (7, 6)
    assert operation.nbytes == x.nbytes + y.nbytes + operation.output.nbytes


def test_points_are_distinct_and_coarse_comes_first():
    points = all_points(setting(((0, 1, 2, 3),), 2), ("float32", "float64"), 2**22)
    keys = [p.key for p in points]
    assert len(set(keys)) == len(keys)
    assert [p.level for p in points] == sorted(p.level for p in points)
    coarse = [p for p in points if p.level == 0]
    assert {p.name for p in coarse if p.group == "operators"} == set(CLASSES)
    assert {p.name for p in coarse if p.group == "collectives"} == set(COLLECTIVES)
    assert {p.sample([1.0])["size"] for p in coarse if p.group == "collectives"} == {2, 3, 4}
    # a tenth into the first turn, every class has begun or is about to
    first = [p for p in coarse if p.turn == 0]
    begun = {p.name for p in first[: len(first) // 2]}
    assert begun >= set(CLASSES) - {"view"} and begun >= set(COLLECTIVES)
    assert ordered(reversed(points)) != points and len(ordered(reversed(points))) == len(points)


def test_loads_follow_ranks_and_cores():
    assert setting(((0,),), 2).loads == (Load(2, 1),)
    assert setting(((0, 1),), 2).loads == (Load(1, 2), Load(2, 1))
    assert setting(((0, 1, 2, 3),), 2).loads == (Load(1, 2), Load(2, 1))
    assert setting((tuple(range(6)),), 64).loads == (
        Load(10, 6), Load(64, 1), Load(32, 2), Load(16, 4),
    )  # fmt: skip
    crowded, roomy = setting(((0, 1, 2),), 2), setting(((0, 1), (2, 3)), 2)
    assert crowded.oversubscribed and not roomy.oversubscribed
    assert [crowded.clock_name(load) for load in crowded.loads] == ["cpu", "wall"]
    assert [roomy.clock_name(load) for load in roomy.loads] == ["wall", "wall"]


def test_group_sizes_and_message_sizes():
    assert group_sizes(1) == [] and group_sizes(4) == [2, 3, 4]
    assert group_sizes(20) == [2, 3, 4, 5, 6, 7, 8, 12, 16, 20]
    assert list(message_levels(2**16)) == [2**10, 2**12, 2**14, 2**16]
    assert list(message_levels(100_000)) == [2**10, 2**12, 2**14, 2**16, 100_000]
    assert min(message_levels(2**26).values()) == 0 and list(message_levels(1024)) == [1024]


def test_groups_are_disjoint_and_span_their_hosts():
    assert disjoint_groups(((0, 1, 2, 3),), 2, 1) == ((0, 1), (2, 3))
    assert disjoint_groups(((0, 1, 2, 3),), 3, 1) == ((0, 1, 2),)
    two = ((0, 1), (2, 3))
    assert disjoint_groups(two, 2, 2) == ((0, 2), (1, 3))
    assert disjoint_groups(two, 3, 2) == () == disjoint_groups(two, 3, 1)
    rng = random.Random(0)
    for _ in range(200):
        counts = [rng.randint(1, 6) for _ in range(rng.randint(1, 4))]
        ends = list(itertools.accumulate(counts))
        places = [tuple(range(e - c, e)) for c, e in zip(counts, ends)]
        size, hosts = rng.randint(2, 12), rng.randint(1, 4)
        groups = disjoint_groups(places, size, hosts)
        used = [r for g in groups for r in g]
        assert len(used) == len(set(used)) and all(len(g) == size for g in groups)
        for g in groups:
            assert sum(bool(set(g) & set(p)) for p in places) == hosts


def test_products_fill_the_space_evenly():
    dims = [d for d, _ in matmul.coarse_and_fine()]
    assert len(dims) == len(set(dims)) == 97
    assert all(2.0 * math.prod(d) <= 2 * matmul.MOST_FLOPS for d in dims)
    assert sum(d[0] > 1 for d in dims) > 20
    for axis in (1, 2, 3):
        octaves = {round(math.log2(d[axis])) for d in dims if d[0] == 1}
        assert octaves >= set(range(5, 12))
    assert [matmul.halton(i, 2) for i in (1, 2, 3)] == [0.5, 0.25, 0.75]


def test_repeat_times_single_calls():
    calls: list[Any] = []
    seconds = repeat(calls.append, 0.005, CLOCKS["wall"])
    assert MIN_REPEATS <= len(seconds) <= MAX_REPEATS and calls == list(range(len(calls)))
    assert 0 < sorted(seconds)[len(seconds) // 2] < 1e-5
    ticks = itertools.count()
    slow = repeat(lambda i: np.linalg.inv(np.eye(200)), 0.0, lambda: float(next(ticks)))
    assert slow == [1.0] * MIN_REPEATS


def test_cpu_time_leaves_out_the_time_asleep():
    import time

    wall = repeat(lambda i: time.sleep(0.01), 0.0, CLOCKS["wall"])
    cpu = repeat(lambda i: time.sleep(0.01), 0.0, CLOCKS["cpu"])
    assert min(wall) >= 0.01 and sorted(cpu)[1] < 0.005


def test_collectives_and_messages_on_threads():
    """Each kind over each group size runs, and rank 0 alone gets seconds of every repetition."""

    def run(world):
        here = Setting(world, ((0, 1, 2, 3),), 4, BACKEND, 0.001)
        points = [
            p for p in all_points(here, ("float32",), 2048)
            if p.group in ("collectives", "point_to_point")
        ]  # fmt: skip
        found = []
        for p in points:
            if world.rank in p.ranks:
                seconds = p.measure(here, world.group(p.ranks))
                assert (seconds is None) == (world.rank != 0)
                found += [p.sample(seconds)] if seconds else []
        return found

    samples = LocalWorld(4).run(run)[0]
    asked = {(s.name, s["size"], s["groups"]) for s in samples if s.group == "collectives"}
    sizes = {(2, 1), (2, 2), (3, 1), (4, 1)}
    assert asked == {(k, size, groups) for k in COLLECTIVES for size, groups in sizes}
    assert {s["nbytes"] for s in samples if s.group == "point_to_point"} == {1024, 2048}
    assert all(s.seconds.count >= MIN_REPEATS and s.seconds.min > 0 for s in samples)

    host = Host(4, 4, 1e9, (("float32", 1e9),), 1e9)
    cost = DatabaseCost(
        append(new(), Run.of(), samples), Cluster("four", (host,), Link("host", 0, 0))
    )
    for kind in COLLECTIVES:
        assert cost.collective(kind, 1500, (0, 2)) > 0
        assert cost.collective(kind, 1500, (0, 1, 2)) > 0
    assert cost.point_to_point(1e6, 0, 3) > 0
    with pytest.raises(CostError, match=r"no sample of operator class 'gelu'.*mpirun -n 4 python"):
        cost.compute(Work("gelu", 1.0, 1.0, "float32"))


def test_messages_carry_the_bytes_they_claim():
    def run(comm):
        made = {}
        for kind, call in collectives.CALLS.items():
            made[kind] = call(comm, 6000)
            made[kind]()
        return True

    assert LocalWorld(3).run(run) == [True] * 3
    null = NullCommunicator(0, 3)
    for kind, call in collectives.CALLS.items():
        closure = call(null, 6000).__closure__ or ()
        arrays = [c.cell_contents for c in closure if isinstance(c.cell_contents, np.ndarray)]
        largest = max(x.nbytes for x in arrays)
        # B is the full tensor: each rank of an all_to_all holds B / n of it
        assert largest == (2000 if kind == "all_to_all" else 6000) - largest % 4 or (
            abs(largest - (2000 if kind == "all_to_all" else 6000)) <= 12
        )
