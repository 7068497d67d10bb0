"""A progress bar on stderr: the share of the time or of the points, whichever is further."""

import time
from types import TracebackType

from hpc_alpa.profiler.point import Point


class Progress:
    """A context manager; nothing is shown unless `shown`."""

    def __init__(self, points: int, seconds: float, shown: bool) -> None:
        self._points, self._seconds = points, seconds
        self._start = time.monotonic()
        self._bar = None
        if shown:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("measuring"),
                BarColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task("", total=1.0)

    def at(self, number: int, point: Point) -> None:
        """Point `number` is next."""
        if self._bar is not None:
            share = max((time.monotonic() - self._start) / self._seconds, number / self._points)
            self._bar.update(self._task, completed=min(share, 1.0), description=str(point))

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
