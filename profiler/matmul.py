"""Matrix products over (batch, m, n, k), each operand plain or transposed as training needs it.

    nn  x @ w           forward
    nt  dy @ w.T        gradient of the input; q @ k.T
    tn  x.T @ dy        gradient of the weight

The coarse grid spans small and large dims, one product and a batch of attention scores; then
quasi-random points fill the space between (Halton, in octaves): any prefix covers it evenly.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from hpc_alpa.profiler.operators import Operation, row, under_loads
from hpc_alpa.profiler.point import Point
from hpc_alpa.profiler.setting import Setting

Dims = tuple[int, int, int, int]

# layout: (equation, equation with a batch)
LAYOUTS = {
    "nn": ("ij,jk->ik", "bhij,bhjk->bhik"),
    "nt": ("ij,kj->ik", "bhij,bhkj->bhik"),
    "tn": ("ji,jk->ik", "bhji,bhjk->bhik"),
}
HEADS = (8, 6, 5, 4, 3, 2, 1)
"""Heads that a batch is split into: the first that divides it."""
COARSE: tuple[Dims, ...] = (
    *((1, m, n, k) for m in (64, 1024) for n in (64, 512) for k in (64, 512)),
    (1, 4096, 256, 256), (1, 4096, 768, 192), (1, 192, 768, 4096), (1, 16, 16, 16),
    (64, 64, 64, 16), (512, 64, 64, 16), (512, 64, 16, 64), (64, 128, 128, 64), (64, 128, 64, 128),
)  # fmt: skip
LOWEST = (0.0, 4.0, 4.0, 4.0)  # octaves: dims from 2**4
SINGLE = (0.0, 13.0, 11.5, 11.5)
BATCHED = (10.0, 9.0, 9.0, 7.0)
MOST_FLOPS = 2.0**32
"""A longer product than this (20 to 100 ms) runs at the rate of one this long."""


def coarse_and_fine() -> Iterator[tuple[Dims, int]]:
    """All dims with their levels: 17 on level 0, 16 on level 1, 64 on level 2."""
    yield from ((dims, 0) for dims in COARSE)
    seen = set(COARSE)
    index, taken = 0, 0
    while taken < 80:
        index += 1
        high = BATCHED if index % 3 == 0 else SINGLE
        batch, m, n, k = (
            round(2 ** (low + (top - low) * halton(index, base)))
            for low, top, base in zip(LOWEST, high, (2, 3, 5, 7))
        )
        dims = batch, m, n, k
        if 2.0 * batch * m * n * k <= MOST_FLOPS and dims not in seen:
            seen.add(dims)
            yield dims, 1 if taken < 16 else 2
            taken += 1


def halton(index: int, base: int) -> float:
    """The digits of `index` in `base`, mirrored at the point (Halton 1960)."""
    value, share = 0.0, 1.0
    while index:
        share /= base
        value += share * (index % base)
        index //= base
    return value


def points(setting: Setting, dtypes: Sequence[str]) -> Iterator[Point]:
    """A point per dims, layout, dtype and load."""
    for dims, level in coarse_and_fine():
        for layout in LAYOUTS:
            for order, dtype in enumerate(dtypes):
                operation = product(setting, dims, layout, dtype)
                named = dict(zip(("batch", "m", "n", "k"), dims))
                yield from under_loads(
                    setting, "dot_general", layout, operation, level, order, **named
                )


def product(setting: Setting, dims: Dims, layout: str, dtype: str) -> Operation:
    """The matrix product of `dims` as the executor runs it.

    Products with a batch are those of attention: operands of a head's width are views of arrays
    (batch, rows, heads, width), which BLAS needs copied; scores are contiguous. So both operands of
    `nt` (q @ k.T) are views, and the right one of `nn` and `tn` (weights @ v, scores.T @ q).
    """
    batch, m, n, k = dims
    left = (k, m) if layout[0] == "t" else (m, k)
    right = (n, k) if layout[1] == "t" else (k, n)
    single, batched = LAYOUTS[layout]
    if batch == 1:
        return row("dot_general", lambda _: [left, right], equation=single)(
            setting.backend, 0, dtype
        )
    heads = next(h for h in HEADS if batch % h == 0)
    lead = (batch // heads, heads)
    whole = row("dot_general", lambda _: [(*lead, *left), (*lead, *right)], equation=batched)(
        setting.backend, 0, dtype
    )
    views = [layout == "nt", True]
    stored = tuple(
        t.with_shape((lead[0], t.shape[2], heads, t.shape[3])) if view else t
        for t, view in zip(whole.inputs, views)
    )

    def run(*arrays: Any) -> Any:
        return whole.run(*(x.swapaxes(1, 2) if v else x for x, v in zip(arrays, views)))

    return Operation(stored, whole.output, run)
