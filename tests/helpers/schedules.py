"""A small training under every schedule: on threads, and as a script under mpiexec.

    mpiexec -n 2 python tests/helpers/schedules.py out.npz mlp gpt

The script trains each model as a pipeline over all ranks under each schedule, and writes the losses
and weights of `<model> <schedule>`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc_alpa.api import ParallelStep, fetch, parallelize
from hpc_alpa.models import GPTConfig, MLPConfig, gpt, mlp, optimizers
from hpc_alpa.pytree import flatten
from hpc_alpa.schedule import SCHEDULES
from tests.helpers.equality import cluster

TRAINING = [name for name, family in SCHEDULES.items() if family.trains]
ROWS, STEPS = 12, 2


@dataclass(frozen=True)
class Model:
    """What is trained: the step, the state's init, a batch, and an evaluation."""

    step: Any
    init: Any
    batch: dict[str, np.ndarray]
    evaluate: Any


def model(name: str) -> Model:
    """`mlp` or `gpt`, in float64, with enough layers for eight stages."""
    optimizer = optimizers.sgd(optimizers.SGD(learning_rate=0.1))
    rng = np.random.default_rng(0)
    if name == "mlp":
        config = MLPConfig(4, 12, "float64")
        batch = {key: rng.normal(size=(ROWS, 12)) for key in ("x", "y")}

        def evaluate(params: Any, batch: Any) -> Any:
            return {"loss": mlp.loss(params, batch)}

        return Model(mlp.train_step(optimizer), mlp.init(config, optimizer), batch, evaluate)
    shape = GPTConfig(
        layers=2, hidden=8, heads=2, sequence=4, vocabulary=12, dropout=0.1, dtype="float64"
    )
    tokens = rng.integers(0, 12, (ROWS, 5)).astype("int32")
    batch = {"tokens": tokens[:, :-1].copy(), "targets": tokens[:, 1:].copy()}
    step = gpt.train_step(shape, optimizer, seed=5)
    return Model(step, gpt.init(shape, optimizer), batch, gpt.eval_step(shape))


@dataclass(frozen=True)
class Outcome:
    """Losses and weights of a few steps; the step, and the state that it has left."""

    losses: list[float]
    weights: list[np.ndarray]
    step: ParallelStep
    state: Any

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The numbers alone, for a file."""
        named = {f"{name} weight {k}": w for k, w in enumerate(self.weights)}
        return {f"{name} losses": np.array(self.losses), **named}


def train(
    name: str,
    method: str,
    ranks: int,
    schedule: str,
    num_microbatches: int,
    backend: str = "local",
) -> Outcome:
    """Train a model for a few steps."""
    made = model(name)
    step = parallelize(
        made.step, method=method, schedule=schedule, num_microbatches=num_microbatches,
        backend=backend, cluster=cluster(ranks), costs="analytic",
    )  # fmt: skip
    state = step.create(made.init, 3)
    losses = []
    for _ in range(STEPS):
        state, metrics = step(state, made.batch)
        losses.append(float(metrics["loss"]))
    return Outcome(losses, list(flatten(fetch(state["params"]))[0]), step, state)


def main(out: str, *names: str) -> None:
    from hpc_alpa.runtime.launch import init

    world = init()
    found: dict[str, np.ndarray] = {}
    for name in names:
        for schedule in TRAINING:
            done = train(name, f"pp{world.size}", world.size, schedule, 4, "host")
            found |= done.arrays(f"{name} {schedule}")
    if world.rank == 0:
        np.savez(out, **found)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
