"""What the launchers tell the processes that they start, and which MPI library understands which.

Pure: everything is read from a mapping such as `os.environ`. Sources: MPICH (Hydra) and Intel MPI
set PMI_* and MPI_LOCALRANKID; Open MPI 5 documentation, "Environment variables set by mpirun";
Slurm `srun(1)`, output environment; MVAPICH2 user guide; ALCF user guide (PALS); `flux-run(1)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hpc_alpa.errors import LaunchError


@dataclass(frozen=True)
class Launcher:
    """One launcher: the variable that shows it, those that carry numbers, the libraries it starts.

    `libraries` are keys of LIBRARIES; empty: any of them, depending on the launcher's options.
    """

    name: str
    shown_by: str
    size: str
    rank: str
    local_rank: str
    libraries: tuple[str, ...]


@dataclass(frozen=True)
class Library:
    """One MPI library: how its version text begins, and what starts its programs."""

    begins: tuple[str, ...]
    start: str


@dataclass(frozen=True)
class Place:
    """A process's place among those that the launcher started, as its variables say."""

    launcher: Launcher
    size: int
    rank: int
    local_rank: int | None


# In the order of precedence: inside a Slurm allocation, mpiexec's processes see srun's variables
# too, and those may describe the proxies. SLURM_NTASKS is not used: a batch script, which srun did
# not start, sees it as well.
LAUNCHERS: tuple[Launcher, ...] = (
    Launcher(
        "mpirun of Open MPI",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        ("Open MPI",),
    ),
    Launcher(
        "mpirun of MVAPICH",
        "MV2_COMM_WORLD_SIZE",
        "MV2_COMM_WORLD_SIZE",
        "MV2_COMM_WORLD_RANK",
        "MV2_COMM_WORLD_LOCAL_RANK",
        ("MPICH",),
    ),
    Launcher(
        "mpiexec of PALS",
        "PALS_RANKID",
        "PMI_SIZE",
        "PALS_RANKID",
        "PALS_LOCAL_RANKID",
        ("Cray MPICH", "MPICH"),
    ),
    Launcher(
        "mpiexec of MPICH or Intel MPI (or srun --mpi=pmi2)",
        "PMI_SIZE",
        "PMI_SIZE",
        "PMI_RANK",
        "MPI_LOCALRANKID",
        ("Cray MPICH", "Intel MPI", "MPICH"),
    ),
    Launcher(
        "flux run", "FLUX_JOB_SIZE", "FLUX_JOB_SIZE", "FLUX_TASK_RANK", "FLUX_TASK_LOCAL_ID", ()
    ),
    Launcher(
        "srun", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", ()
    ),
)

LIBRARIES: dict[str, Library] = {  # alphabetical
    "Cray MPICH": Library(
        ("MPI VERSION    : CRAY MPICH", "CRAY MPICH"), "srun, or mpiexec of PALS"
    ),
    "Intel MPI": Library(("Intel(R) MPI",), "mpiexec of Intel MPI, or srun --mpi=pmi2"),
    "MPICH": Library(
        ("MPICH", "MVAPICH"),
        "mpiexec of MPICH (with PyPI's mpich it lies beside python), or srun --mpi=pmi2",
    ),
    "Open MPI": Library(
        ("Open MPI", "IBM Spectrum MPI"), "mpirun of the same Open MPI, or srun --mpi=pmix"
    ),
}


def place(environment: Mapping[str, str]) -> Place | None:
    """Where a launcher has put this process, or None if its variables are not there.

    Raises:
        LaunchError: a launcher's variable is not a number.
    """
    for launcher in LAUNCHERS:
        if launcher.shown_by in environment and launcher.size in environment:
            return Place(
                launcher=launcher,
                size=_number(environment, launcher.size) or 1,
                rank=_number(environment, launcher.rank) or 0,
                local_rank=_number(environment, launcher.local_rank),
            )
    return None


def library(version: str) -> str | None:
    """The key in LIBRARIES of the library with this version text, or None if it is not known."""
    for name, row in LIBRARIES.items():
        if version.startswith(row.begins):
            return name
    return None


def check_library(found: Place, version: str) -> None:
    """Before MPI starts: refuse a library that does not understand the launcher.

    Every process would then be alone in a world of size 1, and all would do the same work.

    Raises:
        LaunchError: with the name of the launcher that fits the library.
    """
    name = library(version)
    wanted = found.launcher.libraries
    if name is None or not wanted or name in wanted:
        return
    raise LaunchError(
        f"{_started(found)},"
        f" but mpi4py runs on {_short(version)}, which does not understand it.\n"
        f"  Start the job with {LIBRARIES[name].start},\n"
        f"  or install mpi4py for {' or '.join(wanted)}."
    )


def check_size(found: Place, world_size: int, version: str) -> None:
    """After MPI has started: refuse a world of another size than the launcher's.

    Raises:
        LaunchError: with the name of the launcher that fits the library.
    """
    if world_size == found.size:
        return
    name = library(version)
    start = LIBRARIES[name].start if name else "the mpiexec that belongs to this MPI library"
    raise LaunchError(
        f"{_started(found)},"
        f" but MPI_COMM_WORLD has size {world_size}: {_short(version)} did not take part.\n"
        f"  Start the job with {start}."
    )


def _started(found: Place) -> str:
    variable = f"{found.launcher.size}={found.size}"
    return f"{found.launcher.name} started {found.size} processes ({variable})"


def _number(environment: Mapping[str, str], variable: str) -> int | None:
    text = environment.get(variable)
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        raise LaunchError(f"{variable}={text!r} is not a number; who has set it?") from None


def _short(version: str) -> str:
    line = version.strip("\0").partition("\n")[0].partition(",")[0]
    return " ".join(line.split()) or "an unknown library"
