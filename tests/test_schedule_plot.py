"""The picture of schedules."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from hpc_alpa.report.plots import PlotError, schedule_plot
from hpc_alpa.report.plots.figure import CATEGORIES, paler
from hpc_alpa.schedule import SCHEDULES, Pass, Schedule, pass_seconds, replay

pytest.importorskip("matplotlib")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are saved from here on."""
    from hpc_alpa.report.plots import figure

    figures: list[Any] = []
    monkeypatch.setattr(figure, "save", lambda made, target: figures.append(made))
    return figures


def test_boxes_are_the_actions_in_time(drawn: list[Any], tmp_path: Path) -> None:
    shown = {name: SCHEDULES[name](2, 3) for name in ("1f1b", "zb_h1", "zb_v")}
    schedule_plot(tmp_path / "s.png", shown, forward=2.0, backward=3.0, weight=1.0)
    [made] = drawn
    for axes, (name, schedule) in zip(made.axes, shown.items(), strict=True):
        parts = schedule.num_stages // 2
        seconds = pass_seconds(schedule, *(s / 2 / parts for s in (2.0, 3.0, 1.0)))
        run = replay(schedule, lambda a, of=seconds: of[a.kind])  # type: ignore[misc]
        title = axes.get_title(loc="left")
        assert title.startswith(f"{name}: {100 * run.bubble:.0f} % bubble, up to 2 microbatches")
        boxes = [p.get_extents() for c in axes.collections for p in c.get_paths()]
        for row, actions in enumerate(schedule):
            mine = sorted((b.x0, b.x1) for b in boxes if b.y0 < row < b.y1)
            expected = sorted((run.starts[a], run.ends[a]) for a in actions)
            assert mine == [pytest.approx(e) for e in expected]
        texts = [t.get_text() for t in axes.texts]
        assert sorted(texts) == sorted(str(a.microbatch) for row in schedule for a in row)
        assert axes.lines[0].get_xdata()[0] == pytest.approx(run.end)


def test_later_stages_of_a_submesh_are_paler(drawn: list[Any]) -> None:
    schedule_plot(io.BytesIO(), {"v": SCHEDULES["zb_v"](1, 1)})
    colours = [tuple(c.get_facecolor()[0][:3]) for c in drawn[0].axes[0].collections]
    order = [str(a) for a in SCHEDULES["zb_v"](1, 1)[0]]
    assert order == ["0F0", "1F0", "1B0", "1W0", "0B0", "0W0"]
    whites = dict(zip(order, map(sum, colours), strict=True))
    assert all(whites[f"1{p}0"] > whites[f"0{p}0"] for p in Pass)
    assert paler("#332288", 0.0) == "#332288" and paler("#332288", 1.0) == "#FFFFFF"


def test_the_legend_names_the_passes(drawn: list[Any]) -> None:
    for shown, names in (
        (["1f1b"], ["forward", "backward"]),
        (["zb_h1"], ["forward", "backward: input half", "weight half"]),
        (["1f1b", "zb_h1"], ["forward", "backward, or its input half", "weight half"]),
        (["inference"], ["forward"]),
    ):
        schedule_plot(io.BytesIO(), {name: SCHEDULES[name](2, 2) for name in shown})
        assert [t.get_text() for t in drawn[-1].legends[0].get_texts()] == names
    assert len({CATEGORIES[k] for k in ("forward", "backward", "weight")}) == 3


def test_nothing_to_draw_is_named() -> None:
    for empty in ({}, {"none": Schedule([])}):
        with pytest.raises(PlotError, match="no schedule to draw"):
            schedule_plot(io.BytesIO(), empty)
