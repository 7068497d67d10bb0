"""The graph of a step over time (microbatches) and over stages."""

from hpc_alpa.step.halves import weight_half
from hpc_alpa.step.microbatch import StepGraph, split_batch
from hpc_alpa.step.phase import APPLY, BACKWARD, FINISHED, FORWARD, LOOP, PREPARE, WEIGHT
from hpc_alpa.step.recompute import marked_layers, recompute
from hpc_alpa.step.slots import NeedsMicrobatches
from hpc_alpa.step.stages import StageGraph, Transfer, anchors, split_stages

__all__ = [
    "APPLY", "BACKWARD", "FINISHED", "FORWARD", "LOOP", "PREPARE", "WEIGHT", "NeedsMicrobatches",
    "StageGraph", "StepGraph", "Transfer", "anchors", "marked_layers", "recompute", "split_batch",
    "split_stages", "weight_half",
]  # fmt: skip
