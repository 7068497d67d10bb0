"""Losses and weights of a training are those of one rank, whatever its method and schedule."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest

from hpc_alpa.errors import HpcAlpaError, ShardingError
from tests.helpers import equality
from tests.helpers.equality import Outcome, cluster, planned_collectives, train

SCRIPT = Path(equality.__file__)


@functools.cache
def one_rank(dtype: str) -> Outcome:
    return train("dp1", dtype, devices=cluster(1))


def require_equal(found: Outcome, dtype: str) -> None:
    reference = one_rank(dtype)
    assert reference.losses[0] - reference.losses[-1] > np.log(2), "the loss falls by over 1 bit"
    tolerance = 1e-10 if dtype == "float64" else 1e-5
    np.testing.assert_allclose(found.losses, reference.losses, rtol=tolerance)
    if dtype == "float64":
        for name, weight in reference.weights.items():
            np.testing.assert_allclose(found.weights[name], weight, rtol=1e-9, atol=1e-9)


# A covering set: method, ranks, dtype, schedule, microbatches, resharding.
CASES = [
    ("dp2", 2, "float64", "1f1b", 1, "send_recv"),
    ("dp3", 3, "float32", "1f1b", 2, "send_recv"),
    ("dp4", 4, "float64", "gpipe", 4, "send_recv"),
    ("dp6", 6, "float32", "1f1b", 1, "send_recv"),
    ("dp8", 8, "float64", "1f1b", 2, "send_recv"),
    ("tp2", 2, "float64", "1f1b", 1, "send_recv"),
    ("tp2", 2, "float32", "gpipe", 4, "send_recv"),
    ("tp3", 3, "float64", "1f1b", 2, "send_recv"),
    ("tp6", 6, "float32", "1f1b", 1, "send_recv"),
    ("pp2", 2, "float64", "gpipe", 4, "send_recv"),
    ("pp2", 2, "float32", "1f1b", 8, "broadcast"),
    ("pp3", 3, "float64", "1f1b", 4, "send_recv"),
    ("pp4", 4, "float64", "1f1b", 8, "send_recv"),
    ("pp4", 4, "float32", "gpipe", 2, "send_recv"),
    ("dp2tp2", 4, "float64", "1f1b", 2, "send_recv"),
    ("dp2tp3", 6, "float32", "1f1b", 1, "send_recv"),
    ("dp2pp2", 4, "float64", "1f1b", 4, "broadcast"),
    ("tp2pp2", 4, "float64", "gpipe", 8, "broadcast"),
    ("dp4pp2", 8, "float32", "1f1b", 4, "send_recv"),
    ("dp2tp2pp2", 8, "float64", "1f1b", 4, "send_recv"),
    ("auto", 2, "float64", "auto", None, "send_recv"),
    ("auto", 3, "float32", "auto", 1, "send_recv"),
    ("auto", 4, "float64", "1f1b", 4, "broadcast"),
]


@pytest.mark.parametrize(("method", "ranks", "dtype", "schedule", "slots", "resharding"), CASES)
def test_threads(
    method: str, ranks: int, dtype: str, schedule: str, slots: int | None, resharding: str
) -> None:
    found = train(
        method,
        dtype,
        devices=cluster(ranks),
        schedule=schedule,
        num_microbatches=slots,
        resharding=resharding,
    )
    require_equal(found, dtype)
    assert found.step is not None
    assert found.collectives == planned_collectives(found.step)
    require_method(method, found)


def require_method(method: str, found: Outcome) -> None:
    """The program's collectives are the method's own."""
    kinds = set(found.collectives)
    if method.startswith("dp") and "tp" not in method and "pp" not in method:
        assert found.collectives == {"all_reduce": 1}, "one bucket of gradients"
        assert found.messages == 0
    if method.startswith("tp") and "pp" not in method:
        # Megatron: two all_reduce per layer and direction, in every microbatch.
        slots = found.step.plan.num_microbatches if found.step else 1
        assert found.collectives["all_reduce"] >= 8 * slots
        assert kinds <= {"all_reduce", "all_gather"}
        assert found.messages == 0
    if method.startswith("pp"):
        assert kinds <= {"broadcast"}, "stages exchange messages; the loss is broadcast"
        assert found.messages > 0


# The last column: layers that backward makes again.
MPI_CASES = [
    ("dp2", 2, "float64", "1f1b", 1, "send_recv", "none"),
    ("dp3", 3, "float64", "1f1b", 1, "send_recv", "all"),
    ("dp2tp2", 4, "float64", "1f1b", 2, "send_recv", "0"),
    ("dp2pp2", 4, "float64", "1f1b", 4, "broadcast", "all"),
    ("pp2", 2, "float64", "1f1b", 4, "send_recv", "0"),
]
# Others run all of their parts, and schedules have a test of their own.
MORE_MPI_CASES = [
    ("tp2", 2, "float32", "1f1b", 1, "send_recv", "none"),
    ("pp2", 2, "float64", "1f1b", 4, "send_recv", "none"),
    ("pp3", 3, "float32", "gpipe", 4, "send_recv", "none"),
    ("dp1", 1, "float64", "1f1b", 1, "send_recv", "none"),
]


@pytest.mark.parametrize(
    ("method", "ranks", "dtype", "schedule", "slots", "resharding", "layers"),
    [*MPI_CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE_MPI_CASES)],
)
def test_mpi(
    mpiexec,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    method: str,
    ranks: int,
    dtype: str,
    schedule: str,
    slots: int,
    resharding: str,
    layers: str,
) -> None:
    out = tmp_path / "out.json"
    arguments = [method, dtype, schedule, str(slots), resharding, str(out), layers]
    done = mpiexec(ranks, [str(SCRIPT), *arguments], timeout=240)
    assert done.returncode == 0, done.stderr
    data = json.loads(out.read_text())
    weights = dict(np.load(out.with_suffix(".npz")))
    require_equal(Outcome(data["losses"], weights, data["collectives"], 0), dtype)


@pytest.mark.parametrize(
    ("method", "ranks", "slots", "says"),
    [
        ("dp5", 5, 1, "192"),
        ("tp4", 4, 1, "cannot be split"),
        ("dp2", 3, 1, "3"),
        ("dp2", 2, 5, "5"),
        ("pp128", 128, 1, "layers"),
        ("xp2", 2, 1, "xp2"),
    ],
)
def test_what_does_not_divide_is_named(method: str, ranks: int, slots: int, says: str) -> None:
    with pytest.raises(HpcAlpaError, match=says):
        train(method, "float32", devices=cluster(ranks), num_microbatches=slots, steps=1)


def test_heads_that_do_not_divide_are_a_sharding_error() -> None:
    with pytest.raises(ShardingError, match="cannot be split"):
        train("tp4", "float32", devices=cluster(4), num_microbatches=1, steps=1)
