"""Programs run in modelled seconds, and what a run looks like over time."""

from hpc_alpa.simulate.engine import Simulation, simulate
from hpc_alpa.simulate.memory import Memory, peak_bytes, replay

__all__ = ["Memory", "Simulation", "peak_bytes", "replay", "simulate"]
