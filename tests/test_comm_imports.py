"""Importing the packages starts nothing and loads no optional library."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("hpc_alpa.comm", ("mpi4py", "cupy", "numba")),
        ("hpc_alpa.comm.local", ("mpi4py", "cupy", "numba")),
        ("hpc_alpa.comm.nccl", ("mpi4py", "cupy", "numba")),
        ("hpc_alpa.comm.null", ("mpi4py", "cupy", "numba")),
        ("hpc_alpa.runtime.hooks", ("mpi4py", "cupy", "numba", "numpy")),
        ("hpc_alpa.runtime.launch", ("mpi4py", "cupy", "numba")),
    ],
)
def test_import_is_light(module: str, absent: tuple[str, ...]) -> None:
    code = (
        "import os, sys\n"
        "before = dict(os.environ)\n"
        f"import {module}\n"
        "assert dict(os.environ) == before\n"
        f"print([m for m in {absent!r} if m in sys.modules])"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PMI", "OMPI", "SLURM"))}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=clean | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (result.returncode, result.stdout.strip()) == (0, "[]"), result.stderr


def test_importing_the_mpi_backend_does_not_start_mpi() -> None:
    code = (
        "import hpc_alpa.comm.mpi\n"
        "from mpi4py import MPI\n"
        "assert not MPI.Is_initialized() and not MPI.Is_finalized()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=30)
