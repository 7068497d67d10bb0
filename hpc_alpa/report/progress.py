"""Progress of a training run on standard error: a bar in a terminal, a line now and then elsewhere.

Under mpirun the ranks' streams are pipes, so that the plain lines are the usual case:

    step  120/400  loss 3.214  41.2 k tokens/s  1:32 left
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from hpc_alpa.report.units import clock_text, count_text

BAR_INTERVAL = 0.2  # seconds between two drawings of the bar: a thread of its own would cost a core
WINDOW = 50  # steps over which the speed is averaged


class Progress:
    """Shows step, loss, tokens/s and time left; a context manager around the training loop.

    On every rank but 0 it shows nothing, so that all ranks run the same code. The first step, which
    compiles, counts for nothing in the speed.

    Args:
        num_steps: steps of the whole run.
        tokens_per_step: tokens of the global batch.
        rank: global rank of the caller.
        file: where to, standard error if `None`.
        interval: seconds between two plain lines.
        first_step: steps done before, when a run continues.
        clock: seconds from any origin.
    """

    def __init__(
        self,
        num_steps: int,
        tokens_per_step: int,
        *,
        rank: int = 0,
        file: IO[str] | None = None,
        interval: float = 5.0,
        first_step: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.num_steps = num_steps
        self.tokens_per_step = tokens_per_step
        self.step = first_step
        self._file = (sys.stderr if file is None else file) if rank == 0 else None
        self._clock = clock
        self._ends: deque[float] = deque(maxlen=WINDOW + 1)
        self._shown_at, self._shown_step = clock(), first_step
        self._loss = float("nan")
        self._bar: Bar | None = None
        self._interval = interval
        if self._file is not None and self._file.isatty():
            self._interval = BAR_INTERVAL
            columns = TextColumn("{task.description}", markup=False), BarColumn(bar_width=None)
            console = Console(file=self._file)
            self._bar = Bar(*columns, console=console, auto_refresh=False, expand=True)
            self._task = self._bar.add_task("", total=num_steps, completed=first_step)

    @property
    def tokens_per_second(self) -> float | None:
        """Over the last steps; `None` before the end of the second step."""
        if len(self._ends) < 2 or self._ends[-1] <= self._ends[0]:
            return None
        seconds = self._ends[-1] - self._ends[0]
        return (len(self._ends) - 1) * self.tokens_per_step / seconds

    @property
    def text(self) -> str:
        """What is shown beside the bar, or as a line."""
        width = len(str(self.num_steps))
        parts = [f"step {self.step:{width}}/{self.num_steps}", f"loss {self._loss:.3f}"]
        speed = self.tokens_per_second
        if speed is not None:
            left = (self.num_steps - self.step) * self.tokens_per_step / speed
            parts += [f"{count_text(speed)} tokens/s", f"{clock_text(left)} left"]
        return "  ".join(parts)

    def update(self, loss: float) -> None:
        """One more step is done, and this is its loss."""
        self.step += 1
        self._loss = loss
        if self._file is None:
            return
        now = self._clock()
        self._ends.append(now)
        if now - self._shown_at >= self._interval or self.step == self.num_steps:
            self._show(now)

    def _show(self, now: float) -> None:
        self._shown_at, self._shown_step = now, self.step
        if self._bar is not None:
            self._bar.update(self._task, completed=self.step, description=self.text, refresh=True)
        elif self._file is not None:
            print(self.text, file=self._file, flush=True)

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._shown_step != self.step:  # how far it came when it ends early
            self._show(self._clock())
        if self._bar is not None:
            self._bar.stop()
