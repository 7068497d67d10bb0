"""However a rank ends, the job ends in seconds: with its message and code, or with 0 when good."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.alone

HEAD = """
import os, signal, sys, threading, time
from hpc_alpa.runtime import hooks
hooks.install()
import numpy as np
from hpc_alpa.runtime.launch import init
rank = int(os.environ["PMI_RANK"])

def step(world):
    world.communicator.all_reduce(np.zeros(3))
"""

# name: (what the ranks do, the job's exit code, what stderr says)
FAILURES: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "raise before init": (
        """
        if rank == 1:
            raise ValueError("bad flag")
        init()
        """,
        1,
        ("[rank 1] Traceback", "ValueError: bad flag"),
    ),
    "raise in a step": (
        """
        world = init()
        step(world)
        if rank == 1:
            raise ValueError("bad step")
        step(world)
        """,
        1,
        ("[rank 1] Traceback", "ValueError: bad step"),
    ),
    "raise on all ranks": (
        """
        step(init())
        raise ValueError("bad everywhere")
        """,
        1,
        ("Traceback", "ValueError: bad everywhere"),
    ),
    "sys.exit(7) in a step": (
        """
        world = init()
        step(world)
        if rank == 1:
            sys.exit(7)
        step(world)
        """,
        7,
        ("[rank 1] leaves with exit code 7",),
    ),
    "sys.exit(7) before init": (
        """
        if rank == 1:
            sys.exit(7)
        step(init())
        """,
        7,
        ("[rank 1] leaves with exit code 7",),
    ),
    "sys.exit through a function, with and finally": (
        """
        def main():
            try:
                with open(os.devnull):
                    sys.exit("no data")
            finally:
                time.sleep(0)
        world = init()
        with open(os.devnull):
            try:
                if rank == 1:
                    main()
            finally:
                time.sleep(0)
        step(world)
        """,
        1,
        ("no data", "[rank 1] leaves with exit code 1"),
    ),
    "KeyboardInterrupt": (
        """
        world = init()
        if rank == 1:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(30)
        step(world)
        """,
        130,
        ("[rank 1] Traceback", "KeyboardInterrupt"),
    ),
    "exception in a thread": (
        """
        world = init()
        def work():
            raise ValueError("bad thread")
        if rank == 1:
            threading.Thread(target=work, name="loader").start()
        step(world)
        step(world)
        time.sleep(30)
        """,
        1,
        ("[rank 1] in thread loader: Traceback", "ValueError: bad thread"),
    ),
    "exception in a thread while the main thread waits": (
        """
        world = init()
        def work():
            time.sleep(0.5)
            raise ValueError("bad thread")
        if rank == 1:
            threading.Thread(target=work, name="loader").start()
            step(world)
        time.sleep(30)
        """,
        1,
        ("[rank 1] in thread loader: Traceback", "ValueError: bad thread"),
    ),
    "kill -9": (
        """
        world = init()
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        step(world)
        """,
        9,
        ("BAD TERMINATION",),
    ),
    "a rank ends without the others": (
        """
        world = init()
        if rank == 0:
            step(world)
        """,
        1,
        ("[rank 1] leaves with exit code 0, but the other ranks did not within 1 s",),
    ),
}

GOOD: dict[str, tuple[str, int]] = {
    "steps": ("step(init())", 0),
    "import only": ("", 0),
    "one rank is late": ("step(init()); time.sleep(1.5 * (rank == 1))", 0),
    "all leave with the same code": ("init(); sys.exit(3)", 3),
    "all leave before init": ("sys.exit(2)", 2),
    "sys.exit(0)": ("init(); sys.exit(0)", 0),
    "a caught exit is no exit": (
        """
        world = init()
        def parse():
            sys.exit(2)
        try:
            if rank == 1:
                parse()
        except SystemExit:
            pass
        time.sleep(2.5 * (rank == 0))
        """,
        0,
    ),
    "the script's own mpi4py": (
        """
        from mpi4py import MPI
        assert MPI.COMM_WORLD.size == 2
        step(init())
        """,
        0,
    ),
    "left-over messages": (
        """
        world = init()
        if rank == 0:
            request = world.communicator.send(np.zeros(1 << 20), 1)
        """,
        0,
    ),
}


def script(path: Path, body: str) -> Path:
    lines = body.strip("\n").splitlines()
    indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    path.write_text(HEAD + "\n" + "\n".join(line[indent:] for line in lines) + "\n")
    return path


@pytest.mark.parametrize("name", FAILURES)
def test_failure_ends_the_job(mpiexec: Any, tmp_path: Path, name: str) -> None:
    body, code, texts = FAILURES[name]
    start = time.perf_counter()
    # Under mpiexec alone, not `python -m mpi4py`: this is how users start it.
    result = mpiexec(
        2,
        [script(tmp_path / "train.py", body)],
        timeout=25,
        env={"HPC_ALPA_EXIT_SECONDS": "1"},
        check=False,
    )
    text = result.stdout + result.stderr
    assert result.returncode == code, text
    assert all(t in text for t in texts), text
    assert time.perf_counter() - start < 20


@pytest.mark.parametrize("name", GOOD)
def test_good_run_ends_quietly(mpiexec: Any, tmp_path: Path, name: str) -> None:
    body, code = GOOD[name]
    result = mpiexec(2, [script(tmp_path / "train.py", body)], timeout=25, check=False)
    text = result.stdout + result.stderr
    assert result.returncode == code, text
    assert "Traceback" not in text and "aborted" not in text
    if code == 0:
        assert "BAD TERMINATION" not in text


def test_failure_with_four_ranks_that_wait_spinning(mpiexec: Any, tmp_path: Path) -> None:
    body, code, texts = FAILURES["raise in a step"]
    path = script(tmp_path / "train.py", body)
    result = mpiexec(4, [path], timeout=25, env={"HPC_ALPA_WAIT": "spin"}, check=False)
    assert result.returncode == code and all(t in result.stderr for t in texts), result.stderr
