"""The collectives over MPI: one job of mpiexec per number of ranks runs them all."""

from __future__ import annotations

from typing import Any

import pytest

BULK = ["-m", "mpi4py", "-m", "pytest", "-p", "no:cacheprovider", "tests/mpi/comm_collectives.py"]


# "auto" sleeps where the ranks outnumber the cores; both ways run on any number of cores.
@pytest.mark.parametrize(
    ("ranks", "policy"),
    [
        (1, "auto"),
        (2, "spin"),
        pytest.param(2, "sleep", marks=pytest.mark.slow),
        pytest.param(3, "auto", marks=pytest.mark.slow),
        (4, "auto"),
    ],
)
def test_collectives(mpiexec: Any, ranks: int, policy: str) -> None:
    result = mpiexec(ranks, BULK, timeout=60, env={"HPC_ALPA_WAIT": policy})
    assert result.stdout.count(" passed") == ranks and "failed" not in result.stdout
