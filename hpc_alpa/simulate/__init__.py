"""Programs run in modelled seconds, and what a run looks like over time."""

from hpc_alpa.simulate.engine import simulate
from hpc_alpa.simulate.memory import Memory, peak_bytes, replay
from hpc_alpa.simulate.periodic import simulate_many
from hpc_alpa.simulate.quotient import simulate_plan
from hpc_alpa.simulate.simulation import Simulation

__all__ = [
    "Memory",
    "Simulation",
    "peak_bytes",
    "replay",
    "simulate",
    "simulate_many",
    "simulate_plan",
]
