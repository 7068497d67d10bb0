"""Tables for people: facts by name, and a plan with what was predicted and what was measured.

They look the same in a terminal, in a log file and in a pipe, and use ASCII alone where the stream
cannot write more.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import IO, Literal

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from hpc_alpa.report.rows import StageRow
from hpc_alpa.report.units import NOTHING, nbytes_text, ranks_text, seconds_text

FILE_WIDTH = 120  # columns of a table where no terminal says how wide it is

Align = Literal["left", "right"]


def table(
    title: str, columns: Mapping[str, Align], rows: Iterable[Sequence[str]], caption: str = ""
) -> Table:
    """A table of texts: alignment by header, one sequence of cells per row.

    Long cells fold, and nothing is ever cut off or read as markup.
    """
    made = Table(
        title=Text(title, style="bold"),
        caption=Text(caption) if caption else None,
        box=box.ROUNDED,
        title_justify="left",
        caption_justify="left",
        header_style="bold",
        show_lines=True,
    )
    for header, align in columns.items():
        made.add_column(Text(header), justify=align, overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def machine_table(facts: Mapping[str, str], title: str = "machine") -> Table:
    """Two columns, name and fact: a machine, or the results of a run."""
    made = table(title, {"": "left", " ": "left"}, facts.items())
    made.show_header, made.show_lines = False, False
    return made


def _lines(parts: Iterable[str]) -> str:
    return "\n".join(parts) or NOTHING


def _pairs(texts: Mapping[str, str]) -> str:
    """Names and values as two columns inside a cell."""
    width = max(map(len, texts), default=0)
    return _lines(f"{name:{width}} {value}" for name, value in texts.items())


def _place(row: StageRow) -> str:
    mesh = "x".join(map(str, row.mesh))
    return _lines((f"stage {row.stage}", f"ranks {ranks_text(row.ranks)}", f"mesh {mesh}"))


PLAN_COLUMNS: Sequence[tuple[str, Align, Callable[[StageRow], str]]] = (
    ("stage", "left", _place),
    ("layers", "left", lambda row: _lines(row.layers)),
    ("main weights", "left", lambda row: _pairs(row.specs)),
    (
        "collectives\nper step",
        "left",
        lambda row: _pairs({kind: str(number) for kind, number in row.collectives.items()}),
    ),
    (
        "predicted:\nbusy\nmemory",
        "right",
        lambda row: f"{seconds_text(row.predicted_seconds)}\n{nbytes_text(row.predicted_bytes)}",
    ),
    (
        "measured:\nbusy\nmemory",
        "right",
        lambda row: f"{seconds_text(row.measured_seconds)}\n{nbytes_text(row.measured_bytes)}",
    ),
)


def plan_table(rows: Sequence[StageRow], title: str = "plan", caption: str = "") -> Table:
    """One row per stage; what is not known yet is `-`.

    Busy is the time per step in which the stage's ranks work; memory is the peak of one rank.
    """
    columns = {header: align for header, align, _ in PLAN_COLUMNS}
    cells = ([cell(row) for _, _, cell in PLAN_COLUMNS] for row in rows)
    return table(title, columns, cells, caption)


def show(what: RenderableType, file: IO[str] | None = None) -> None:
    """Write a table or a text to `file`, standard output if `None`.

    A stream that is no terminal gets `FILE_WIDTH` columns, unless COLUMNS says otherwise. What the
    stream's encoding lacks becomes `?`: a name from a user must not end the run.
    """
    file = sys.stdout if file is None else file
    known = file.isatty() or "COLUMNS" in os.environ
    console = Console(file=file, width=None if known else FILE_WIDTH, highlight=False)
    with console.capture() as capture:
        console.print(what)
    text = "\n".join(line.rstrip(" ") for line in capture.get().split("\n"))
    file.write(text.encode(console.encoding, errors="replace").decode(console.encoding))
    file.flush()
