"""Random graphs, strategies, conversions and meshes against plain NumPy in float64.

`HPC_ALPA_FUZZ_SECONDS=600 python -m pytest tests/test_sharding_fuzz.py` runs as long as it is told,
from the seed in `HPC_ALPA_FUZZ_SEED` on; without it the seeds are fixed.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator

import numpy as np
import pytest

from hpc_alpa.ir import TABLE, environment, parse, verify
from hpc_alpa.sharding.spec import MeshShape
from tests.helpers.fuzz import Fuzz, Tie, is_tame
from tests.helpers.random_graphs import random_graph

MESHES: list[MeshShape] = [(2,), (4,), (2, 2), (2, 3), (3,)]
THREE_AXES: MeshShape = (2, 2, 2)  # as long as all others together: for every fourth graph
NUM_GRAPHS = 70
SECONDS = float(os.environ.get("HPC_ALPA_FUZZ_SECONDS", "0"))


def seeds() -> Iterator[int]:
    if not SECONDS:
        yield from range(NUM_GRAPHS)
        return
    end = time.monotonic() + SECONDS
    seed = int(os.environ.get("HPC_ALPA_FUZZ_SEED", random.SystemRandom().randrange(1 << 32)))
    while time.monotonic() < end:
        yield seed
        seed += 1


def test_random_graphs_under_random_strategies() -> None:
    fuzz = Fuzz(random.Random(0))
    cases = ties = 0
    for seed in seeds():
        drawn = random_graph(seed, random.Random(seed).randint(4, 16))
        graph = verify(drawn.graph)
        assert parse(str(graph)) == graph, f"seed {seed}"
        with np.errstate(all="ignore"):
            values = environment(graph, drawn.arrays)
        if not is_tame(values):
            continue
        for mesh in [*MESHES, *([THREE_AXES] if seed % 4 == 0 else [])]:
            fuzz.rng = random.Random(f"{seed} {mesh}")
            cases += 1
            try:
                fuzz.simulate(graph, values, mesh)
            except Tie:
                ties += 1
            except AssertionError as error:
                raise AssertionError(f"seed {seed}: {error}") from error
    assert cases > 4 * NUM_GRAPHS
    assert ties < cases / 10, "ties hide what follows them"
    assert fuzz.partial_outputs > sum(fuzz.equations.values()) / 20
    # What only `test_sharding_strategies` runs, or the tests of the microbatch loop.
    rare = {
        "accumulate",
        "accumulate_max",
        "argmax",
        "cross_entropy_grad",
        "enter",
        "halo_edges",
        "halo_fold",
        "halo_unfold",
        "pool_pick",
        "slot",
        "stack",
        "sum_squares",
    }
    assert set(TABLE) - set(fuzz.equations) <= rare


@pytest.mark.parametrize("seed", [3, 5])
def test_a_seed_gives_the_same_graph(seed: int) -> None:
    one, two = random_graph(seed, 12), random_graph(seed, 12)
    assert one.graph == two.graph
    assert all((a == b).all() for a, b in zip(one.arrays, two.arrays, strict=True))
