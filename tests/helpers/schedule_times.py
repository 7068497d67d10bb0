"""How long a step takes on ranks under each schedule, with artificial work: bodies that sleep.

    mpiexec -n 4 python tests/helpers/schedule_times.py 1f1b zb_h1

The cores are idle while a rank works, so ranks may outnumber them. Rank 0 writes JSON: for each
schedule the seconds measured, and those that its plan predicts of such ranks.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np

from hpc_alpa.api import parallelize
from hpc_alpa.cluster import Cluster, Host, Link
from hpc_alpa.lower.program import Body, Run
from hpc_alpa.models import MLPConfig, mlp, optimizers
from hpc_alpa.runtime import executor

MICROBATCHES, LAYERS, WIDTH = 8, 8, 32
FORWARD_SECONDS = 0.02  # of a rank's layers, for one microbatch
REPEATS = 2


def flops(body: Body) -> float:
    return sum(k.work.flops for k in body.kernels)


@contextmanager
def working(seconds_per_flop: float) -> Iterator[None]:
    """Bodies take as long as their work, besides what they really take."""
    run = executor.HANDLERS[Run]

    def slow(ex: Any, buffers: Any, i: Any) -> None:
        start = time.perf_counter()
        run(ex, buffers, i)
        end = start + flops(ex.program.bodies[i.body]) * seconds_per_flop
        time.sleep(max(0.0, end - time.perf_counter()))

    with mock.patch.dict(executor.HANDLERS, {Run: slow}):
        yield


def main(*schedules: str) -> None:
    from hpc_alpa.runtime.launch import init

    world = init()
    optimizer = optimizers.sgd()
    rows = 2 * MICROBATCHES
    batch = {key: np.zeros((rows, WIDTH), "float32") for key in ("x", "y")}
    of_layers = LAYERS // world.size * 2 * (rows // MICROBATCHES) * WIDTH * WIDTH
    rate = of_layers / FORWARD_SECONDS
    host = Host(world.size, world.size, 4e9, (("float32", rate),), 1e30)
    machine = Cluster("at work", (host,), Link("host", 1e-6, 1e-12), Link("network", 1e-6, 1e-12))
    found: dict[str, Any] = {}
    for schedule in schedules:
        step = parallelize(
            mlp.train_step(optimizer), method=f"pp{world.size}", schedule=schedule, backend="host",
            num_microbatches=MICROBATCHES, cluster=machine, costs="analytic",
        )  # fmt: skip
        state, _ = step(step.create(mlp.init(MLPConfig(LAYERS, WIDTH), optimizer), 0), batch)
        taken = []
        with working(1 / rate):
            for _ in range(REPEATS):
                start = time.perf_counter()
                state, metrics = step(state, batch)
                float(metrics["loss"])
                taken.append(time.perf_counter() - start)
        modelled = step.plan.predicted["step_seconds"]
        found[schedule] = {"measured": min(taken), "modelled": modelled}
    if world.rank == 0:
        print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
