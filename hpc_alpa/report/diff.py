"""[PlanDiff] -> text for people: what two plans decide differently, and what each expects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from hpc_alpa.plan.diff import Differs, PlanDiff, Predicted
from hpc_alpa.report.units import NOTHING, nbytes_text, seconds_text

MOST = 12  # lines of one kind
UNITS: dict[str, Callable[[float | None], str]] = {
    "": lambda number: NOTHING if number is None else f"{number:g}",
    "bytes": nbytes_text,
    "seconds": seconds_text,
}


def diff_text(found: PlanDiff) -> str:
    """What differs, kind by kind; equal plans say so."""
    lines = ["the plans decide the same"] if found.equal else []
    moved = [f"{m.operator}: {_change(m.before, m.after)}, {m.count}x" for m in found.strategies]
    for name, texts in (
        ("layout", _lines(found.layout)),
        ("inputs", _lines(found.inputs)),
        ("strategies", moved),
        ("conversions", _lines(found.conversions)),
        ("held copies", _lines(found.held)),
    ):
        lines += _section(name, texts)
    lines += _section("predicted", [_predicted(p) for p in found.predicted])
    return "\n".join(lines)


def _section(name: str, texts: Sequence[str]) -> Iterator[str]:
    if texts:
        yield f"{name} ({len(texts)})" if name != "predicted" else name
    yield from (f"  {text}" for text in texts[:MOST])
    if len(texts) > MOST:
        yield f"  and {len(texts) - MOST} more"


def _lines(found: Sequence[Differs]) -> list[str]:
    width = max((len(d.what) for d in found[:MOST]), default=0)
    return [f"{d.what:{width}}  {_change(d.before, d.after)}" for d in found]


def _change(before: str, after: str) -> str:
    return f"{before or NOTHING} -> {after or NOTHING}"


def _predicted(p: Predicted) -> str:
    text = UNITS[p.unit]
    if p.before == p.after:
        return f"{p.what:24}{text(p.before)}"
    more = ""
    if p.before and p.after is not None and p.unit:
        more = f" ({100 * (p.after / p.before - 1):+.3g} %)"
    return f"{p.what:24}{text(p.before)} -> {text(p.after)}{more}"
