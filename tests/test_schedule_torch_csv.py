"""Schedules as PyTorch's CSV."""

import csv
import io
import re

import pytest

from hpc_alpa.errors import ScheduleError
from hpc_alpa.schedule import SCHEDULES, Schedule, check, from_csv, ticks, to_csv

NAMES = sorted(SCHEDULES)


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(name: str) -> None:
    for p, b in ((1, 1), (2, 3), (3, 8), (4, 5)):
        schedule = SCHEDULES[name](p, b)
        text = to_csv(schedule)
        assert from_csv(text) == schedule
        rows = list(csv.reader(io.StringIO(text)))
        assert {len(row) for row in rows} == {ticks(schedule)}


@pytest.mark.parametrize("name", [n for n in NAMES if SCHEDULES[n].trains])
def test_pytorch_takes_what_is_written(name: str) -> None:
    """What PyTorch's validation asks of the cells, and its runtime of the columns, read plainly.

    Every stage on one row, with B or with I and W for each microbatch; what comes from another
    stage, or from the stage's own earlier pass, stands in an earlier column.
    """
    for p, b in ((1, 2), (2, 3), (3, 8), (4, 4)):
        rows = [line.split(",") for line in to_csv(SCHEDULES[name](p, b)).splitlines()]
        at: dict[tuple[int, str, int], int] = {}
        where: dict[int, int] = {}
        for rank, row in enumerate(rows):
            for column, cell in enumerate(row):
                if cell:
                    stage, letter, m = re.fullmatch(r"(\d+)([FBIW])(\d+)", cell).groups()  # type: ignore[union-attr]
                    assert where.setdefault(int(stage), rank) == rank
                    assert at.setdefault((int(stage), letter, int(m)), column) == column
        last = max(where)
        letters = {letter for _, letter, _ in at}
        assert letters in ({"F", "B"}, {"F", "I", "W"})
        back = "B" if "B" in letters else "I"
        for stage in where:
            for m in range(b):
                forward, backward = at[stage, "F", m], at[stage, back, m]
                assert forward < backward
                assert stage == 0 or at[stage - 1, "F", m] < forward
                assert stage == last or at[stage + 1, back, m] < backward
                assert back == "B" or backward < at[stage, "W", m]


def test_the_format() -> None:
    """A row per rank, a cell per tick; halves of a backward pass are I and W."""
    assert to_csv(SCHEDULES["1f1b"](2, 2)) == ("0F0,0F1,,0B0,,0B1\r\n,1F0,1B0,1F1,1B1,\r\n")
    assert to_csv(SCHEDULES["zb_h1"](2, 2)) == (
        "0F0,0F1,,0I0,0W0,0I1,0W1\r\n,1F0,1I0,1F1,1I1,1W0,1W1\r\n"
    )


def test_several_stages_of_a_rank_and_whole_passes_beside_halves() -> None:
    """Stages may lie anyhow; a cell may hold two actions that PyTorch overlaps (DualPipeV)."""
    found = from_csv("0F0,0F1,2F0,2F1,,,2I0,2W0,2I1,2W1,0B0,0B1\n,1F0,1F1,3F0,3B0,3F1,3B1,1B0,1B1")
    assert found.placement == (0, 1, 0, 1)
    assert str(found[1][-1]) == "1W1", "one half makes all passes of the schedule halves"
    check(found)
    whole = from_csv("0F0,(0F1;0B0)OVERLAP_F_B,0I1,0W1")
    assert whole == Schedule.parse("0F0 0F1 0B0 0W0 0B1 0W1")


@pytest.mark.parametrize("cell", ["0X0", "0SEND_F1", "0UNSHARD", "F0", "0F"])
def test_cells_that_are_no_action_are_named(cell: str) -> None:
    with pytest.raises(ScheduleError, match=f"row 1, column 2: '{cell}' is not an action"):
        from_csv(f"0F0\n1F0,,{cell}")
