"""Amounts as texts."""

import numpy as np
import pytest

from hpc_alpa.report.units import (
    BYTES,
    COUNTS,
    SECONDS,
    clock_text,
    count_text,
    nbytes_text,
    ranks_text,
    runs,
    seconds_text,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0123, "12.3 ms"),
        (1.5, "1.5 s"),
        (0.0, "0 ns"),
        (3.21e-6, "3.21 us"),
        (999.7e-6, "1 ms"),  # rounds into the next unit
        (2e-12, "0.002 ns"),
        (7203.0, "7200 s"),
        (-0.02, "-20 ms"),
        (float("inf"), "inf"),
        (None, "-"),
    ],
)
def test_seconds(seconds: float | None, text: str) -> None:
    assert seconds_text(seconds) == text


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1500, "1.5 kB"),
        (1.5e9, "1.5 GB"),
        (999999, "1 MB"),
        (None, "-"),
    ],
)
def test_bytes(nbytes: float | None, text: str) -> None:
    assert nbytes_text(nbytes) == text


def test_counts() -> None:
    assert [count_text(n) for n in (0, 7, 41234, 1e6)] == ["0", "7", "41.2 k", "1 M"]


@pytest.mark.parametrize("write", [seconds_text, nbytes_text, count_text])
def test_a_text_is_its_number_to_three_digits(write) -> None:  # type: ignore[no-untyped-def]
    sizes = {unit: size for units in (SECONDS, BYTES, COUNTS) for size, unit in units}
    for amount in 10 ** np.random.default_rng(0).uniform(0, 15, 500):
        digits, _, unit = write(amount).partition(" ")
        assert float(digits) * sizes[unit] == pytest.approx(amount, rel=5.01e-3)
        assert "e" not in digits


def test_clock() -> None:
    assert [clock_text(s) for s in (0, 92.4, 7509, -3)] == ["0:00", "1:32", "2:05:09", "0:00"]


def test_ranks() -> None:
    assert ranks_text((0, 1, 2, 3, 8)) == "0-3, 8"
    assert ranks_text((5, 1, 3, 2)) == "1-3, 5"
    assert ranks_text(()) == "" and ranks_text((7,)) == "7"
    for seed in range(50):
        ranks = set(np.random.default_rng(seed).integers(0, 20, seed % 15).tolist())
        spans = runs(tuple(ranks))
        assert sorted(ranks) == [r for a, b in spans for r in range(a, b + 1)]
        assert all(b + 1 < c for (_, b), (c, _) in zip(spans, spans[1:], strict=False))
