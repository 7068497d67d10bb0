"""Train steps of sizes that no test could run: traced without making a parameter."""

from __future__ import annotations

import numpy as np

from hpc_alpa.api import parallelize
from hpc_alpa.api.arguments import Arguments
from hpc_alpa.api.compile import trace_step
from hpc_alpa.cluster import Cluster
from hpc_alpa.models import AdamW, adamw, gpt
from hpc_alpa.step import StepGraph, split_batch


def gpt_step(config: gpt.GPTConfig, rows: int, num_microbatches: int) -> StepGraph:
    """Forward, backward and AdamW of a GPT, divided into microbatches."""
    optimizer = adamw(AdamW())
    function = gpt.train_step(config, optimizer, seed=0)
    born = parallelize(function, backend="local", cluster=Cluster.preset("laptop"))
    state = born.create(gpt.init(config, optimizer), 0)
    tokens = np.zeros((rows, config.sequence), np.int32)
    given = Arguments.of(state, {"tokens": tokens, "targets": tokens}, 1e-3)
    step = trace_step(function, given.examples(), len(given.parts[0]), given.trees[0], False)
    batch = frozenset(step.graph.inputs[k] for k in step.batch_positions)
    return split_batch(step.graph, batch, num_microbatches, step.renewed)
