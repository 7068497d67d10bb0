"""Pictures: they are drawn without a display, hold what they should, and fail by name."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpc_alpa.errors import HpcAlpaError
from hpc_alpa.report.plots import PlotError, loss_plot, plan_plot, timeline_plot
from hpc_alpa.report.plots.figure import CATEGORIES, OTHERS, ink_on, looks
from hpc_alpa.report.plots.loss import _smooth
from hpc_alpa.report.rows import StageRow
from hpc_alpa.simulate.timeline import Event, Timeline
from tests.test_timeline_events import random_events

matplotlib = pytest.importorskip("matplotlib")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are saved from here on."""
    from hpc_alpa.report.plots import figure

    figures: list[Any] = []
    save = figure.save

    def save_and_keep(made: Any, target: Any) -> None:
        figures.append(made)
        save(made, target)

    monkeypatch.setattr(figure, "save", save_and_keep)
    return figures


def _texts(figure: Any) -> list[str]:
    from matplotlib.text import Text

    return [t.get_text() for t in figure.findobj(Text) if t.get_visible()]


def _image(path: Path) -> Any:
    from matplotlib.image import imread

    return imread(path)[..., :3]


STAGES = (
    StageRow(0, (0, 1), (1, 2), ("embed", "layer 0"), {"w1": "RS1"}, {}, 0.0123, None, 1.5e9),
    StageRow(1, (2, 4), (2,), ("head",), {f"weight {i}": "RR" for i in range(3)}),
    StageRow(2, (3,), (1,), ()),
)


def test_loss_plot(tmp_path: Path, drawn: list[Any]) -> None:
    path = tmp_path / "loss.png"
    losses = [8.0 - 0.05 * i for i in range(100)]
    loss_plot(path, list(range(100)), losses, {50: 5.5, 99: 3.2}, unigram=4.77, bigram=3.49)
    texts = _texts(drawn[0])
    for text in ("unigram entropy 4.77", "bigram entropy 3.49", "3.20", "step", "bits per byte"):
        assert text in texts
    low, high = drawn[0].axes[0].get_ylim()
    assert low < 3.2 and high > 8
    image = _image(path)
    assert image.shape[1] >= 1000 and (image[0, 0] == 1).all()  # a light background
    assert 0.02 < (image < 0.9).any(axis=-1).mean() < 0.5


@pytest.mark.parametrize("losses", [[2.5], [float("nan")] * 3, [1.0, float("inf"), 3.0]])
def test_loss_plot_of_short_and_diverged_runs(tmp_path: Path, losses: list[float]) -> None:
    loss_plot(tmp_path / "loss.png", range(len(losses)), losses)


def test_smoothing_is_a_mean_without_lag() -> None:
    line = [3.0 * i for i in range(200)]
    assert _smooth(line) == pytest.approx(line)
    noise = np.random.default_rng(0).normal(size=800)
    assert np.std(_smooth(list(noise))) < 0.35


def test_timeline_plot(tmp_path: Path, drawn: list[Any]) -> None:
    predicted = Timeline(random_events(1, 60), "predicted")
    late = tuple(Event(5, "compute", "0F0", "forward", 3 + i, 0.9) for i in range(2))
    timeline_plot(tmp_path / "timeline.png", predicted, Timeline(late, "measured"))
    texts = _texts(drawn[0])
    for text in ("predicted: ", "measured: 1.9 s", "rank 0", "rank 5", "time (s)", "0F0"):
        assert any(t.startswith(text) for t in texts)
    first, second = drawn[0].axes
    assert first.get_xlim() == second.get_xlim() and first.get_xlim()[1] > 1.9
    legend = [t.get_text() for t in drawn[0].legends[0].get_texts()]
    assert legend == ["forward", "all_reduce"]
    boxes = sum(len(c.get_paths()) for c in first.collections)
    assert boxes == len(predicted.events)


def test_timeline_plot_of_one_timeline_and_many_ranks(tmp_path: Path, drawn: list[Any]) -> None:
    events = tuple(Event(r, "compute", "0F0", "forward", 0, 0.1) for r in range(300))
    timeline_plot(tmp_path / "timeline.png", None, Timeline(events, "measured"))
    assert len(drawn[0].axes) == 1
    assert sum(t.startswith("rank ") for t in _texts(drawn[0])) == 32
    assert max(drawn[0].get_size_inches()) < 40


def test_events_of_one_stream_at_the_same_time_are_both_seen(
    tmp_path: Path, drawn: list[Any]
) -> None:
    events = tuple(
        Event(0, "communication", kind, kind, start, 1.0)
        for kind, start in (("send", 0.0), ("recv", 0.5), ("all_reduce", 2.0))
    )
    timeline_plot(tmp_path / "timeline.png", Timeline(events, "predicted"), None)
    boxes = [p.get_extents() for c in drawn[0].axes[0].collections for p in c.get_paths()]
    assert len(boxes) == 3
    for i, one in enumerate(boxes):
        for other in boxes[:i]:
            wide = min(one.x1, other.x1) - max(one.x0, other.x0)
            high = min(one.y1, other.y1) - max(one.y0, other.y0)
            assert min(wide, high) < 1e-9


def test_plan_plot(tmp_path: Path, drawn: list[Any]) -> None:
    plan_plot(tmp_path / "plan.png", STAGES, title="cost $5 and $6")
    texts = _texts(drawn[0])
    for text in (
        "stage 0  mesh 1x2",
        "12.3 ms, 1.5 GB",
        "RS1  w1",
        "RR  weight 2",
        "cost $5 and $6",
    ):
        assert text in texts
    for text in ("rank 0", "rank 4", "embed", "layer 0", "head"):
        assert text in texts
    from matplotlib.patches import Rectangle

    boxes = [p for p in drawn[0].axes[0].patches if isinstance(p, Rectangle)]
    spans = [(b.get_x(), b.get_y(), b.get_width(), b.get_height()) for b in boxes]
    whole = [tuple(round(v) for v in span) for span in spans]
    assert whole == [(0, 0, 2, 2), (2, 2, 1, 1), (2, 4, 1, 1), (3, 3, 1, 1)]


def test_ranks_of_a_stage_that_communicate_differently_share_its_box(
    tmp_path: Path, drawn: list[Any]
) -> None:
    rows = [StageRow(0, (r,), (2,), ("a", "b"), {"w": "S0"}, {"send": r}) for r in (0, 1)]
    plan_plot(tmp_path / "plan.png", rows)
    assert len(drawn[0].axes[0].patches) == 1 and _texts(drawn[0]).count("S0  w") == 1


def test_plan_plot_says_what_it_leaves_out(tmp_path: Path, drawn: list[Any]) -> None:
    specs = {f"a weight with a long name {i}": "S0S1" for i in range(40)}
    rows = [StageRow(i, (i,), (1,), ("layer",) * 12, specs) for i in range(40)]
    plan_plot(tmp_path / "plan.png", rows)
    texts = _texts(drawn[0])
    assert any(t.startswith("... ") or t.endswith("..") for t in texts)
    assert max(drawn[0].get_size_inches()) < 25


def test_an_open_file_gets_a_png() -> None:
    draws: tuple[Callable[[io.BytesIO], None], ...] = (
        lambda to: loss_plot(to, [0], [1.0]),
        lambda to: plan_plot(to, STAGES),
        lambda to: timeline_plot(to, Timeline(random_events(0, 5), "predicted"), None),
    )
    for draw in draws:
        file = io.BytesIO()
        draw(file)
        assert file.getvalue().startswith(b"\x89PNG")


def test_nothing_to_draw_is_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(PlotError, match="2 steps and 0 losses"):
        loss_plot(tmp_path / "a.png", [0, 1], [])
    with pytest.raises(PlotError, match="no timeline to draw"):
        timeline_plot(tmp_path / "a.png", None, Timeline((), "measured"))
    with pytest.raises(PlotError, match="it has no stage"):
        plan_plot(tmp_path / "a.png", [])


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(PlotError, match=r"loss_plot needs Matplotlib.*'hpc-alpa\[plot\]'"):
        loss_plot(io.BytesIO(), [0], [1.0])
    assert issubclass(PlotError, HpcAlpaError)


def test_the_import_is_lazy_and_drawing_needs_no_display() -> None:
    """Neither pyplot nor MPLBACKEND has a say: a batch job has no display and odd settings."""
    code = (
        "import io, sys; from hpc_alpa.report import plots, tables, progress;"
        "assert 'matplotlib' not in sys.modules;"
        "plots.loss_plot(io.BytesIO(), [0], [1.0]);"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    environment = {k: v for k, v in os.environ.items() if k != "DISPLAY"} | {"MPLBACKEND": "TkAgg"}
    subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=Path(__file__).parents[1],
        check=True,
        timeout=60,
    )


def test_colours_are_told_apart_and_texts_read() -> None:
    styles = list(CATEGORIES.values())
    assert len(set(styles)) == len(styles)
    for colour in (*OTHERS, *(colour for colour, _ in styles)):
        assert _contrast(colour, ink_on(colour)) > 3.5
    found = looks(["zeta", "send", "alpha", "forward"])
    assert list(found) == ["forward", "send", "alpha", "zeta"]
    assert len(set(found.values())) == 4


def _contrast(*colours: str) -> float:
    """Contrast ratio of two colours (WCAG 2.1, Sec. 1.4.3)."""
    from matplotlib.colors import to_rgb

    linear = [
        [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        for colour in colours
    ]
    low, high = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in linear)
    return (high + 0.05) / (low + 0.05)
