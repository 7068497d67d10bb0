"""Keeping samples: on disk every second, so that a kill costs no earlier sample."""

import time
from dataclasses import replace
from pathlib import Path

from hpc_alpa.cost import Database, Run, Sample, append, fitted, load, new, save

SAVE_SECONDS = 1.0
"""At most this old are samples that a kill may cost; writing takes 10 to 50 ms."""


class Record:
    """The database of one run, in memory and on disk: what is there is added to. On rank 0 only.

    Raises:
        CostError: the file that is there cannot be used, or belongs to another machine.
    """

    def __init__(self, path: Path, run: Run) -> None:
        self.path = path
        self.database: Database = append(load(path) if path.exists() else new(path), run, ())
        self._fresh: list[Sample] = []
        self._saved = time.monotonic()
        self.save()  # says at once if the place cannot be written

    def keep(self, sample: Sample) -> None:
        """Take a sample, and save if the last save is SAVE_SECONDS ago."""
        self._fresh.append(replace(sample, run=len(self.database.runs) - 1))
        if time.monotonic() - self._saved >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        self.database = replace(
            self.database, samples=self.database.samples + tuple(self._fresh), fits=()
        )
        self._fresh = []
        save(self.database, self.path)
        self._saved = time.monotonic()

    def close(self) -> Database:
        """Save with the fitted lines."""
        self.save()
        self.database = fitted(self.database)
        save(self.database, self.path)
        return self.database
