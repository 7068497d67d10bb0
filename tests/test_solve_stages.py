"""Stage slicing: cases D2, D3, D4, D8, and enumeration, with and without separators."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from hpc_alpa.errors import InfeasibleError, PlanError
from hpc_alpa.plan.solve.stages import Pipeline, slice_stages, slice_with_separators
from hpc_alpa.schedule.check import peak_in_flight
from hpc_alpa.schedule.table import SCHEDULES

Key = tuple[int, int, int, int]


def power_of_two_costs(factor: float) -> np.ndarray:
    """[i, j, m] of 4 layers on 1, 2 or 4 devices: layers * (1 + factor * (n - 1)) / n."""
    first, last, n = np.ix_(range(4), range(4), (1, 2, 4))
    cost: np.ndarray = (last - first + 1) * (1 + factor * (n - 1)) / n
    return cost


@pytest.mark.parametrize("num_microbatches", [1, 4, 16, 64])
def test_d3_one_stage_where_splitting_is_free(num_microbatches: int) -> None:
    found = slice_stages(power_of_two_costs(0.0), [1, 2, 4], 4, Pipeline(num_microbatches))
    assert found.total == num_microbatches


@pytest.mark.parametrize(
    "num_microbatches, total, num_stages",
    [(1, 1.75, 1), (4, 6.25, 2), (16, 19.0, 4), (64, 67.0, 4)],
)
def test_d4_more_microbatches_more_stages(
    num_microbatches: int, total: float, num_stages: int
) -> None:
    found = slice_stages(power_of_two_costs(0.25), [1, 2, 4], 4, Pipeline(num_microbatches))
    assert found.total == total
    assert [s.last - s.first + 1 for s in found.stages] == [4 // num_stages] * num_stages
    assert [(1, 2, 4)[s.submesh] for s in found.stages] == [4 // num_stages] * num_stages


@pytest.mark.parametrize(
    "num_microbatches, total", [(1, 0.0236323), (4, 0.0779629), (16, 0.2952850583), (64, 1.1645739)]
)
def test_d8_configurations(num_microbatches: int, total: float) -> None:
    np.random.seed(42)
    cost = np.random.rand(8, 8, 4, 5)
    found = slice_stages(cost, [1, 2, 4, 8], 8, Pipeline(num_microbatches))
    assert found.total == pytest.approx(total, abs=5e-8)
    if num_microbatches == 16:
        assert [(s.first, s.last, s.submesh) for s in found.stages] == [(0, 3, 2), (4, 7, 2)]
    seconds = [cost[s.first, s.last, s.submesh, s.configuration] for s in found.stages]
    assert [s.seconds for s in found.stages] == seconds


def slicings(num_layers: int, num_devices: int, devices: Sequence[int]) -> Iterator[list[Key]]:
    """Every sequence of (i, j, m, 0) that covers the layers and uses the devices exactly."""
    for count in range(1, num_layers + 1):
        for inner in itertools.combinations(range(1, num_layers), count - 1):
            ends = [0, *inner, num_layers]
            for meshes in itertools.product(range(len(devices)), repeat=count):
                if sum(devices[m] for m in meshes) == num_devices:
                    ranges = zip(itertools.pairwise(ends), meshes, strict=True)
                    yield [(a, b - 1, m, 0) for (a, b), m in ranges]


def in_flight(rng: np.random.Generator, num_microbatches: int) -> list[int]:
    schedule = SCHEDULES[str(rng.choice(["1f1b", "gpipe"]))](8, num_microbatches)
    return list(reversed(peak_in_flight(schedule)))


def random_pipeline(rng: np.random.Generator, *, transfers: bool) -> Pipeline:
    return Pipeline(
        num_microbatches=int(rng.choice([1, 2, 4, 16])),
        fill=float(rng.choice([1.0, 2.0])),
        fill_transfer=float(rng.choice([0.0, 0.5, 1.0])),
        period=float(rng.choice([0.5, 1.0])),
        period_transfer=float(rng.choice([0.0, 0.5, 1.0])) if transfers else 0.0,
    )


DEVICES = [
    ([1, 2, 4, 8], 8),
    ([1, 2, 4], 6),
    ([1, 2, 3], 3),
    ([1, 3], 6),
    ([1, 2, 6], 7),
    ([2, 3], 8),
]


def test_d2_equals_enumeration() -> None:
    """200 cases: up to 6 layers, 3 to 8 devices, configurations, memory, a number of stages."""
    solved = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        devices, num_devices = DEVICES[seed % len(DEVICES)]
        num_layers = int(rng.integers(2, 7))
        cost = rng.random((num_layers, num_layers, len(devices), 2))
        cost[rng.random(cost.shape) < 0.1] = np.inf
        room = rng.integers(0, 9, cost.shape)
        pipeline = random_pipeline(rng, transfers=False)
        need = in_flight(rng, pipeline.num_microbatches)
        limited = seed % 2 == 0
        num_stages = int(rng.integers(1, 4)) if rng.random() < 0.2 else None

        fits = room >= np.array(need)[:, None, None, None, None] if limited else True
        least = np.where(fits, cost, np.inf).min(axis=-1)
        least = np.broadcast_to(least, (8, *cost.shape[:3]))  # [place from the end, i, j, m]
        totals = []
        for keys in slicings(num_layers, num_devices, devices):
            seconds = [least[len(keys) - 1 - k][key[:3]] for k, key in enumerate(keys)]
            if num_stages in (None, len(keys)) and np.isfinite(seconds).all():
                totals.append(pipeline.total(seconds, [0.0] * (len(keys) - 1)))
        expected = min(totals, default=np.inf)
        found = total_or_inf(
            lambda *arguments, **memory: slice_stages(*arguments, **memory).total,
            (cost, devices, num_devices, pipeline),
            room=room if limited else None,
            in_flight=need if limited else None,
            num_stages=num_stages,
        )
        assert found == pytest.approx(expected, rel=1e-12), seed
        solved += bool(np.isfinite(found))
    assert solved > 120


def total_or_inf(
    solve: Callable[..., float], arguments: tuple[object, ...], **options: object
) -> float:
    try:
        return solve(*arguments, **options)
    except InfeasibleError:
        return np.inf


def random_tables(
    rng: np.random.Generator, num_layers: int, num_submeshes: int
) -> tuple[dict[Key, np.ndarray], dict[tuple[int, int, int], np.ndarray]]:
    """Stage tables over 1 to 3 classes a cut, and the transfers between the classes of each cut."""
    entering, leaving = rng.integers(1, 4, (2, num_layers + 1, num_submeshes))

    def some(shape: tuple[int, ...], missing: float) -> np.ndarray:
        table = rng.random(shape)
        table[rng.random(shape) < missing] = np.inf
        return table

    tables = {
        (i, j, m, 0): (j - i + 1) * some((entering[i, m], leaving[j + 1, m]), 0.1)
        for i in range(num_layers)
        for j in range(i, num_layers)
        for m in range(num_submeshes)
        if rng.random() < 0.95 or (i, j) == (0, num_layers - 1)
    }
    transfers = {
        (cut, m, n): some((leaving[cut, m], entering[cut, n]), 0.1)
        for cut in range(1, num_layers)
        for m in range(num_submeshes)
        for n in range(num_submeshes)
    }
    return tables, transfers


def all_classes(
    keys: list[Key],
    tables: dict[Key, np.ndarray],
    transfers: dict[tuple[int, int, int], np.ndarray],
) -> Iterator[tuple[list[tuple[int, int]], list[float], list[float]]]:
    """Every choice of (entering, leaving) classes of the stages, and their times."""
    if not all(key in tables for key in keys):
        return
    for ports in itertools.product(*(np.ndindex(tables[key].shape) for key in keys)):
        stages = [float(tables[key][port]) for key, port in zip(keys, ports, strict=True)]
        between = [
            float(transfers[b[0], a[2], b[2]][left[1], right[0]])
            for (a, b), (left, right) in zip(
                itertools.pairwise(keys), itertools.pairwise(ports), strict=True
            )
        ]
        if np.isfinite(stages + between).all():
            yield list(ports), stages, between


def test_separators_equal_enumeration() -> None:
    """200 cases: up to 4 layers and 7 devices; classes, transfers, blocking or not, memory."""
    solved = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        devices, num_devices = DEVICES[1 + seed % 4]
        num_layers = int(rng.integers(2, 5))
        tables, transfers = random_tables(rng, num_layers, len(devices))
        room = {
            key: rng.integers(0, 9, table.shape) if rng.random() < 0.5 else int(rng.integers(0, 9))
            for key, table in tables.items()
        }
        pipeline = random_pipeline(rng, transfers=True)
        need = in_flight(rng, pipeline.num_microbatches)
        limited = seed % 2 == 0

        expected = np.inf
        for keys in slicings(num_layers, num_devices, devices):
            for ports, stages, between in all_classes(keys, tables, transfers):
                fits = all(
                    np.broadcast_to(room[key], tables[key].shape)[port] >= need[len(keys) - 1 - k]
                    for k, (key, port) in enumerate(zip(keys, ports, strict=True))
                )
                if fits or not limited:
                    expected = min(expected, pipeline.total(stages, between))
        found = total_or_inf(
            traced_total,
            (tables, transfers, devices, num_devices, pipeline),
            room=room if limited else None,
            in_flight=need if limited else None,
        )
        assert found == pytest.approx(expected, rel=1e-12), seed
        solved += bool(np.isfinite(found))
    assert solved > 120


def traced_total(
    tables: dict[Key, np.ndarray],
    transfers: dict[tuple[int, int, int], np.ndarray],
    devices: list[int],
    num_devices: int,
    pipeline: Pipeline,
    **memory: Any,
) -> float:
    """The total, after a check that stages and transfers are those of the classes they name."""
    found = slice_with_separators(
        tables, lambda *at: transfers[at], devices, num_devices, pipeline, **memory
    )
    for s in found.stages:
        table = tables[s.first, s.last, s.submesh, s.configuration]
        assert s.seconds == table[s.entering, s.leaving]
    for (a, b), time in zip(itertools.pairwise(found.stages), found.transfers, strict=True):
        assert time == transfers[b.first, a.submesh, b.submesh][a.leaving, b.entering]
    return found.total


@pytest.mark.parametrize("num_devices", [3, 6, 12])
def test_any_number_of_devices(num_devices: int) -> None:
    cost = np.ones((12, 12, 3)) * np.array([6.0, 3.0, 2.0])
    found = slice_stages(cost, [1, 2, 3], num_devices, Pipeline(8))
    assert sum((1, 2, 3)[s.submesh] for s in found.stages) == num_devices
    assert [s.submesh for s in found.stages] == [2] * (num_devices // 3)


def test_devices_that_do_not_add_up_are_named() -> None:
    with pytest.raises(
        InfeasibleError, match="no stages of 4 layers use exactly 5 devices: submeshes"
    ):
        slice_stages(np.ones((4, 4, 2)), [2, 4], 5, Pipeline(4))


def test_missing_memory_is_named_with_the_nearest_fit() -> None:
    room = np.full((4, 4, 1), 2)
    with pytest.raises(InfeasibleError) as error:
        slice_stages(np.ones((4, 4, 1)), [1], 4, Pipeline(8), room=room, in_flight=[1, 2, 3, 4])
    message = str(error.value)
    assert "lacks room for 2 microbatches in flight" in message
    assert "layers 0..0 on submesh 0 (1 devices) hold 4 microbatches, room for 2" in message


def test_limited_memory_needs_the_schedule() -> None:
    room = np.ones((4, 4, 1), int)
    with pytest.raises(PlanError, match="in_flight must say for each"):
        slice_stages(np.ones((4, 4, 1)), [1], 4, Pipeline(8), room=room, in_flight=[1])
