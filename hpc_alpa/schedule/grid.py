"""A schedule as lines of text in which cells are marked, for messages."""

from __future__ import annotations

from collections.abc import Collection

from hpc_alpa.schedule.action import Schedule

AROUND = 6  # actions that are shown on each side of a marked one


def marked(schedule: Schedule, cells: Collection[tuple[int, int]]) -> str:
    """One line per submesh, the marked actions in brackets; far from them it is cut.

    Args:
        cells: (submesh, position in its row).
    """
    width = len(str(len(schedule) - 1))
    lines = []
    for k, row in enumerate(schedule):
        mine = sorted(i for j, i in cells if j == k)
        first = max(0, mine[0] - AROUND) if mine else 0
        last = min(len(row), mine[-1] + AROUND + 1) if mine else min(len(row), 2 * AROUND + 1)
        shown = [f"[{row[i]}]" if i in mine else str(row[i]) for i in range(first, last)]
        before, after = ["..."] * (first > 0), ["..."] * (last < len(row))
        lines.append(f"submesh {k:{width}}: {' '.join([*before, *shown, *after])}")
    return "\n".join(lines)
