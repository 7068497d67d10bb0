"""Schedules as boxes over time: what each submesh runs when, one schedule below the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hpc_alpa.report.plots import figure as fig
from hpc_alpa.schedule import Pass, Replay, Schedule, pass_seconds, peak_on_submeshes, replay

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CATEGORY = {Pass.FORWARD: "forward", Pass.BACKWARD: "backward", Pass.WEIGHT: "weight"}
HEIGHT = 0.86  # of a box, of 1 per submesh
LABEL_POINTS = 7.0
PALER = 0.45  # of white in the boxes of each further stage of a submesh


@fig.styled
def schedule_plot(
    target: fig.Target,
    schedules: Mapping[str, Schedule],
    forward: float = 1.0,
    backward: float = 1.0,
    weight: float = 1.0,
) -> None:
    """What each submesh runs when, without messages' time.

    A box is an action with the number of its microbatch; of a submesh with several stages, later
    ones are paler. Marked lines end a schedule. All schedules have the same work.

    Args:
        schedules: by name.
        forward, backward, weight: seconds of all of a submesh's layers for one microbatch, the two
            halves of the backward pass apart.
    """
    if not any(any(row for row in s) for s in schedules.values()):
        raise fig.PlotError("no schedule to draw: none has an action.")
    runs = {name: _run(s, (forward, backward, weight)) for name, s in schedules.items()}
    longest = max(run.end for run in runs.values())
    rows = sum(len(s) for s in schedules.values())

    made = fig.figure(12, 0.9 + 0.55 * len(runs) + 0.24 * rows)
    panels = made.subplots(
        len(runs), sharex=True, squeeze=False, height_ratios=[len(s) for s in schedules.values()]
    )[:, 0]
    for axes, (name, run) in zip(panels, runs.items(), strict=True):
        submeshes = range(len(run.schedule))
        axes.set_xlim(0, longest * 1.002)
        axes.set_ylim(len(submeshes) - 0.45, -0.55)
        axes.set_yticks(submeshes, [f"submesh {k}" for k in submeshes])
        axes.tick_params(axis="y", length=0)
        axes.set_title(f"{name}: {_summary(run)}", weight="bold")
        axes.axvline(run.end, color=fig.INK, linewidth=0.8, linestyle=":")
    panels[-1].set_xlabel("time, in forward passes of a submesh")
    drawn = [p for p in Pass if any(p in s.passes for s in schedules.values())]
    made.legend(
        handles=[fig.key(_legend(p, schedules), *fig.CATEGORIES[CATEGORY[p]]) for p in drawn],
        loc="outside lower center",
        ncols=len(drawn),
    )
    made.draw_without_rendering()  # settles the layout, so that texts can be measured
    for axes, run in zip(panels, runs.values(), strict=True):
        _draw(axes, run)
    fig.save(made, target)


def _run(schedule: Schedule, seconds: tuple[float, float, float]) -> Replay:
    """A replay in which every submesh has the same work, however many stages it has."""
    each = max(1, schedule.num_stages // max(1, len(schedule)))
    of_pass = pass_seconds(schedule, *(s / seconds[0] / each for s in seconds))
    return replay(schedule, lambda action: of_pass[action.kind])


def _summary(run: Replay) -> str:
    each = max(1, run.schedule.num_stages // len(run.schedule))
    peak = max(peak_on_submeshes(run.schedule, Pass.BACKWARD)) / each
    held = (
        f", up to {peak:g} microbatches in flight" if Pass.BACKWARD in run.schedule.passes else ""
    )
    return f"{100 * run.bubble:.0f} % bubble{held}"


def _legend(kind: Pass, schedules: Mapping[str, Schedule]) -> str:
    halves = [Pass.WEIGHT in s.passes for s in schedules.values()]
    if kind == Pass.BACKWARD and any(halves):
        return "backward: input half" if all(halves) else "backward, or its input half"
    return "weight half" if kind == Pass.WEIGHT else CATEGORY[kind]


def _draw(axes: Axes, run: Replay) -> None:
    letters = fig.inches_per_unit(axes)[0] * 72 / (0.7 * LABEL_POINTS)  # per forward pass
    for y, row in enumerate(run.schedule):
        stages = sorted({a.stage for a in row})
        for a in row:
            start, length = run.starts[a], run.ends[a] - run.starts[a]
            base = fig.CATEGORIES[CATEGORY[a.kind]][0]
            colour = fig.paler(base, PALER * stages.index(a.stage) / max(1, len(stages) - 1))
            axes.broken_barh(
                [(start, length)],
                (y - HEIGHT / 2, HEIGHT),
                facecolor=colour,
                edgecolor="white",
                linewidth=0.5,
            )
            text = str(a.microbatch)
            if len(text) <= length * letters:
                axes.text(
                    start + length / 2,
                    y,
                    text,
                    ha="center",
                    va="center_baseline",
                    size=LABEL_POINTS,
                    color=fig.ink_on(colour),
                    clip_on=True,
                )
