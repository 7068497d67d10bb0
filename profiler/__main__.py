"""Command line of the profiler. Under mpirun all ranks run this; only rank 0 writes and speaks."""

import json
import sys
import time
from pathlib import Path

import click

from hpc_alpa.cost import default_path
from hpc_alpa.errors import HpcAlpaError, LaunchError
from hpc_alpa.profiler.connect import connect
from hpc_alpa.profiler.profile import DTYPES, MAX_BYTES, profile
from hpc_alpa.profiler.summary import lines, summary

MEASURABLE = ("float32", "float64")


def _dtypes(context: click.Context, option: click.Parameter, value: str) -> tuple[str, ...]:
    chosen = tuple(part.strip() for part in value.split(",") if part.strip())
    bad = [dtype for dtype in chosen if dtype not in MEASURABLE]
    if bad or not chosen:
        raise click.BadParameter(
            f"{value!r}: choose from {', '.join(MEASURABLE)}, separated by commas."
        )
    return tuple(dict.fromkeys(chosen))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Cost database to write. Default: $HPC_ALPA_DB, else the user's cache.",
)
@click.option(
    "--seconds", type=click.FloatRange(min=0.1), default=40.0, show_default=True,
    help="Time to measure for, from coarse to fine.",
)  # fmt: skip
@click.option(
    "--dtype", "dtypes", callback=_dtypes, default=",".join(DTYPES), show_default=True,
    help="Element types, the most important first.",
)  # fmt: skip
@click.option(
    "--max-bytes", type=click.IntRange(min=1024), default=MAX_BYTES, show_default=True,
    help="Largest message.",
)  # fmt: skip
@click.option("--resume", is_flag=True, help="Measure only what the file does not have.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def main(
    out: Path | None,
    seconds: float,
    dtypes: tuple[str, ...],
    max_bytes: int,
    resume: bool,
    as_json: bool,
) -> None:
    """Measure this machine into a cost database: alone, or on all ranks of `mpirun -n N`.

    An existing file is added to. Exit code 0, 1 (failed), 2 (wrong use).
    """
    start = time.monotonic()
    try:
        setting = connect()
    except LaunchError as error:
        raise click.ClickException(str(error)) from error
    first = setting.world.rank == 0
    try:
        result = profile(
            setting, out or default_path(), seconds=seconds, dtypes=dtypes, max_bytes=max_bytes,
            resume=resume, progress=sys.stderr.isatty(),
        )  # fmt: skip
    except HpcAlpaError as error:  # the same on all ranks
        if first:
            click.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(1)
    if first:
        facts = summary(result, time.monotonic() - start)
        click.echo(json.dumps(facts, indent=1) if as_json else "\n".join(lines(facts)))


if __name__ == "__main__":
    main()
