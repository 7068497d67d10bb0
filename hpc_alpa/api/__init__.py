"""What users call: `parallelize`, `fetch`, `Batch`."""

from hpc_alpa.api.arguments import Batch
from hpc_alpa.api.step import ParallelStep, fetch, parallelize

__all__ = ["Batch", "ParallelStep", "fetch", "parallelize"]
