"""Options that several commands have, and how they print."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from hpc_alpa.cluster import PRESETS

F = TypeVar("F", bound=Callable[..., Any])
READ = click.Path(exists=True, dir_okay=False, path_type=Path)
WRITE = click.Path(dir_okay=False, path_type=Path)

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def machine(function: F) -> F:
    """`--cluster`, `--costs`, `--analytic`: what is planned for, and priced by."""
    for option in (
        click.option("--analytic", is_flag=True, help="Price by the cluster's description alone."),
        click.option("--costs", type=READ, help="Cost database of hpc-alpa profile (HDF5)."),
        click.option(
            "--cluster",
            metavar="TOML|PRESET",
            help=f"Cluster: a TOML file, or a preset: {', '.join(PRESETS)} (laptop:8 is 8 hosts).",
        ),
    ):
        function = option(function)
    return function


def script(function: F) -> F:
    """`--script FILE -- ARGUMENTS`: whose first step is meant."""
    for option in (
        click.argument("arguments", nargs=-1, metavar="[-- ARGUMENT OF THE SCRIPT ...]"),
        click.option("--script", "path", type=READ, required=True, help="Training script."),
    ):
        function = option(function)
    return function


def costs_of(cluster: str | None, costs: Path | None, analytic: bool) -> str | Path | None:
    """What prices a plan: the database that is given, else the description of the cluster that is.

    Raises:
        UsageError: both, or "analytic" without a cluster.
    """
    if analytic and costs is not None:
        raise click.UsageError("--analytic and --costs exclude each other")
    if analytic and cluster is None:
        raise click.UsageError("--analytic prices by a cluster's description: give --cluster")
    if costs is not None:
        return costs
    # A cluster that is described need not be the machine that this runs on, so this machine's
    # database is no choice; without a cluster, the script says what it wants.
    return "analytic" if cluster is not None else None


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1))
