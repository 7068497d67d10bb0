"""The timelines of a step: what each rank did when, predicted above measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hpc_alpa.report.plots import figure as fig
from hpc_alpa.report.units import seconds_text
from hpc_alpa.simulate.timeline import Event, Timeline, lanes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LANES = {"compute": (-0.42, 0.5), "communication": (0.1, 0.3)}  # top and height, of 1 per rank
LABEL_POINTS = 7.0  # size of the text inside the boxes
MOST_RANKS = 32  # a lane needs some pixels: of more ranks, as many are shown, evenly chosen


@fig.styled
def timeline_plot(
    target: fig.Target, predicted: Timeline | None, measured: Timeline | None
) -> None:
    """Predicted above measured on one axis of time, each from its own first event.

    Each rank computes above and communicates below. Boxes are coloured by category.
    """
    shown = [t.aligned() for t in (predicted, measured) if t is not None and t.events]
    if not shown:
        raise fig.PlotError("no timeline to draw: neither has an event.")
    ranks = sorted({rank for timeline in shown for rank in timeline.ranks})
    chosen = [ranks[i * len(ranks) // MOST_RANKS] for i in range(MOST_RANKS)]
    ranks = ranks if len(ranks) <= MOST_RANKS else chosen
    looks = fig.looks(e.category for timeline in shown for e in timeline.events)
    longest = max(timeline.makespan for timeline in shown)
    scale, unit = (1e3, "ms") if longest < 1 else (1.0, "s")

    made = fig.figure(12, 1.4 + len(shown) * (0.5 + 0.42 * len(ranks)))
    panels = made.subplots(len(shown), sharex=True, squeeze=False)[:, 0]
    for axes, timeline in zip(panels, shown, strict=True):
        axes.set_xlim(0, longest * scale * 1.005 or 1)
        axes.set_title(f"{timeline.origin}: {seconds_text(timeline.makespan)}", weight="bold")
        axes.set_yticks(range(len(ranks)), [f"rank {rank}" for rank in ranks])
        axes.set_ylim(len(ranks) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color="#EEEEEE")
        axes.set_axisbelow(True)
        axes.axvline(timeline.makespan * scale, color=fig.INK, linewidth=0.8, linestyle=":")
    panels[-1].set_xlabel(f"time ({unit})")
    made.legend(
        handles=[fig.key(name, *look) for name, look in looks.items()],
        loc="outside lower center",
        ncols=min(8, len(looks)),
    )
    made.draw_without_rendering()  # settles the layout, so that texts can be measured
    for axes, timeline in zip(panels, shown, strict=True):
        for i, rank in enumerate(ranks):
            events = [e for e in timeline.events if e.rank == rank]
            _draw_rank(axes, i, events, looks, scale)
    fig.save(made, target)


def _draw_rank(
    axes: Axes, y: int, events: Sequence[Event], looks: Mapping[str, tuple[str, str]], scale: float
) -> None:
    """The two lanes of a rank at `y`; events of one stream at the same time share its height."""
    letters = fig.inches_per_unit(axes)[0] * 72 / (0.7 * LABEL_POINTS)  # per unit of time
    placed = lanes(events)
    for (rank, stream, lane), mine in placed.items():
        top, height = LANES[stream]
        height /= sum((rank, stream) == key[:2] for key in placed)
        top += y + lane * height
        for category, (colour, hatch) in looks.items():
            axes.broken_barh(
                [(e.start * scale, e.duration * scale) for e in mine if e.category == category],
                (top, height),
                facecolor=colour,
                hatch=hatch,
                edgecolor="white",
                linewidth=0.4,
            )
        for event in mine:
            if lane == 0 and len(event.name) <= event.duration * scale * letters:
                axes.text(
                    (event.start + event.duration / 2) * scale,
                    top + height / 2,
                    event.name,
                    ha="center",
                    va="center_baseline",
                    size=LABEL_POINTS,
                    color=fig.ink_on(looks[event.category][0]),
                    clip_on=True,
                )
