"""The graph of a step over time (microbatches) and over stages."""

from hpc_alpa.step.microbatch import (
    APPLY,
    BACKWARD,
    FORWARD,
    LOOP,
    PREPARE,
    NeedsMicrobatches,
    StepGraph,
    split_batch,
)
from hpc_alpa.step.stages import StageGraph, Transfer, anchors, split_stages

__all__ = [
    "APPLY", "BACKWARD", "FORWARD", "LOOP", "PREPARE", "NeedsMicrobatches", "StageGraph", "StepGraph",
    "Transfer", "anchors", "split_batch", "split_stages",
]  # fmt: skip
