"""`hpc-alpa plan | explain | diff | simulate | profile | doctor`: one file per command.

Every command has `--json`; progress goes to standard error. Exit code 0; 1: failed, with one clean
message; 2: wrong use.
"""

from __future__ import annotations

import importlib
from typing import Any

import click

from hpc_alpa import __version__
from hpc_alpa.errors import HpcAlpaError

COMMANDS: dict[str, str] = {  # in the order of use: name -> what it does
    "profile": "Measure this machine into a cost database.",
    "plan": "Plan the first step of a training script for a cluster.",
    "explain": "Say what a plan does, and why a value lies so.",
    "diff": "Say what two plans decide differently.",
    "simulate": "Run a plan in modelled time.",
    "doctor": "Check this machine: libraries, MPI, cores, memory, GPU.",
}


class Commands(click.Group):
    """Loads a command's file when it is asked for, and prints our errors without a traceback."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"hpc_alpa.cli.{name}").command
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        # From the table: a list of commands need not load them.
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except HpcAlpaError as error:
            raise click.ClickException(f"{type(error).__name__}: {error}") from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hpc-alpa")
def main() -> None:
    """Plan training on a cluster, and look at plans. To train, start your script by mpiexec."""
