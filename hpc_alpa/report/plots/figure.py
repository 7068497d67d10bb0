"""Matplotlib as the pictures use it: loaded on first use, no display, one style, safe colours.

Colours are Paul Tol's "muted" scheme (Colour Schemes, SRON technical note, 2021), which people
with any colour blindness tell apart. Cool ones compute, warm ones communicate, grey waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ParamSpec, TypeVar

from hpc_alpa.errors import HpcAlpaError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

Target = str | Path | IO[bytes]

CATEGORIES: dict[str, tuple[str, str]] = {  # in the order of the legend: (colour, hatch)
    "forward": ("#88CCEE", ""),
    "backward": ("#332288", ""),
    "weight": ("#009988", ""),
    "recompute": ("#44AA99", ""),
    "apply": ("#117733", ""),
    "all_reduce": ("#CC6677", ""),
    "all_gather": ("#DDCC77", ""),
    "reduce_scatter": ("#882255", ""),
    "all_to_all": ("#AA4499", ""),
    "broadcast": ("#999933", ""),
    "send": ("#EE8866", ""),
    "recv": ("#EE8866", "////"),
    "copy": ("#BBBBBB", "...."),
    "wait": ("#DDDDDD", ""),
}
OTHERS = ("#77AADD", "#FFAABB", "#BBCC33", "#99DDFF", "#AAAA00", "#888888")  # Tol's "light"

INK, FAINT = "#222222", "#999999"
LOSS, VALIDATION = "#332288", "#CC6677"

STYLE: Any = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "font.family": "DejaVu Sans",  # ships with Matplotlib, so that pictures are alike everywhere
    "font.size": 10,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "text.color": INK,
    "text.parse_math": False,  # a `$` in a name is a `$`
    "text.usetex": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


class PlotError(HpcAlpaError):
    """A picture cannot be drawn: Matplotlib, which is optional, is missing, or there is no data."""


P = ParamSpec("P")
R = TypeVar("R")


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Run a drawing function under `STYLE`, or say how to install Matplotlib."""

    @wraps(draw)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            import matplotlib
        except ImportError as error:
            raise PlotError(
                f"{draw.__name__} needs Matplotlib, which is not installed ({error}). Install it"
                " with `pip install 'hpc-alpa[plot]'`."
            ) from error
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapped


def figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that no window and no global state knows of."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def save(made: Figure, target: Target) -> None:
    """Write a picture; the name's suffix says the format, PNG for an open file."""
    made.savefig(target, dpi=150)


def looks(categories: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and hatch of each category, in the order of a legend; unknown ones come last."""
    present = set(categories)
    unknown = sorted(present - CATEGORIES.keys())
    known = {name: look for name, look in CATEGORIES.items() if name in present}
    return known | {name: (OTHERS[i % len(OTHERS)], "") for i, name in enumerate(unknown)}


def ink_on(colour: str) -> str:
    """Dark or white, whichever has more contrast on `colour`, `#rrggbb` (WCAG 2.1, Sec. 1.4.3)."""
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    light = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    dark = 0.016  # the same sum of `INK`
    return INK if (light + 0.05) / (dark + 0.05) > 1.05 / (light + 0.05) else "white"


def paler(colour: str, share: float) -> str:
    """A colour, `#rrggbb`, with a share of white from 0 to 1 in it."""
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(c + (255 - c) * share):02X}" for c in parts)


def key(name: str, colour: str, hatch: str) -> Patch:
    """An entry of a legend."""
    from matplotlib.patches import Patch

    return Patch(facecolor=colour, hatch=hatch, edgecolor="white", label=name)


def inches_per_unit(axes: Axes) -> tuple[float, float]:
    """Size on paper of one data unit along x and y, once the layout is settled."""
    box = axes.get_window_extent()
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    dpi = axes.figure.dpi
    return box.width / dpi / abs(right - left), box.height / dpi / abs(top - bottom)
