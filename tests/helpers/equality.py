"""The same numbers under every plan: a small GPT trained for a few steps, whatever the method.

Run by tests on threads, and as a script under mpiexec:

    mpiexec -n 2 python tests/helpers/equality.py dp2 float64 1f1b 1 send_recv out.json none
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpc_alpa.api import ParallelStep, fetch, parallelize
from hpc_alpa.cluster import Cluster, Host, Link
from hpc_alpa.lower.program import KIND
from hpc_alpa.models import gpt, optimizers
from hpc_alpa.pytree import flatten

CONFIG: dict[str, Any] = {
    "layers": 2, "hidden": 48, "heads": 6, "sequence": 8, "vocabulary": 32, "dropout": 0.1,
}  # fmt: skip
BATCH, STEPS, RATE = 192, 20, 1e-2


@dataclass
class Outcome:
    """What a training did: losses, weights in the order of their paths, collectives of one step."""

    losses: list[float]
    weights: dict[str, np.ndarray]
    collectives: dict[str, int]
    messages: int
    step: ParallelStep | None = None


def cluster(devices: int, hosts: int = 1, network: tuple[float, float] = (5e-5, 1e-8)) -> Cluster:
    """Hosts with the given devices each, on fast links within."""
    host = Host(devices, 2, 4e9, (("float32", 1e11), ("float64", 5e10)), 2e10)
    return Cluster("test", (host,) * hosts, Link("host", 5e-6, 1e-10), Link("network", *network))


def batch(step: int) -> dict[str, np.ndarray]:
    """Text of a simple law: the next token follows from the last two, most of the time."""
    r = np.random.default_rng(step)
    tokens = r.integers(0, 32, (BATCH, CONFIG["sequence"] + 1))
    for k in range(2, tokens.shape[1]):
        follows = (3 * tokens[:, k - 1] + tokens[:, k - 2]) % 8
        tokens[:, k] = np.where(r.random(BATCH) < 0.95, follows, tokens[:, k])
    return {
        "tokens": tokens[:, :-1].astype(np.int32),
        "targets": tokens[:, 1:].astype(np.int32),
    }


def train(
    method: str,
    dtype: str,
    *,
    steps: int = STEPS,
    backend: str = "local",
    devices: Cluster | None = None,
    **options: Any,
) -> Outcome:
    """Train the test model with a method; on threads unless `backend` says otherwise."""
    config = gpt.GPTConfig(**CONFIG, dtype=dtype)
    optimizer = optimizers.adamw(optimizers.AdamW(learning_rate=RATE))
    step = parallelize(
        gpt.train_step(config, optimizer, seed=5),
        method=method,
        backend=backend,
        cluster=devices,
        costs="analytic",
        **options,
    )
    state = step.create(gpt.init(config, optimizer), 3)
    losses = []
    for k in range(steps):
        # A learning rate that changes is a value, not another program.
        state, metrics = step(state, batch(k), RATE * (1 - k / (2 * steps)))
        losses.append(float(metrics["loss"]))
    leaves, tree = flatten(fetch(state["params"]))
    weights = dict(zip(tree.paths("params"), leaves, strict=True))
    counted = Counter(step.record.collectives)
    return Outcome(losses, weights, dict(counted), step.record.messages, step)


def planned_collectives(step: ParallelStep, rank: int = 0) -> dict[str, int]:
    """Collectives of one step in a rank's program."""
    found = Counter(KIND[type(i)] for i in step.programs[rank].instructions if type(i) in KIND)
    return dict(found)


def digest(weights: dict[str, np.ndarray]) -> str:
    made = hashlib.sha256()
    for name in sorted(weights):
        made.update(np.ascontiguousarray(weights[name]).tobytes())
    return made.hexdigest()


def main(arguments: list[str]) -> None:
    method, dtype, schedule, slots, resharding, out, layers = arguments
    from hpc_alpa.runtime.launch import init

    world = init()
    found = train(
        method,
        dtype,
        backend="host",
        devices=cluster(world.size),
        schedule=schedule,
        num_microbatches=int(slots),
        resharding=resharding,
        recompute=[int(k) for k in layers.split(",")] if layers[0].isdigit() else layers,
    )
    if world.rank == 0:
        np.savez(Path(out).with_suffix(".npz"), **found.weights)  # type: ignore[arg-type]
        Path(out).write_text(json.dumps({"losses": found.losses, "collectives": found.collectives}))


if __name__ == "__main__":
    main(sys.argv[1:])
