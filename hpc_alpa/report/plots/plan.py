"""The stages of a plan as boxes over layers and ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hpc_alpa.report.plots import figure as fig
from hpc_alpa.report.rows import StageRow
from hpc_alpa.report.units import nbytes_text, runs, seconds_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#D7ECF7", "#DDF0DE", "#F7EBC8", "#F3DBE2", "#E3DCF0", "#E6E6E6")  # light, by stage
EDGES = ("#4B9CC7", "#5A9E61", "#B8972F", "#B5637C", "#7A66AD", "#777777")
POINTS = 8.0  # size of the monospaced text in the boxes
LINE = POINTS * 1.35 / 72  # inches
BOX, LAYER, RANK = 2.2, 0.9, 0.3  # inches: least width of a stage and a layer, height of a rank
MOST_WIDTH, MOST_HEIGHT = 18.0, 9.0
MOST_LETTERS, LETTER = 24, 0.085  # of a layer's name below the axis, and inches of one
MOST_LABELS = 32  # ranks with a label, and a third of the layers with one


@fig.styled
def plan_plot(target: fig.Target, stages: Sequence[StageRow], title: str = "") -> None:
    """The stages of a plan: layers from left to right, ranks from top to bottom.

    A box holds the stage's mesh, predicted seconds and memory, and the specs of its main weights. A
    stage whose ranks are not neighbours has several boxes, the text in the first.
    """
    if not stages:
        raise fig.PlotError("no plan to draw: it has no stage.")
    stages = _merged(stages)
    ranks = sorted({rank for row in stages for rank in row.ranks})
    layers = [_cut(name, MOST_LETTERS) for row in stages for name in row.layers or ("",)]
    texts = [_text(row) for row in stages]
    width, height = _size(stages, texts, len(layers), len(ranks))
    longest = max(map(len, layers)) * LETTER
    crowded = longest > width / len(layers)

    made = fig.figure(width + 1.1, height + 1.1 + crowded * longest)
    axes = made.add_subplot()
    axes.set(xlim=(0, len(layers)), ylim=(len(ranks), 0))
    every = -(-len(ranks) // MOST_LABELS)
    axes.set_yticks(
        [i + 0.5 for i in range(0, len(ranks), every)], [f"rank {r}" for r in ranks[::every]]
    )
    named = range(0, len(layers), -(-len(layers) // (3 * MOST_LABELS)))
    axes.set_xticks(
        [i + 0.5 for i in named], [layers[i] for i in named], rotation=90 if crowded else 0
    )
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_title(title, weight="bold")
    made.draw_without_rendering()  # settles the layout, so that the boxes have their size
    left = 0
    for row, lines in zip(stages, texts, strict=True):
        right = left + (len(row.layers) or 1)
        spans = runs([ranks.index(rank) for rank in row.ranks])
        for first, last in spans:
            _box(axes, (left, right), (first, last + 1), row.stage % len(COLOURS))
        if spans:
            _write(axes, (left, right), (spans[0][0], spans[0][1] + 1), lines)
        left = right
    fig.save(made, target)


def _merged(rows: Sequence[StageRow]) -> list[StageRow]:
    """One row per stage: ranks that communicate differently hold the same layers."""
    found: dict[int, StageRow] = {}
    for row in rows:
        if (first := found.get(row.stage)) is not None:
            row = replace(first, ranks=(*first.ranks, *row.ranks))
        found[row.stage] = row
    return list(found.values())


def _text(row: StageRow) -> list[str]:
    """Lines of a stage's box; the first is its heading."""
    known = [
        seconds_text(row.predicted_seconds) if row.predicted_seconds is not None else "",
        nbytes_text(row.predicted_bytes) if row.predicted_bytes is not None else "",
    ]
    amounts = ", ".join(filter(None, known))
    mesh = "x".join(map(str, row.mesh))
    width = max(map(len, row.specs.values()), default=0)
    # The spec comes first: a name that is too long loses its end.
    specs = [f"{spec:{width}}  {name}" for name, spec in row.specs.items()]
    return [f"stage {row.stage}  mesh {mesh}", *filter(None, [amounts]), *specs]


def _size(
    stages: Sequence[StageRow], texts: Sequence[Sequence[str]], num_layers: int, num_ranks: int
) -> tuple[float, float]:
    """Inches in which every stage's text fits, or the most that a page takes."""
    layer, rank = LAYER, RANK
    for row, lines in zip(stages, texts, strict=True):
        box = max(BOX, (max(map(len, lines)) + 2) * 0.6 * POINTS / 72)
        layer = max(layer, box / (len(row.layers) or 1))
        first, last = max(runs(row.ranks)[:1], default=(0, 0))
        rank = max(rank, (len(lines) + 1) * LINE / (last - first + 1))
    return min(layer * num_layers, MOST_WIDTH), min(rank * num_ranks, MOST_HEIGHT)


def _cut(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: max(0, letters - 2)] + ".."


def _box(axes: Axes, x: tuple[int, int], y: tuple[int, int], colour: int) -> None:
    """A rectangle with a thin line between its ranks."""
    from matplotlib.patches import Rectangle

    left, right, top, bottom = x[0] + 0.03, x[1] - 0.03, y[0] + 0.04, y[1] - 0.04
    axes.hlines(
        range(y[0] + 1, y[1]), left, right, EDGES[colour], linewidth=0.6, linestyle=":", alpha=0.6
    )
    axes.add_patch(
        Rectangle(
            (left, top),
            right - left,
            bottom - top,
            facecolor=COLOURS[colour],
            edgecolor=EDGES[colour],
            linewidth=1.2,
            zorder=0.5,
            clip_on=False,  # the border of the last box lies on that of the axes
        )
    )


def _write(axes: Axes, x: tuple[int, int], y: tuple[int, int], lines: Sequence[str]) -> None:
    """As many lines, as many letters of each, as the box holds; what is left out is counted."""
    wide, high = fig.inches_per_unit(axes)
    letters = int((x[1] - x[0]) * wide * 72 / (0.6 * POINTS)) - 3
    rows = max(1, int((y[1] - y[0]) * high / LINE - 0.5))
    if len(lines) > rows:
        lines = [*lines[: rows - 1], f"... {len(lines) - rows + 1} more"]
    for i, line in enumerate(lines):
        axes.text(
            x[0] + 0.03 + 0.07 / wide,
            y[0] + (0.06 + i * LINE) / high + 0.04,
            _cut(line, letters),
            family="DejaVu Sans Mono",
            size=POINTS,
            weight="bold" if i == 0 else "normal",
            va="top",
        )
