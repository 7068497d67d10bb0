"""Random values: known answers, tiles of the whole, distribution, independence."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy import stats

from hpc_alpa import kernels
from hpc_alpa.kernels.reference.random import mix64, philox, stream_key

CPU, REFERENCE = kernels.load("cpu")["random"], kernels.load("reference")["random"]
KINDS = {
    ("bits32", "uint32"): 4,
    ("bits64", "uint64"): 2,
    ("normal", "float32"): 2,
    ("normal", "float64"): 1,
    ("uniform", "float32"): 4,
    ("uniform", "float64"): 2,
}
SAMPLES = 1 << 20


def values(
    kind: str, dtype: str, extents: tuple[int, ...], *, seed: int = 1, step: int = 0, key: int = 5
) -> Any:
    out = np.empty(extents, dtype)
    CPU(kind, seed, step, key, (0,) * len(extents), extents, out)
    return out


def correlation(a: Any, b: Any) -> float:
    """In standard deviations of what independent samples would give."""
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1] * np.sqrt(a.size))


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        # Random123, tests/kat_vectors: philox4x32 with 10 rounds
        ((0, 0), 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((2**64 - 1, 2**64 - 1), 2**64 - 1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x85A308D3_243F6A88, 0x03707344_13198A2E),
            0x299F31D0_A4093822,
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_generator_gives_the_known_answers(counter: Any, key: int, words: str) -> None:
    low, high = (np.array([half], "uint64") for half in counter)
    assert " ".join(f"{word[0]:08x}" for word in philox((low, high), key)) == words


def test_streams_never_change() -> None:
    """These values are part of the interface: a run that is resumed goes on with the same masks."""
    # the first output of splitmix64 from state 0, as in its authors' test vectors
    assert mix64(0x9E37_79B9_7F4A_7C15) == 0xE220_A839_7B1D_CDAF
    assert stream_key(0, 0) == mix64(0xE220_A839_7B1D_CDAF) == 0x4821_8226_FF3C_D4BF
    words = values("bits32", "uint32", (3,), seed=0, key=0)
    np.testing.assert_array_equal(words, [0xD753_7FC8, 0x4787_CA68, 0x473D_DB06])
    np.testing.assert_allclose(
        values("normal", "float32", (3,), seed=0, key=0),
        [-0.10810653120279312, 0.31271207332611084, -1.151536464691162],
        rtol=1e-7,
    )


@pytest.mark.parametrize(("kind", "dtype"), KINDS)
def test_cpu_equals_reference(kind: str, dtype: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        extents = tuple(int(n) for n in rng.integers(1, 12, rng.integers(0, 5)))
        offsets = tuple(int(rng.integers(0, n)) for n in extents)
        tile = tuple(int(rng.integers(0, n - o + 1)) for n, o in zip(extents, offsets, strict=True))
        seed, step, key = (int(n) for n in rng.integers(-(2**62), 2**62, 3))
        actual, expected = np.empty(tile, dtype), np.empty(tile, dtype)
        CPU(kind, seed, step, key, offsets, extents, actual)
        REFERENCE(kind, seed, step, key, offsets, extents, expected)
        if kind == "normal":
            # the reference's cosine of a rounded angle is that far off itself
            ulp = float(np.finfo(dtype).eps)
            np.testing.assert_allclose(actual, expected, rtol=ulp, atol=4e-15)
        else:
            np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(("kind", "dtype"), KINDS)
@pytest.mark.parametrize("kernel", [CPU, REFERENCE])
def test_tile_equals_the_slice_of_the_whole(kernel: Any, kind: str, dtype: str) -> None:
    extents = (5, 37, 61)
    whole = np.empty(extents, dtype)
    kernel(kind, 3, 4, 5, (0, 0, 0), extents, whole)
    rng = np.random.default_rng(1)
    tiles = [tuple(sorted(rng.integers(0, n + 1, 2)) for n in extents) for _ in range(25)]
    for bounds in [*tiles, ((0, 5), (0, 37), (7, 8)), ((2, 4), (0, 37), (0, 61))]:
        tile = np.empty([stop - start for start, stop in bounds], dtype)
        kernel(kind, 3, 4, 5, tuple(start for start, _ in bounds), extents, tile)
        part = whole[tuple(slice(int(start), int(stop)) for start, stop in bounds)]
        np.testing.assert_array_equal(tile.view("u1"), np.ascontiguousarray(part).view("u1"))


@pytest.mark.parametrize(("kind", "dtype"), KINDS)
def test_elements_past_the_range_of_32_bits(kind: str, dtype: str) -> None:
    """The index counts in 64 bits: a tile far out is not a tile near the start."""
    extents = (2**40, 6)
    near, far, expected = (np.empty((3, 4), dtype) for _ in range(3))
    CPU(kind, 1, 2, 3, (0, 1), extents, near)
    CPU(kind, 1, 2, 3, (2**38, 1), extents, far)
    REFERENCE(kind, 1, 2, 3, (2**38, 1), extents, expected)
    np.testing.assert_allclose(far, expected, rtol=1e-6)
    assert not np.isclose(near.astype(float), far.astype(float)).any()


def test_seed_step_and_key_all_count() -> None:
    first = values("bits64", "uint64", (64,))
    for change in ({"seed": 2}, {"step": 1}, {"key": 6}, {"step": 2**40}, {"seed": -1}):
        assert not (values("bits64", "uint64", (64,), **change) == first).any()


def test_the_shape_does_not_count() -> None:
    """Only the linear index does, so a reshaped parameter starts from the same values."""
    np.testing.assert_array_equal(
        values("normal", "float32", (6, 35)).ravel(), values("normal", "float32", (210,))
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_uniform_values(dtype: str) -> None:
    x = values("uniform", dtype, (SAMPLES,))
    assert (x >= 0).all()
    assert (x < 1).all()
    assert abs(x.mean(dtype=float) - 0.5) < 4 * np.sqrt(1 / 12 / SAMPLES)
    assert abs(x.var(dtype=float) - 1 / 12) < 4 * np.sqrt(1 / 180 / SAMPLES)
    counts = np.bincount((x * 1024).astype(int), minlength=1024)
    assert 1e-4 < stats.chisquare(counts).pvalue < 1 - 1e-4


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normal_values(dtype: str) -> None:
    x = values("normal", dtype, (SAMPLES,)).astype(float)
    assert np.isfinite(x).all()
    assert abs(x.mean()) < 4 / np.sqrt(SAMPLES)
    assert abs(x.var() - 1) < 4 * np.sqrt(2 / SAMPLES)
    assert abs(stats.kurtosis(x)) < 4 * np.sqrt(24 / SAMPLES)
    assert stats.kstest(x[: 1 << 17], "norm").pvalue > 1e-4
    assert 4.3 < np.abs(x).max() < 6.5


@pytest.mark.parametrize(("kind", "dtype"), [("bits32", "uint32"), ("bits64", "uint64")])
def test_every_bit_is_fair_and_no_two_are_related(kind: str, dtype: str) -> None:
    words = values(kind, dtype, (1 << 16,))
    width = words.dtype.itemsize * 8
    bits = (words[:, None] >> np.arange(width, dtype=dtype)) & np.array(1, dtype)
    signs = 2 * bits.astype(float) - 1
    z = signs.sum(axis=0) / np.sqrt(len(words))
    assert np.abs(z).max() < 4.5
    products = signs.T @ signs / np.sqrt(len(words))
    assert np.abs(products[~np.eye(width, dtype=bool)]).max() < 5.5


def test_neighbours_are_not_related() -> None:
    """Indices, keys, steps and seeds that differ by one, of uniform and of normal values."""
    for kind in ("uniform", "normal"):
        x = values(kind, "float32", (SAMPLES,))
        found = [correlation(x[lag:], x[:-lag]) for lag in (1, 2, 3, 4, 5, 8, 64)]
        for name in ("key", "step", "seed"):
            streams = [values(kind, "float32", (SAMPLES // 8,), **{name: i}) for i in range(9)]
            found += [correlation(a, b) for a, b in pairwise(streams)]
        assert np.abs(found).max() < 4.5
        assert np.square(found).mean() < 2.5


def test_one_changed_bit_of_key_changes_half_of_the_bits() -> None:
    base = values("bits64", "uint64", (256,), key=12345)
    for bit in range(64):
        other = values("bits64", "uint64", (256,), key=12345 ^ (1 << bit))
        flipped = int(np.bitwise_count(base ^ other).sum())
        assert abs(flipped - 256 * 32) < 5 * np.sqrt(256 * 64 / 4)


def test_unknown_kind_is_an_error() -> None:
    for kernel in (CPU, REFERENCE):
        with pytest.raises(ValueError, match="no 'bits32' of type float32.\n  There are bits32"):
            kernel("bits32", 0, 0, 0, (0,), (1,), np.empty(1, "float32"))
        with pytest.raises(ValueError, match="no 'poisson'"):
            kernel("poisson", 0, 0, 0, (0,), (1,), np.empty(1, "float32"))
