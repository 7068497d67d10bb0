"""What the order of a plan's devices gains, in a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpc_alpa.report.units import seconds_text


def placement_row(facts: Mapping[str, Any]) -> tuple[str, str]:
    """A label and a sentence.

    Args:
        facts: `search.placement.Placement.facts`.
    """
    order = "no order costs less" if facts["exact"] else "no better order was found"
    if not facts["moved"]:
        spent = seconds_text(facts["before_seconds"])
        return "placement", f"devices in their order: a rank communicates {spent}, {order}"
    before, after = (seconds_text(facts[f"{when}_seconds"]) for when in ("before", "after"))
    return (
        "placement",
        f"{facts['moved']} of {facts['ranks']} ranks on other devices: a rank communicates {after} "
        f"instead of {before} ({order}), a step is {100 * facts['gain']:.1f} % shorter",
    )
