"""`hpc-alpa profile`: the profiler's own command line, also under mpiexec."""

from hpc_alpa.profiler.__main__ import main as command

__all__ = ["command"]
