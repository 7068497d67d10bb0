"""Time against memory, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from hpc_alpa.report.rows import FrontierPoint
from hpc_alpa.report.tables import table
from hpc_alpa.report.units import nbytes_text, ranks_text, seconds_text

COLUMNS = (
    "limit",
    "step",
    "memory",
    "micro-\nbatches",
    "recomputed\nlayers",
    "meshes",
    "collectives per step",
    "changed",
)


def frontier_table(points: Sequence[FrontierPoint], limit: float) -> Table:
    """One row per limit, from loose to tight; the limit that was asked for has a `*`."""
    made = table(
        "time against memory",
        {name: "left" if name in COLUMNS[4:] else "right" for name in COLUMNS},
        [
            (
                ("* " if p.limit == limit else "") + nbytes_text(p.limit),
                seconds_text(p.seconds),
                nbytes_text(p.peak_bytes),
                str(p.num_microbatches),
                ranks_text(p.recompute) or "none",
                " ".join(p.meshes),
                ", ".join(f"{n} {kind}" for kind, n in p.collectives.items()) or "none",
                _changed(p, points[k - 1] if k else None),
            )
            for k, p in enumerate(points)
        ],
        f"the limit of a device is {nbytes_text(limit)}; recomputed: layers made "
        "again in backward; changed: inputs and equations that lie otherwise than in the row above",
    )
    made.show_lines = False
    return made


def _changed(p: FrontierPoint, before: FrontierPoint | None) -> str:
    if before is None:
        return ""
    if p.plan == before.plan:
        return "the same plan"
    return f"{p.inputs} inputs, {p.strategies} equations"
