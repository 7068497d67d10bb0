"""What users call: `parallelize`, `fetch`, `Batch`."""

from hpc_alpa.api.step import Batch, ParallelStep, fetch, parallelize

__all__ = ["Batch", "ParallelStep", "fetch", "parallelize"]
