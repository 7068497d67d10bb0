"""Schedules as the CSV files of PyTorch's `torch.distributed.pipelining`.

What `PipelineScheduleMulti._dump_csv` writes and `_load_csv` reads (format `compute_only`): a row
for each rank, a cell for each tick, empty where the rank waits. What an action needs stands in an
earlier column, as PyTorch's runtime wants it: in each tick a rank receives what its neighbours made
in it. A cell is an action as here, but for the letters of the backward pass: `B` is all of it, `I`
and `W` are its halves.

    0F0,0F1,,0I0,0W0,0I1,0W1
    ,1F0,1I0,1F1,1I1,1W0,1W1
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator

from hpc_alpa.errors import ScheduleError
from hpc_alpa.schedule.action import Action, Pass, Schedule
from hpc_alpa.schedule.replay import replay

_CELL = re.compile(r"(\d+)([FBIW])(\d+)")
_TOGETHER = re.compile(r"\((.*)\)OVERLAP_F_B")  # of DualPipeV: actions that PyTorch runs as one


def to_csv(schedule: Schedule) -> str:
    """The file's text; an action takes one tick. Raises ScheduleError on a deadlock."""
    split = Pass.WEIGHT in schedule.passes
    found = replay(schedule)
    out = io.StringIO()
    writer = csv.writer(out)
    for row in schedule:
        cells = [""] * int(found.end)
        for a in row:
            letter = "I" if split and a.kind == Pass.BACKWARD else str(a.kind)
            cells[int(found.starts[a])] = f"{a.stage}{letter}{a.microbatch}"
        writer.writerow(cells)
    return out.getvalue()


def from_csv(text: str) -> Schedule:
    """The schedule of a file's text: what is idle is left out.

    Where a schedule has whole backward passes beside halves, a whole one becomes `B` and then `W`.

    Raises:
        ScheduleError: a cell is no action; names its row and column.
    """
    rows = [[*_cells(k, row)] for k, row in enumerate(csv.reader(io.StringIO(text)))]
    split = any(letter in "IW" for row in rows for _, letter, _ in row)

    def actions(stage: int, letter: str, m: int) -> Iterator[Action]:
        yield Action(stage, Pass.BACKWARD if letter == "I" else Pass(letter), m)
        if split and letter == "B":
            yield Action(stage, Pass.WEIGHT, m)

    return Schedule([a for cell in row for a in actions(*cell)] for row in rows)


def _cells(k: int, row: list[str]) -> Iterator[tuple[int, str, int]]:
    for column, cell in enumerate(row):
        together = _TOGETHER.fullmatch(cell.strip())
        for text in together[1].split(";") if together else [cell.strip()]:
            if not text:
                continue
            match = _CELL.fullmatch(text)
            if match is None:
                raise ScheduleError(
                    f"row {k}, column {column}: {text!r} is not an action: expected "
                    "<stage><F|B|I|W><microbatch>, as in 2F0, or nothing; messages and the "
                    "gathering of weights are not read (write the file as compute_only)"
                )
            yield int(match[1]), match[2], int(match[3])
