"""What the profiler measures: samples, and the runs that they come from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from hpc_alpa.errors import CostError

Parameter = int | str

# group: its parameters, in the order of the file's columns. Text parameters in TEXT.
PARAMETERS: dict[str, tuple[str, ...]] = {
    # class of operator; dims of a matrix product; ranks computing at once on the host, each with
    # `threads` threads
    "operators": (
        "dtype", "variant", "batch", "m", "n", "k", "nbytes", "threads", "busy", "clock",
    ),
    # kind; full tensor's bytes; ranks of the group; hosts it spans; disjoint groups at once
    "collectives": ("nbytes", "size", "hosts", "groups", "ranks", "clock"),
    "point_to_point": ("nbytes", "hosts", "ranks", "clock"),
    "copies": ("variant", "nbytes", "threads", "busy", "clock"),
}  # fmt: skip
TEXT = frozenset({"clock", "dtype", "variant"})
GROUPS = tuple(PARAMETERS)


@dataclass(frozen=True)
class Quantiles:
    """Seconds of repeated runs of one thing."""

    min: float
    p25: float
    median: float
    p75: float
    max: float
    count: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Quantiles":
        low, p25, mid, p75, high = np.quantile(seconds, (0.0, 0.25, 0.5, 0.75, 1.0))
        return cls(float(low), float(p25), float(mid), float(p75), float(high), len(seconds))

    @classmethod
    def pooled(cls, parts: Iterable["Quantiles"]) -> "Quantiles":
        """Repeated measurements of one thing as one: the median run counts, not the busiest."""
        rows = list(parts)
        return cls(
            min(q.min for q in rows),
            median(q.p25 for q in rows),
            median(q.median for q in rows),
            median(q.p75 for q in rows),
            max(q.max for q in rows),
            sum(q.count for q in rows),
        )


@dataclass(frozen=True)
class Sample:
    """One measured point: what (`group`, `name`, `parameters`), how long, and in which run.

    `parameters` has one value per entry of PARAMETERS[group], in that order.
    """

    group: str
    name: str
    parameters: tuple[Parameter, ...]
    seconds: Quantiles
    run: int = 0

    def __post_init__(self) -> None:
        columns = PARAMETERS.get(self.group)
        if columns is None:
            raise CostError(f"sample group {self.group!r} is unknown; known are {list(GROUPS)}.")
        if len(columns) != len(self.parameters):
            raise CostError(
                f"sample {self.group}/{self.name} has parameters {self.parameters}; "
                f"{columns} are needed."
            )

    @property
    def key(self) -> tuple[str, str, tuple[Parameter, ...]]:
        """What was measured; equal for repeated measurements."""
        return self.group, self.name, self.parameters

    def __getitem__(self, parameter: str) -> Any:
        return self.parameters[PARAMETERS[self.group].index(parameter)]


def parameters(group: str, **values: Parameter) -> tuple[Parameter, ...]:
    """Parameters of a sample in the file's order; what is not given is 0 or empty text."""
    unknown = set(values) - set(PARAMETERS[group])
    assert not unknown, f"{group} has no parameters {unknown}"
    return tuple(values.get(name, "" if name in TEXT else 0) for name in PARAMETERS[group])


@dataclass(frozen=True)
class Run:
    """Provenance of the samples of one profiler run, as pairs of names and texts."""

    facts: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, **facts: object) -> "Run":
        return cls(tuple((key, str(value)) for key, value in sorted(facts.items())))

    def __getitem__(self, name: str) -> str:
        return dict(self.facts)[name]


@dataclass(frozen=True)
class Fit:
    """A line seconds = alpha + beta * nbytes through the samples of one name under one condition.

    `residual` is the median relative error of the line at its samples: lines describe, prices
    interpolate the samples themselves.
    """

    group: str
    name: str
    condition: str
    alpha: float
    beta: float
    residual: float
    count: int

    @property
    def label(self) -> tuple[str, str, str]:
        return self.group, self.name, self.condition
