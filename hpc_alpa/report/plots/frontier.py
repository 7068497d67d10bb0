"""Time against memory: the fastest step under each limit, and what is sent for it."""

from __future__ import annotations

from collections.abc import Sequence

from hpc_alpa.report.plots import figure as fig
from hpc_alpa.report.rows import FrontierPoint
from hpc_alpa.report.units import BYTES, SECONDS, nbytes_text

ROOM = 0.12  # around the points, of the range that they span


@fig.styled
def frontier_plot(
    target: fig.Target,
    points: Sequence[FrontierPoint],
    limit: float | None = None,
    title: str = "",
) -> None:
    """Seconds of a step over the memory of a device, above the collectives of each plan.

    Args:
        points: from loose limits to tight ones.
        limit: of the device that is planned for, drawn where it lies among the points.
    """
    if not points:
        raise fig.PlotError("no time against memory to draw: there is no point.")
    plans = {p.plan: p for p in reversed(points)}  # each plan once, tight to loose
    shown = sorted(plans.values(), key=lambda p: p.peak_bytes)
    bytes_size, bytes_unit = _unit(max(p.peak_bytes for p in shown), BYTES)
    size, unit = _unit(max(p.seconds for p in shown), SECONDS)
    x = [p.peak_bytes / bytes_size for p in shown]
    y = [p.seconds / size for p in shown]

    made = fig.figure(8, 6.4)
    above, below = made.subplots(2, 1, height_ratios=(3, 2))
    # A plan serves until the next one fits; between the points no plan is known.
    above.step(x, y, where="post", color=fig.LOSS, linewidth=1.4)
    above.plot(x, y, "o", color=fig.LOSS, markersize=5)
    for k, (a, b) in enumerate(zip(x, y, strict=True)):
        above.annotate(str(k + 1), (a, b), xytext=(4, 5), textcoords="offset points", size=9)
    spread = max(x) - min(x) or max(x) or 1.0
    above.set_xlim(min(x) - ROOM * spread, max(x) + ROOM * spread)
    if limit is not None and above.get_xlim()[0] < limit / bytes_size < above.get_xlim()[1]:
        above.axvline(limit / bytes_size, color=fig.VALIDATION, linestyle="--", linewidth=1)
        above.annotate(
            f"limit {nbytes_text(limit)}",
            (limit / bytes_size, 1),
            xycoords=("data", "axes fraction"),
            xytext=(4, -12),
            textcoords="offset points",
            color=fig.VALIDATION,
        )
    above.set_xlabel(f"memory of a device ({bytes_unit})")
    above.set_ylabel(f"one step ({unit})")
    above.set_title(title or "time against memory", weight="bold")
    above.grid(color="#EEEEEE")
    above.set_axisbelow(True)

    looks = fig.looks(kind for p in shown for kind in p.collectives)
    bottom = [0.0] * len(shown)
    places = range(1, len(shown) + 1)
    for kind, (colour, hatch) in looks.items():
        heights = [float(p.collectives.get(kind, 0)) for p in shown]
        below.bar(
            places, heights, 0.6, bottom, color=colour, hatch=hatch, edgecolor="white", label=kind
        )
        bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
    below.set_xticks(list(places))
    below.set_xlabel("plan, from the least memory")
    below.set_ylabel("collectives per step")
    below.locator_params(axis="y", integer=True)
    below.grid(axis="y", color="#EEEEEE")
    below.set_axisbelow(True)
    if looks:
        below.set_ylim(0, 1.25 * max(bottom))  # room for the legend
        below.legend(loc="upper center", ncols=min(4, len(looks)))
    fig.save(made, target)


def _unit(largest: float, units: Sequence[tuple[float, str]]) -> tuple[float, str]:
    return next((u for u in units if largest >= u[0]), units[-1])
