"""A training script run in this process up to its first step."""

from __future__ import annotations

import contextlib
import os
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from hpc_alpa.api.planning import Failed, Planned, Target, planning
from hpc_alpa.errors import PlanError
from hpc_alpa.runtime.launchers import place


def planned(path: Path, arguments: Sequence[str], target: Target) -> Planned:
    """Run `python PATH ARGUMENTS` until it calls a parallelized step, and plan that.

    What the script prints goes to standard error. Starts no MPI.

    Raises:
        PlanError: the script ends without a step.
        UsageError: a launcher has started several processes; all would do the same.
    """
    launched = place(os.environ)
    if launched is not None and launched.size > 1:
        raise click.UsageError(
            f"planning takes one process, {launched.launcher.name} has started {launched.size}: "
            "start hpc-alpa without it"
        )
    with planning(target), _as_main(path, arguments), contextlib.redirect_stdout(sys.stderr):
        try:
            runpy.run_path(str(path), run_name="__main__")
        except Planned as found:
            return found
        except Failed as failed:
            raise failed.error from None
        except SystemExit as end:
            said = end.code if isinstance(end.code, str) else f"exit code {end.code or 0}"
            raise PlanError(
                f"{path} ended before its first step, so there is nothing to plan: {said}. Its "
                "arguments come after --"
            ) from None
    raise PlanError(
        f"{path} ended without a step: nothing to plan. It must call what hpc_alpa.parallelize "
        "returns"
    )


@contextlib.contextmanager
def _as_main(path: Path, arguments: Sequence[str]) -> Iterator[None]:
    """`sys.argv` and `sys.path` as `python PATH ARGUMENTS` has them."""
    before = sys.argv, sys.path[:]
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.resolve().parent))
    try:
        yield
    finally:
        sys.argv, sys.path[:] = before
