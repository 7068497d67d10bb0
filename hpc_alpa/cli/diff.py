"""`hpc-alpa diff a.json b.json`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from hpc_alpa.cli import options
from hpc_alpa.plan.diff import diff
from hpc_alpa.plan.plan import Plan
from hpc_alpa.report.diff import diff_text


@click.command()
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@options.as_json
def command(before: Path, after: Path, as_json: bool) -> None:
    """Say what two plans of one model decide differently, and what each expects.

    Exit code 0, whether they are equal or not.
    """
    found = diff(Plan.load(before), Plan.load(after))
    if as_json:
        options.print_json({"equal": found.equal, **asdict(found)})
    else:
        click.echo(diff_text(found))
