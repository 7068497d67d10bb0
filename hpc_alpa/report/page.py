"""The report as one HTML page that works from a file, offline: no script, nothing loaded.

Pictures are inside the page, and the timelines too, as a file to save and open in Perfetto. The
page's own policy forbids every request, so that a name in a plan cannot cause one.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

from hpc_alpa.report.plots import loss_plot, plan_plot, timeline_plot
from hpc_alpa.report.rows import StageRow
from hpc_alpa.report.tables import PLAN_COLUMNS
from hpc_alpa.report.units import seconds_text
from hpc_alpa.simulate.timeline import Timeline, to_chrome

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

STYLE = """
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem; background: #fff; color: #222;
       font: 16px/1.5 system-ui, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 1rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
img { max-width: 100%; height: auto; display: block; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: .6rem;
     margin: 0; }
dl div { border: 1px solid #ddd; border-radius: .4rem; padding: .5rem .8rem; }
dt { color: #666; font-size: .85rem; } dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { border-bottom: 1px solid #ddd; padding: .35rem .9rem .35rem 0; text-align: left;
         vertical-align: top; white-space: pre; }
td { font-family: ui-monospace, "DejaVu Sans Mono", monospace; }
.right { text-align: right; }
pre { background: #f6f6f6; padding: .8rem; overflow: auto; max-height: 30rem; font-size: .8rem; }
a { color: #332288; }
"""


@dataclass(frozen=True)
class Run:
    """What a report is about. What is empty is left out of the page.

    Attributes:
        facts: results and machine, name to text, in the order shown.
        stages: the plan's stages, with what was measured.
        plan: the plan as it is kept in JSON.
        timelines: predicted, measured, or both.
        losses: training loss in bits per byte after each step.
        validation: bits per byte on the validation text, by step.
        unigram, bigram: entropies of the validation text.
    """

    title: str
    facts: Mapping[str, str] = field(default_factory=dict, hash=False)
    stages: tuple[StageRow, ...] = ()
    plan: Mapping[str, Any] = field(default_factory=dict, hash=False)
    timelines: tuple[Timeline, ...] = ()
    losses: tuple[float, ...] = ()
    validation: Mapping[int, float] = field(default_factory=dict, hash=False)
    unigram: float | None = None
    bigram: float | None = None


def page(run: Run) -> str:
    """The report as the text of one HTML page.

    Raises:
        PlotError: Matplotlib, which draws its pictures, is missing.
    """
    body = "\n".join(section for make in SECTIONS if (section := make(run)))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(run.title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<h1>{escape(run.title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def save(path: str | Path, run: Run) -> None:
    """Write the page, beside `path` and renamed when whole."""
    path = Path(path)
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    beside.write_text(page(run), encoding="utf-8")
    beside.replace(path)


def _facts(run: Run) -> str:
    facts = (
        f"<div><dt>{escape(name)}</dt><dd>{escape(fact)}</dd></div>"
        for name, fact in run.facts.items()
    )
    return f"<dl>{''.join(facts)}</dl>" if run.facts else ""


def _plan(run: Run) -> str:
    if not run.stages:
        return ""
    picture = _picture("Stages over layers and ranks", lambda to: plan_plot(to, run.stages))
    rows = [[cell(row) for _, _, cell in PLAN_COLUMNS] for row in run.stages]
    headers = [(header, align == "right") for header, align, _ in PLAN_COLUMNS]
    return f"<h2>Plan</h2>\n{picture}\n{_table(headers, rows)}"


def _loss(run: Run) -> str:
    if not run.losses:
        return ""
    steps = range(1, len(run.losses) + 1)
    return "<h2>Loss</h2>\n" + _picture(
        "Loss in bits per byte over the steps",
        lambda to: loss_plot(to, steps, run.losses, run.validation, run.unigram, run.bigram),
    )


def _timelines(run: Run) -> str:
    by_origin = {timeline.origin: timeline for timeline in run.timelines if timeline.events}
    if not by_origin:
        return ""
    picture = _picture(
        "What each rank does over a step",
        lambda to: timeline_plot(to, by_origin.get("predicted"), by_origin.get("measured")),
    )
    headers = [("rank", True), ("", False), *((name, True) for name in TIMES)]
    rows = [
        [str(rank), timeline.origin, *(seconds_text(of(timeline, rank)) for of in TIMES.values())]
        for rank in sorted({rank for timeline in by_origin.values() for rank in timeline.ranks})
        for timeline in by_origin.values()
        if rank in timeline.ranks
    ]
    trace = base64.b64encode(json.dumps(to_chrome(tuple(by_origin.values()))).encode()).decode()
    link = (
        f'<p><a download="timeline.json" href="data:application/json;base64,{trace}">'
        "timeline.json</a>, to open in Perfetto or chrome://tracing</p>"
    )
    return f"<h2>One step</h2>\n{picture}\n{link}\n{_table(headers, rows)}"


TIMES: Mapping[str, Callable[[Timeline, int], float]] = {
    "computes": lambda timeline, rank: timeline.busy[rank, "compute"],
    "communicates": lambda timeline, rank: timeline.busy[rank, "communication"],
    "of that exposed": lambda timeline, rank: timeline.exposed_communication[rank],
    "step": lambda timeline, rank: timeline.makespan,
}


def _json(run: Run) -> str:
    if not run.plan:
        return ""
    text = escape(json.dumps(run.plan, indent=1, ensure_ascii=False))
    return f"<h2>Plan file</h2>\n<details><summary>plan.json</summary><pre>{text}</pre></details>"


SECTIONS: Sequence[Callable[[Run], str]] = (_facts, _plan, _loss, _timelines, _json)


def _picture(meaning: str, draw: Callable[[BytesIO], None]) -> str:
    file = BytesIO()
    draw(file)
    pixels = int.from_bytes(file.getvalue()[16:20])  # the width in a PNG's first chunk
    data = base64.b64encode(file.getvalue()).decode()
    size = f'width="{pixels * 96 // 150}"'  # drawn at 150 dots per inch, shown at CSS's 96
    return f'<img alt="{escape(meaning)}" {size} src="data:image/png;base64,{data}">'


def _table(headers: Sequence[tuple[str, bool]], rows: Iterable[Sequence[str]]) -> str:
    """`headers`: text, and whether its column is aligned to the right."""

    def line(tag: str, cells: Sequence[str]) -> str:
        parts = (
            f"<{tag}{' class=right' if right else ''}>{escape(cell)}</{tag}>"
            for cell, (_, right) in zip(cells, headers, strict=True)
        )
        return f"<tr>{''.join(parts)}</tr>"

    head = line("th", [text for text, _ in headers])
    body = "\n".join(line("td", row) for row in rows)
    return f'<div class="wide"><table>\n{head}\n{body}\n</table></div>'
