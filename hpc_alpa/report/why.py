"""[Why] -> text for people: how a value lies, what else there was, and what it would bring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from hpc_alpa.plan.changes import Change, Conversion
from hpc_alpa.plan.excluded import Excluded
from hpc_alpa.plan.why import Alternative, Limit, Why
from hpc_alpa.report.units import nbytes_text, seconds_text

IN_FULL = 3  # alternatives of which is said what they bring
MOST_LINES = 4  # of changes, and of conversions that come or go
MOST_NAMES = 4
MOST_CHOICES = 6  # that are left out for one reason


def why_text(why: Why, where: str = "") -> str:
    """Why a value lies as it does.

    Args:
        where: of which stage and mesh is spoken.
    """
    lines = [f"{why.value} lies as {why.spec}" + (f", {where}" if where else "")]
    if why.made_by:
        lines += [f"  made by      {why.made_by}", f"  choice       {why.choice}"]
    if why.with_it:
        lines.append(f"  with it      {_some(why.with_it)}")
    if why.memory is not None:
        lines.append(f"  memory       {_limit(why.memory)}")
    own, *others = why.alternatives
    lines += ["", f"  {own.choice}"]
    lines.append(f"    the plan's: {seconds_text(own.seconds)}, {nbytes_text(own.nbytes)}")
    for rank, a in enumerate(others):
        lines += ["", *_alternative(a, why, rank < IN_FULL)]
    if why.excluded:
        lines += ["", "  left out", *(f"    {_left_out(e)}" for e in why.excluded)]
    return "\n".join(lines)


def _limit(m: Limit) -> str:
    text = f"{nbytes_text(m.nbytes)} of {nbytes_text(m.limit)} at {m.point}"
    if not m.binds:
        return f"{text}; the limit does not bind"
    each = f", {seconds_text(1e6 * m.seconds_per_byte)} per MB" if m.seconds_per_byte else ""
    return f"{text}; the limit binds and costs {seconds_text(m.seconds)} a step{each}"


def _alternative(a: Alternative, why: Why, in_full: bool) -> Iterator[str]:
    yield f"  {a.choice}"
    limit = why.memory.limit if why.memory is not None else None
    if a.seconds is not None:
        yield f"    best plan with it: {_more(a.seconds, why.seconds)}, {nbytes_text(a.nbytes)}"
    else:
        yield f"    {a.why_not}"
    if a.alone is None:
        yield "    all else as it is: not possible"
    else:
        too_much = limit is not None and (a.alone_bytes or 0.0) > limit * (1 + 1e-9)
        text = f"{_more(a.alone, why.seconds)}, {nbytes_text(a.alone_bytes)}"
        yield f"    all else as it is: {text}{', more than there is' if too_much else ''}"
    if in_full:
        yield from _list("changes", _changes(a.changes))
        yield from _list("comes", _conversions(a.comes))
        yield from _list("goes", _conversions(a.goes))


def _more(seconds: float, than: float) -> str:
    if abs(seconds - than) <= 1e-9 * than:
        return "as many seconds"
    return f"{'+' if seconds > than else ''}{seconds_text(seconds - than)}"


def _list(name: str, lines: Sequence[str]) -> Iterator[str]:
    for k, line in enumerate(lines[:MOST_LINES]):
        yield f"    {'' if k else name:8} {line}"
    if len(lines) > MOST_LINES:
        yield f"    {'':8} and {len(lines) - MOST_LINES} more"


def _alike(value: str) -> str:
    """Equal layers have one name: `layers/*/w`, and lines without their layer's number."""
    first, _, rest = value.partition("/")
    if first.isdigit():
        return rest
    return "/".join("*" if part.isdigit() else part for part in value.split("/"))


def _changes(changes: Sequence[Change]) -> list[str]:
    """Equal changes of equal layers, and of one line, are one."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for c in changes:
        groups.setdefault((_alike(c.value), c.before, c.after), []).append(c.value)
    return [
        f"{v if len(of) > 1 else of[0]} {a} -> {b}{_times(len(of))}"
        for (v, a, b), of in groups.items()
    ]


def _conversions(found: Sequence[Conversion]) -> list[str]:
    """Equal conversions of equal layers, and of one line, are one; their seconds are summed."""
    groups: dict[Conversion, list[Conversion]] = {}
    for c in found:
        same = replace(c, value=_alike(c.value), seconds=0.0, nbytes=0.0)
        groups.setdefault(same, []).append(c)
    return [
        f"{' + '.join(c.kinds)} of {c.value if len(of) > 1 else of[0].value}, "
        f"{c.source} -> {c.target} in {c.window}"
        f"{_times(c.times * len(of))}: {seconds_text(sum(x.seconds for x in of))}, "
        f"{nbytes_text(sum(x.nbytes for x in of))}"
        for c, of in groups.items()
    ]


def _times(number: int) -> str:
    return f", {number} times" if number > 1 else ""


def _left_out(e: Excluded) -> str:
    more = len(e.choices) - MOST_CHOICES
    choices = " ".join(e.choices[:MOST_CHOICES]) + (f" and {more} more" if more > 0 else "")
    return f"{choices}: {e.reason}"


def _some(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
