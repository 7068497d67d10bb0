"""Timing loops: warm-up, as many repetitions as fit, seconds of single calls."""

import time
from collections.abc import Callable
from itertools import count, islice

Now = Callable[[], float]

# "cpu" is for hosts with more ranks than cores: wall time would count the other ranks' turns. Of
# this thread alone, which does all the work under one thread per rank: BLAS's workers spin on for
# some hundredths of a second after a product with several.
CLOCKS: dict[str, Now] = {"cpu": time.thread_time, "wall": time.perf_counter}

RESOLVED = 2e-5
"""Seconds that one reading must cover: 100 times what reading a clock costs."""
MIN_REPEATS = 3
MAX_REPEATS = 200


def repeat(call: Callable[[int], object], seconds: float, now: Now, warm: int = 1) -> list[float]:
    """Seconds of single calls, repeated for `seconds`; up to `warm` calls before do not count.

    `call` gets the number of the repetition, so that it can take other operands each time. Calls
    too short for the clock are read in bundles and divided.
    """
    turn = count()
    call(next(turn))  # compiles, loads
    end = time.perf_counter() + seconds / 2
    for i in islice(turn, warm - 1):
        if time.perf_counter() < end:
            call(i)
    start, before = time.perf_counter(), now()
    call(next(turn))
    once = time.perf_counter() - start
    found = [max(now() - before, 1e-9)] if once > seconds else []
    bundle = max(1, round(RESOLVED / max(once, 1e-9)))
    end = time.perf_counter() + seconds
    while len(found) < MIN_REPEATS or (time.perf_counter() < end and len(found) < MAX_REPEATS):
        before = now()
        for i in islice(turn, bundle):
            call(i)
        found.append(max((now() - before) / bundle, 1e-9))
    return found


def repetitions(once: float, seconds: float) -> int:
    """How often something of `once` seconds is repeated in `seconds`."""
    return min(MAX_REPEATS, max(MIN_REPEATS, round(seconds / max(once, 1e-9))))
