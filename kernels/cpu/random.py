"""Random values from a counter: the generator and streams of `reference.random`, bit for bit.

A run of neighbouring elements is filled block by block, one call of the generator for four 32-bit
words, on vector lanes; the ends of a run take single words of their blocks. No fast-math flag, so a
tile equals the slice of the whole.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload
from numpy.typing import NDArray

from hpc_alpa.kernels.cpu.compile import STRICT, compiled
from hpc_alpa.kernels.cpu.elementary import cos_turns, log
from hpc_alpa.kernels.reference.random import (
    MASK64,
    MULTIPLIERS,
    WEYL,
    kind_error,
    linear_index,
    stream_key,
    strides,
)

U64 = np.uint64
LOW = U64(0xFFFF_FFFF)
M0, M1 = (U64(m) for m in MULTIPLIERS)
W0, W1 = (U64(w) for w in WEYL)
ONE, TWO, THREE, FOUR = U64(1), U64(2), U64(3), U64(4)
HALF_WORD, NARROW, WIDE = U64(32), U64(8), U64(11)  # shifts: float32 keeps 24 bits, float64 53


@compiled(STRICT, inline=True)
def _round(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> Any:
    # 32-bit values in 64-bit lanes: a product is then one vpmuludq
    p0 = c0 * M0
    p1 = c2 * M1
    return (p1 >> HALF_WORD) ^ c1 ^ k0, p1 & LOW, (p0 >> HALF_WORD) ^ c3 ^ k1, p0 & LOW


@compiled(STRICT, inline=True)
def _philox(block: Any, step: Any, key: Any) -> Any:
    c0, c1, c2, c3 = block & LOW, block >> HALF_WORD, step & LOW, step >> HALF_WORD
    k0, k1 = key & LOW, key >> HALF_WORD
    for _ in range(10):
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
        k0, k1 = (k0 + W0) & LOW, (k1 + W1) & LOW
    return c0, c1, c2, c3


@compiled(STRICT, inline=True)
def _box_muller(u: Any, w: Any) -> Any:
    return np.sqrt(-2.0 * log(u)) * cos_turns(w)


def _from_word(word: Any, out: Any) -> Any:
    """One word to a value of out's type: float32 is uniform, uint32 the bits."""
    raise NotImplementedError("compiled only")


@overload(_from_word, jit_options={"forceinline": True})
def _overload_word(word: Any, out: Any) -> Callable[[Any, Any], Any]:
    def bits32(word: Any, out: Any) -> Any:
        return np.uint32(word)

    def uniform32(word: Any, out: Any) -> Any:
        return np.float32(np.int32(word >> NARROW)) * np.float32(2.0**-24)

    return {types.float32: uniform32, types.uint32: bits32}[out.dtype]


def _from_words(low: Any, high: Any, out: Any) -> Any:
    """Two words to a value of out's type: float32 is normal, float64 uniform, uint64 the bits."""
    raise NotImplementedError("compiled only")


@overload(_from_words, jit_options={"forceinline": True})
def _overload_words(low: Any, high: Any, out: Any) -> Callable[[Any, Any, Any], Any]:
    def bits64(low: Any, high: Any, out: Any) -> Any:
        return low | (high << HALF_WORD)

    def uniform64(low: Any, high: Any, out: Any) -> Any:
        return np.float64((low | (high << HALF_WORD)) >> WIDE) * 2.0**-53

    def normal32(low: Any, high: Any, out: Any) -> Any:
        u = np.float64(low + ONE) * 2.0**-32
        return np.float32(_box_muller(u, np.float64(high) * 2.0**-32))

    return {types.float32: normal32, types.float64: uniform64, types.uint64: bits64}[out.dtype]


@compiled(STRICT)
def _one_word(first: Any, step: Any, key: Any, out: Any) -> None:
    """One word each: bits32, uniform float32. out (runs, length), first (runs,)."""
    runs, length = out.shape
    for run in range(runs):
        row = out[run]
        start = first[run]
        head = min(np.int64((FOUR - (start & THREE)) & THREE), length)
        blocks = (length - head) // 4
        base = (start + U64(head)) >> TWO
        body = row[head:]
        for b in range(blocks):
            w0, w1, w2, w3 = _philox(base + U64(b), step, key)
            body[4 * b] = _from_word(w0, out)
            body[4 * b + 1] = _from_word(w1, out)
            body[4 * b + 2] = _from_word(w2, out)
            body[4 * b + 3] = _from_word(w3, out)
        rest = head + 4 * blocks
        for end in range(2):
            lower, upper = (0, head) if end == 0 else (rest, length)
            if lower < upper:
                words = _philox((start + U64(lower)) >> TWO, step, key)
                for i in range(lower, upper):
                    row[i] = _from_word(words[np.int64((start + U64(i)) & THREE)], out)


@compiled(STRICT)
def _two_words(first: Any, step: Any, key: Any, out: Any) -> None:
    """Two words each: bits64, uniform float64, normal float32. Arrays as in `_one_word`."""
    runs, length = out.shape
    for run in range(runs):
        row = out[run]
        start = first[run]
        head = min(np.int64(start & ONE), length)
        blocks = (length - head) // 2
        base = (start + U64(head)) >> ONE
        body = row[head:]
        for b in range(blocks):
            w0, w1, w2, w3 = _philox(base + U64(b), step, key)
            body[2 * b] = _from_words(w0, w1, out)
            body[2 * b + 1] = _from_words(w2, w3, out)
        if head:
            _, _, w2, w3 = _philox(start >> ONE, step, key)
            row[0] = _from_words(w2, w3, out)
        if head + 2 * blocks < length:
            w0, w1, _, _ = _philox(base + U64(blocks), step, key)
            row[length - 1] = _from_words(w0, w1, out)


@compiled(STRICT)
def _four_words(first: Any, step: Any, key: Any, out: Any) -> None:
    """Four words each: normal float64. Arrays as in `_one_word`."""
    runs, length = out.shape
    for run in range(runs):
        row = out[run]
        for i in range(length):
            w0, w1, w2, w3 = _philox(first[run] + U64(i), step, key)
            u = np.float64(((w0 | (w1 << HALF_WORD)) >> WIDE) + ONE) * 2.0**-53
            w = np.float64((w2 | (w3 << HALF_WORD)) >> WIDE) * 2.0**-53
            row[i] = _box_muller(u, w)


# (kind, element type) -> kernel
FILLS: dict[tuple[str, str], Callable[..., None]] = {
    ("bits32", "uint32"): _one_word,
    ("bits64", "uint64"): _two_words,
    ("normal", "float32"): _two_words,
    ("normal", "float64"): _four_words,
    ("uniform", "float32"): _one_word,
    ("uniform", "float64"): _two_words,
}


def random(
    kind: str,
    seed: int,
    step: int,
    key: int,
    offsets: Sequence[int],
    extents: Sequence[int],
    out: NDArray[Any],
) -> None:
    """Fill the tile `out` at `offsets` of an array of `extents` with values of (seed, step, key).

    Arguments as in `reference.random`: bits32 (out uint32), bits64 (uint64), uniform or normal
    (float32, float64).
    """
    assert len(offsets) == len(extents) == out.ndim, (offsets, extents, out.shape)
    fill = FILLS.get((kind, out.dtype.name))
    if fill is None:
        raise kind_error(kind, out.dtype.name)
    # a run of neighbours in the full array: the last dims that are taken whole, and one more
    split = max(out.ndim - 1, 0)
    while split > 0 and out.shape[split] == extents[split]:
        split -= 1
    outer, inner = slice(None, split), slice(split, None)
    within = sum(map(operator.mul, map(int, offsets[inner]), strides(extents[inner])))
    first = linear_index(np, offsets[outer], extents[outer], out.shape[outer])
    first = first.reshape(-1) * U64(math.prod(extents[inner])) + U64(within)
    runs = out.reshape(first.size, math.prod(out.shape[inner]))
    fill(first, U64(int(step) & MASK64), U64(stream_key(seed, key)), runs)
