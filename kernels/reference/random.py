"""Random values from a counter, so that a tile equals the slice of the whole whatever the sharding.

The generator is Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as
1, 2, 3", SC11, Sec. 4; it passes BigCrush; it is one of the generators of Random123 and cuRAND).
The words of an array are

    word(i) = Philox(counter = (i div 4, step), key = stream_key(seed, key))[i mod 4]

with i the linear index of the element in the full array, 64 bits for i div 4 and 64 for the step.
The seed and the hash of the name are joined by the finaliser of splitmix64 (Steele, Lea and Flood,
OOPSLA 2014, Fig. 16), so that for one seed no two hashes share a stream. From the words:

    bits32    word(i)                                   uniform  float32  (word(i) >> 8) / 2^24
    bits64    word(2i) + 2^32 word(2i + 1)              uniform  float64  (bits64 >> 11) / 2^53
    normal    sqrt(-2 log u) cos(2 pi w), Box and Muller 1958, in float64, then rounded to out's
    type
              float32: u = (word(2i) + 1) / 2^32, w = word(2i + 1) / 2^32 float64: u = (a + 1) /
              2^53, w = b / 2^53, with a, b = bits64(2i), bits64(2i + 1), each >> 11
"""

import math
from collections.abc import Callable, Sequence
from types import ModuleType

from hpc_alpa.kernels import Array
from hpc_alpa.kernels.reference import array_module

MASK32 = 0xFFFF_FFFF
MASK64 = 0xFFFF_FFFF_FFFF_FFFF
MULTIPLIERS = (0xD251_1F53, 0xCD9E_8D57)  # Salmon et al., Random123 philox.h: PHILOX_M4x32_0 and _1
WEYL = (0x9E37_79B9, 0xBB67_AE85)  # golden ratio and sqrt(3) - 1: PHILOX_W32_0 and _1
NUM_ROUNDS = 10


def mix64(z: int) -> int:
    """splitmix64's finaliser, a bijection of 64-bit integers (mix variant 13 of Stafford)."""
    z = ((z ^ (z >> 30)) * 0xBF58_476D_1CE4_E5B9) & MASK64
    z = ((z ^ (z >> 27)) * 0x94D0_49BB_1331_11EB) & MASK64
    return z ^ (z >> 31)


def stream_key(seed: int, key: int) -> int:
    """The generator's 64-bit key for a seed and the hash of a name, taken modulo 2^64."""
    return mix64(mix64((int(seed) + 0x9E37_79B9_7F4A_7C15) & MASK64) ^ (int(key) & MASK64))


def philox(counter: tuple[Array, Array], key: int) -> tuple[Array, Array, Array, Array]:
    """Four 32-bit words, in uint64 arrays, of a 128-bit counter (low, high half) and 64-bit key."""
    c0, c1 = counter[0] & MASK32, counter[0] >> 32
    c2, c3 = counter[1] & MASK32, counter[1] >> 32
    k0, k1 = key & MASK32, key >> 32
    for _ in range(NUM_ROUNDS):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK32, (p0 >> 32) ^ c3 ^ k1, p0 & MASK32
        k0, k1 = (k0 + WEYL[0]) & MASK32, (k1 + WEYL[1]) & MASK32
    return c0, c1, c2, c3


def strides(extents: Sequence[int]) -> tuple[int, ...]:
    """Distance in elements between neighbours along each dim of a C-ordered array."""
    return tuple(math.prod(map(int, extents[dim + 1 :])) for dim in range(len(extents)))


def linear_index(
    xp: ModuleType, offsets: Sequence[int], extents: Sequence[int], shape: tuple[int, ...]
) -> Array:
    """Linear index in an array of `extents` of each element of its tile of `shape` at `offsets`."""
    total = xp.zeros(shape, dtype=xp.uint64)
    for dim, stride in enumerate(strides(extents)):
        index = xp.arange(shape[dim], dtype=xp.uint64) + int(offsets[dim])
        total += (index * stride).reshape((-1,) + (1,) * (len(shape) - dim - 1))
    return total


def _word(xp: ModuleType, index: Array, step: int, key: int) -> Array:
    high = xp.full(index.shape, int(step) & MASK64, dtype=xp.uint64)
    words = xp.stack(philox((index >> 2, high), key))
    return xp.take_along_axis(words, (index & 3).astype(xp.int64)[None], axis=0)[0]


def kind_error(kind: str, dtype: str) -> ValueError:
    """The error for a pair that no kernel fills."""
    return ValueError(
        f"random: no {kind!r} of type {dtype}.\n"
        "  There are bits32 (uint32), bits64 (uint64), uniform and normal (float32, float64)."
    )


def random(
    kind: str,
    seed: int,
    step: int,
    key: int,
    offsets: Sequence[int],
    extents: Sequence[int],
    out: Array,
) -> None:
    """Fill the tile `out` at `offsets` of an array of `extents` with values of (seed, step, key).

    Args:
        kind: bits32 (out uint32), bits64 (uint64), uniform in [0, 1) or normal (float32, float64).
        seed: any integer, taken modulo 2^64, as are `step` and `key`, the hash of the value's name.
        offsets: where the tile starts, per dim of the full array.
        extents: the shape of the full array.
        out: the tile.
    """
    assert len(offsets) == len(extents) == out.ndim, (offsets, extents, out.shape)
    xp = array_module(out)
    stream = stream_key(seed, key)
    index = linear_index(xp, offsets, extents, out.shape).reshape(-1)

    def word(i: Array) -> Array:
        return _word(xp, i, step, stream)

    def wide(i: Array) -> Array:
        return word(2 * i) | (word(2 * i + 1) << 32)

    def box_muller(a: Array, b: Array, bits: int) -> Array:
        unit = 2.0**-bits
        return xp.sqrt(-2.0 * xp.log((a + 1) * unit)) * xp.cos(2 * math.pi * (b * unit))

    fills: dict[tuple[str, str], Callable[[], Array]] = {
        ("bits32", "uint32"): lambda: word(index),
        ("bits64", "uint64"): lambda: wide(index),
        ("normal", "float32"): lambda: box_muller(word(2 * index), word(2 * index + 1), 32),
        ("normal", "float64"): lambda: box_muller(
            wide(2 * index) >> 11, wide(2 * index + 1) >> 11, 53
        ),
        ("uniform", "float32"): lambda: (word(index) >> 8) * 2.0**-24,
        ("uniform", "float64"): lambda: (wide(index) >> 11) * 2.0**-53,
    }
    fill = fills.get((kind, out.dtype.name))
    if fill is None:
        raise kind_error(kind, out.dtype.name)
    out[...] = fill().reshape(out.shape)
