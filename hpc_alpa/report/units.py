"""Amounts as short texts with units: `1.5 GB`, `12.3 ms`, `41.2 k`, and ranks as `0-3, 8`."""

import math
from collections.abc import Sequence

NOTHING = "-"  # an amount that is not known, in tables

# From the largest unit to the smallest. ASCII only: terminals of batch jobs are often not UTF-8.
SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))
BYTES = ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
COUNTS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def seconds_text(seconds: float | None) -> str:
    """Three significant digits: `12.3 ms`. `None` is `-`."""
    return _with_unit(seconds, SECONDS)


def nbytes_text(nbytes: float | None) -> str:
    """Three significant digits in powers of 1000: `1.5 GB`. `None` is `-`."""
    return _with_unit(nbytes, BYTES)


def count_text(count: float | None) -> str:
    """Three significant digits in powers of 1000: `41.2 k`. `None` is `-`."""
    return _with_unit(count, COUNTS)


def _with_unit(amount: float | None, units: Sequence[tuple[float, str]]) -> str:
    if amount is None:
        return NOTHING
    if not math.isfinite(amount):
        return str(amount)
    # Rounded first: 999.7e-6 s are 1 ms and not 1e+03 us.
    rounded = float(f"{abs(amount):.3g}")
    size, unit = next((u for u in units if rounded >= u[0]), units[-1])
    digits = f"{rounded / size:.3g}" if rounded < 1000 * size else f"{rounded / size:.0f}"
    return f"{'-' if amount < 0 else ''}{digits} {unit}".strip()


def clock_text(seconds: float) -> str:
    """Time left or gone: `1:32`, `2:05:09`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def ranks_text(ranks: Sequence[int]) -> str:
    """Runs of neighbours joined: (0, 1, 2, 3, 8) is `0-3, 8`."""
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs(ranks))


def runs(ranks: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of each run of neighbouring ranks, ascending."""
    found: list[tuple[int, int]] = []
    for rank in sorted(ranks):
        if found and found[-1][1] in (rank, rank - 1):
            found[-1] = found[-1][0], rank
        else:
            found.append((rank, rank))
    return found
