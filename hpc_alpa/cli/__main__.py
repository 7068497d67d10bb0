"""`python -m hpc_alpa.cli`."""

from hpc_alpa.cli import main

main(prog_name="hpc-alpa")
