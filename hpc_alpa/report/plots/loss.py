"""The loss of a run over its steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from hpc_alpa.report.plots import figure as fig


@fig.styled
def loss_plot(
    target: fig.Target,
    steps: Sequence[int],
    losses: Sequence[float],
    validation: Mapping[int, float] | None = None,
    unigram: float | None = None,
    bigram: float | None = None,
) -> None:
    """The loss over the steps, beside what counting letters and pairs of letters reaches.

    Args:
        target: a path, or an open binary file for a PNG.
        steps, losses: training loss in bits per byte after each step.
        validation: bits per byte on the validation text, by step.
        unigram, bigram: entropies of the validation text in bits per byte.
    """
    if not len(steps) == len(losses) > 0:
        raise fig.PlotError(f"no loss to draw: {len(steps)} steps and {len(losses)} losses.")
    made = fig.figure(8, 4.2)
    axes = made.add_subplot()
    axes.plot(steps, losses, color=fig.LOSS, linewidth=0.8, alpha=0.35)
    axes.plot(steps, _smooth(losses), color=fig.LOSS, linewidth=1.8, label="training")
    for name, value in (("unigram entropy", unigram), ("bigram entropy", bigram)):
        if value is not None:
            axes.axhline(value, color=fig.FAINT, linestyle="--", linewidth=1)
            axes.annotate(
                f"{name} {value:.2f}",
                (1, value),
                xycoords=("axes fraction", "data"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="right",
                color="#555555",
            )
    if validation:
        where, values = zip(*sorted(validation.items()), strict=True)
        axes.plot(
            where, values, color=fig.VALIDATION, marker="o", linewidth=1.2, label="validation"
        )
        axes.annotate(
            f"{values[-1]:.2f}",
            (where[-1], values[-1]),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            color=fig.VALIDATION,
            weight="bold",
        )
    axes.set_xlabel("step")
    axes.set_ylabel("bits per byte")
    lines = [value for value in (unigram, bigram) if value is not None]
    seen = [v for v in (*losses, *(validation or {}).values(), *lines) if math.isfinite(v)]
    if seen:  # a run may have diverged from its first step
        bottom = max(0.0, min(seen) - 0.3)
        axes.set_ylim(bottom, max(seen) + 0.15 * (max(seen) - bottom))  # room for the legend
    axes.locator_params(axis="x", integer=True)
    axes.grid(axis="y", color="#EEEEEE")
    axes.set_axisbelow(True)
    axes.legend(loc="upper center", ncols=2)
    fig.save(made, target)


def _smooth(values: Sequence[float]) -> list[float]:
    """Mean over a fortieth of the run around each step: centred, so that it does not lag."""
    smooth = []
    for i in range(len(values)):
        reach = min(len(values) // 80, i, len(values) - 1 - i)
        around = values[i - reach : i + reach + 1]
        smooth.append(sum(around) / len(around))
    return smooth
