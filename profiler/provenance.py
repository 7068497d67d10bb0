"""What a run was made with: hardware, libraries, date, command, hosts."""

import hashlib
import json
import os
import platform
import socket
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from hpc_alpa.cost import Run, machine_facts
from hpc_alpa.profiler.setting import Setting

LIBRARIES = ("hpc_alpa", "h5py", "mpi4py", "numba", "numpy", "scipy", "threadpoolctl")
BLAS_KEYS = ("name", "version", "openblas configuration")
# What changes how fast the libraries are.
ENVIRONMENT = (
    "HPC_ALPA_",
    "I_MPI_",
    "MKL_",
    "MPICH_",
    "MPIR_",
    "NUMBA_",
    "OMP_",
    "OMPI_",
    "OPENBLAS_",
    "UCX_",
)


def host_digest() -> str:
    """12 hexadecimal digits for a host's name: tells hosts apart without naming them."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:12]


def run_facts(setting: Setting, hosts: Sequence[str]) -> Run:
    """Provenance of this run. `hosts`: `host_digest` of every rank."""
    import numpy as np

    variables = {k: v for k, v in os.environ.items() if k.startswith(ENVIRONMENT)}
    config: Any = np.show_config(mode="dicts")
    built = config.get("Build Dependencies", {}).get("blas", {})
    told = {key: built[key] for key in BLAS_KEYS if key in built}
    program = "python -m hpc_alpa.profiler" if "profiler" in sys.argv[0] else sys.argv[0]
    return Run.of(
        **{f"machine_{key}": value for key, value in machine_facts().items()},
        blas=json.dumps(told),
        cores_usable=setting.cores,
        command=" ".join([program, *sys.argv[1:]]),
        date=datetime.now(UTC).isoformat(),
        environment=json.dumps(variables, sort_keys=True),
        hosts_sha256=" ".join(dict.fromkeys(hosts)),
        libraries=json.dumps({name: _version(name) for name in LIBRARIES}),
        mpi=mpi_library(),
        python=platform.python_version(),
        ranks=setting.world.size,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
    )


def mpi_library() -> str:
    """First line of the MPI library's own description; "not started" in a run without MPI."""
    if "mpi4py.MPI" not in sys.modules:
        return "not started"
    from mpi4py import MPI

    return MPI.Get_library_version().splitlines()[0]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
