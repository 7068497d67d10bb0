"""Seconds of compute and of communication: three cost models under one protocol, chosen by name."""

from hpc_alpa.cost.alpha_beta import AlphaBetaCost
from hpc_alpa.cost.analytic import AnalyticCost
from hpc_alpa.cost.database import (
    SCHEMA_VERSION,
    Database,
    append,
    default_path,
    load,
    merge,
    new,
    read,
    save,
)
from hpc_alpa.cost.database_cost import DatabaseCost, Load
from hpc_alpa.cost.fits import fitted
from hpc_alpa.cost.machine import machine_digest, machine_facts
from hpc_alpa.cost.measured import measured_cluster
from hpc_alpa.cost.protocol import COLLECTIVES, Cost, Spread
from hpc_alpa.cost.sample import Fit, Quantiles, Run, Sample, parameters
from hpc_alpa.cost.work import Work

__all__ = [
    "COLLECTIVES",
    "SCHEMA_VERSION",
    "AlphaBetaCost",
    "AnalyticCost",
    "Cost",
    "Database",
    "DatabaseCost",
    "Fit",
    "Load",
    "Quantiles",
    "Run",
    "Sample",
    "Spread",
    "Work",
    "append",
    "default_path",
    "fitted",
    "load",
    "machine_digest",
    "machine_facts",
    "measured_cluster",
    "merge",
    "new",
    "parameters",
    "read",
    "save",
]
