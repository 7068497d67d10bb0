"""How a rank waits: spinning inside the MPI library, or asleep.

MPI libraries poll while they wait. With a core for each rank that is the fastest way; with more
ranks than cores it takes the cores from the ranks that still compute (8 ranks on 2 cores: rank 0's
step takes 3.8 times as long). So there a rank polls a few times and then sleeps for a tenth of the
time waited so far: late by 10 % at most, and never by more than a millisecond. (Yielding the core
before sleeping gained nothing: with other work on it, a yielded core is gone for a time slice.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from hpc_alpa.errors import LaunchError

POLICIES = ("auto", "sleep", "spin")
VARIABLE = "HPC_ALPA_WAIT"

IMMEDIATE_TESTS = 20
SHORTEST_SLEEP_SECONDS = 2e-5  # below, the timer's own slack dominates
LONGEST_SLEEP_SECONDS = 1e-3
SLEEP_SHARE = 0.1


def sleeps(environment: Mapping[str, str], num_ranks: int, num_cores: int) -> bool:
    """Whether the ranks of a host wait asleep: as HPC_ALPA_WAIT says, by default when they
    outnumber the cores.

    Raises:
        LaunchError: HPC_ALPA_WAIT is none of auto, sleep, spin.
    """
    policy = environment.get(VARIABLE, "auto")
    if policy not in POLICIES:
        raise LaunchError(f"{VARIABLE}={policy!r}: expected one of {', '.join(POLICIES)}.")
    return policy == "sleep" or (policy == "auto" and num_ranks > num_cores)


def wait_asleep(test: Callable[[], bool], seconds: float | None = None) -> bool:
    """Poll `test` until it is true, mostly asleep; False if `seconds` have passed before."""
    for _ in range(IMMEDIATE_TESTS):
        if test():
            return True
    start = time.perf_counter()
    while True:
        waited = time.perf_counter() - start
        if seconds is not None and waited > seconds:
            return False
        pause = max(SHORTEST_SLEEP_SECONDS, SLEEP_SHARE * waited)
        time.sleep(min(LONGEST_SLEEP_SECONDS, pause))
        if test():
            return True
