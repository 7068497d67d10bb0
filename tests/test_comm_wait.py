"""Waiting: when ranks sleep, and that those who wait leave the cores to the one that computes."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import pytest

from hpc_alpa.comm.wait import sleeps, wait_asleep
from hpc_alpa.errors import LaunchError

pytestmark = pytest.mark.alone


@pytest.mark.parametrize(
    ("policy", "num_ranks", "num_cores", "expected"),
    [
        (None, 2, 2, False),
        (None, 3, 2, True),
        ("auto", 8, 2, True),
        ("auto", 8, 64, False),
        ("sleep", 1, 64, True),
        ("spin", 8, 2, False),
    ],
)
def test_policy(policy: str | None, num_ranks: int, num_cores: int, expected: bool) -> None:
    environment = {} if policy is None else {"HPC_ALPA_WAIT": policy}
    assert sleeps(environment, num_ranks, num_cores) is expected


def test_unknown_policy() -> None:
    with pytest.raises(LaunchError, match="HPC_ALPA_WAIT='nap': expected one of auto, sleep, spin"):
        sleeps({"HPC_ALPA_WAIT": "nap"}, 1, 1)


def test_asleep_takes_little_of_a_core() -> None:
    cpu, start = time.thread_time(), time.perf_counter()
    assert not wait_asleep(lambda: False, seconds=0.3)
    waited = time.perf_counter() - start
    assert 0.3 <= waited < 2
    assert time.thread_time() - cpu < 0.1


def test_immediate_answer_does_not_sleep() -> None:
    answers = iter([False, False, True])
    start = time.perf_counter()
    assert wait_asleep(lambda: next(answers))
    assert time.perf_counter() - start < 0.01


# Rank 0 works while the others wait for it in a collective, all on two cores. For comparison, in
# turn with it, the others stay out of MPI for the time of the step.
VICTIM = """
import os, sys, json, time, statistics
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
import hpc_alpa
import numpy as np
from hpc_alpa.runtime.launch import init
world = init()
comm = world.communicator
a = np.random.default_rng(0).random((256, 256)).astype(np.float32)

def step():
    start = time.perf_counter()
    for _ in range(60):
        a @ a
    return time.perf_counter() - start

step()
ratios = []
x = np.zeros(1000, np.float32)
for _ in range(9):
    comm.barrier()
    if world.rank:
        time.sleep(0.3)
        alone = None
    else:
        alone = step()
    comm.barrier()
    if world.rank == 0:
        ratios.append(step() / alone)
    comm.all_reduce(x)
if world.rank == 0:
    print(json.dumps({"ratios": ratios, "asleep": comm.waits_asleep, "cores": world.cores}))
"""


def test_eight_ranks_that_wait_leave_the_cores_to_one(mpiexec: Any) -> None:
    result = mpiexec(8, ["-c", VICTIM])
    told = json.loads(result.stdout)
    assert told["asleep"] and told["cores"] <= 2
    ratios = sorted(told["ratios"])
    assert ratios[len(ratios) // 2] < 1.5, ratios


PLANNING = """
import os, sys, time
import hpc_alpa
from hpc_alpa.runtime.launch import init
world = init()
world.communicator.barrier()
before = time.process_time()
if world.rank == 0:
    time.sleep(1.0)  # plans
plan = world.communicator.broadcast_object("plan" if world.rank == 0 else None)
assert plan == "plan"
spent = world.communicator.gather_objects(time.process_time() - before)
if spent:
    assert max(spent) < 0.5, spent
"""


@pytest.mark.parametrize("policy", ["spin", "sleep"])
def test_ranks_wait_asleep_for_a_plan(mpiexec: Any, policy: str) -> None:
    mpiexec(2, ["-c", PLANNING], env={"HPC_ALPA_WAIT": policy})


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core: two ranks always sleep")
def test_settings_that_differ_between_ranks_are_made_one(mpiexec: Any) -> None:
    code = (
        "import os\n"
        "os.environ['HPC_ALPA_WAIT'] = 'spin' if os.environ['PMI_RANK'] == '0' else 'sleep'\n"
        "from hpc_alpa.runtime.launch import init\n"
        "assert init().communicator.waits_asleep"
    )
    mpiexec(2, ["-c", code])
