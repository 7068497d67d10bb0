"""The start of a job: which launcher, which library, which cores; and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpc_alpa.comm.hosts import host_map
from hpc_alpa.errors import LaunchError
from hpc_alpa.runtime.launchers import LAUNCHERS, LIBRARIES, check_library, check_size, place

HYDRA = {"PMI_SIZE": "4", "PMI_RANK": "2", "MPI_LOCALRANKID": "0"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "PMIX_RANK": "3",
}
SRUN = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}
PALS = {"PALS_RANKID": "5", "PALS_LOCAL_RANKID": "1", "PMI_SIZE": "8", "PMI_RANK": "5"}

MPICH = "MPICH Version:      5.0.2\nMPICH Release date: ..."
OPEN = "Open MPI v5.0.11, package: Open MPI ..., ident: 5.0.11"
INTEL = "Intel(R) MPI Library 2021.18 for Linux* OS\n"
CRAY = "MPI VERSION    : CRAY MPICH version 8.1.29 (ANL base 3.4a2)\n"


@pytest.mark.parametrize(
    ("environment", "name", "numbers"),
    [
        (HYDRA, "mpiexec of MPICH", (4, 2, 0)),
        (OPEN_MPI, "mpirun of Open MPI", (4, 3, 1)),
        (SRUN, "srun", (4, 1, 1)),
        (PALS, "mpiexec of PALS", (8, 5, 1)),
        # mpiexec inside an allocation starts its proxies by srun, whose variables stay visible
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "2", **HYDRA}, "mpiexec of MPICH", (4, 2, 0)),
        ({**SRUN, **OPEN_MPI}, "mpirun of Open MPI", (4, 3, 1)),
    ],
)
def test_place(environment: dict[str, str], name: str, numbers: tuple[int, int, int]) -> None:
    found = place(environment)
    assert found is not None and found.launcher.name.startswith(name)
    assert (found.size, found.rank, found.local_rank) == numbers


def test_no_launcher() -> None:
    assert place({}) is None
    assert place({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) is None  # a batch script


def test_malformed_variable() -> None:
    with pytest.raises(LaunchError, match="PMI_SIZE='many' is not a number"):
        place({"PMI_SIZE": "many"})


def test_every_launcher_names_known_libraries() -> None:
    assert all(name in LIBRARIES for launcher in LAUNCHERS for name in launcher.libraries)


@pytest.mark.parametrize(
    ("environment", "version"),
    [(HYDRA, MPICH), (HYDRA, INTEL), (OPEN_MPI, OPEN), (SRUN, OPEN), (SRUN, MPICH), (PALS, CRAY)],
)
def test_launcher_and_library_that_fit(environment: dict[str, str], version: str) -> None:
    found = place(environment)
    assert found is not None
    check_library(found, version)
    check_library(found, "A library of tomorrow 1.0")
    check_size(found, found.size, version)


@pytest.mark.parametrize(
    ("environment", "version", "texts"),
    [
        (HYDRA, OPEN, ("PMI_SIZE=4", "Open MPI v5.0.11", "mpirun of the same Open MPI")),
        (OPEN_MPI, MPICH, ("OMPI_COMM_WORLD_SIZE=4", "MPICH Version", "mpiexec of MPICH")),
        (OPEN_MPI, INTEL, ("mpirun of Open MPI started 4", "mpiexec of Intel MPI")),
    ],
)
def test_wrong_launcher_is_refused(
    environment: dict[str, str], version: str, texts: tuple[str, ...]
) -> None:
    found = place(environment)
    assert found is not None
    with pytest.raises(LaunchError) as caught:
        check_library(found, version)
    assert all(text in str(caught.value) for text in texts)


def test_world_of_another_size_is_refused() -> None:
    found = place(SRUN)
    assert found is not None
    with pytest.raises(LaunchError, match=r"srun started 4.* has size 1.*\n.*srun --mpi=pmix"):
        check_size(found, 1, OPEN)


# In processes of their own


def run(code: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    hidden = ("PMI", "MPI_", "OMPI", "SLURM", "HPC_ALPA")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
    root = str(Path(__file__).resolve().parent.parent)
    return subprocess.run(
        [sys.executable, "-c", "from hpc_alpa.runtime import hooks; hooks.install()\n" + code],
        env=clean | {"PYTHONPATH": root} | environment,
        capture_output=True,
        text=True,
        timeout=40,
    )


INIT = "from hpc_alpa.runtime.launch import init; init()"


def test_launcher_of_open_mpi_with_library_of_mpich() -> None:
    """The real library, the variables of the other's launcher: told before MPI starts."""
    pytest.importorskip("mpi4py")
    result = run(INIT, OPEN_MPI | {"OMPI_COMM_WORLD_RANK": "0"})
    if "Open MPI v" in result.stderr:
        pytest.skip("mpi4py runs on Open MPI here")
    assert result.returncode == 1
    told = result.stderr.splitlines()
    assert told[0].startswith("[rank 0] LaunchError: mpirun of Open MPI started 4 processes")
    assert "Start the job with mpiexec of MPICH" in told[1]
    others = run(INIT, OPEN_MPI)
    assert (others.returncode, others.stderr.count("\n")) == (1, 1)
    assert others.stderr.startswith("[rank 3] LaunchError: mpirun of Open MPI started")


def test_singletons_are_refused() -> None:
    """`srun --mpi=none`: the library does not see the launcher, and each process is alone."""
    result = run(INIT, SRUN)
    assert result.returncode == 1
    assert "LaunchError: srun started 4 processes (SLURM_STEP_NUM_TASKS=4)" in result.stderr
    assert "MPI_COMM_WORLD has size 1" in result.stderr


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("HPC_ALPA_EXIT_SECONDS", "expected a number of seconds"),
        ("HPC_ALPA_WAIT", "expected one of"),
    ],
)
def test_malformed_settings_are_refused(mpiexec: Any, variable: str, text: str) -> None:
    code = "from hpc_alpa.runtime import hooks; hooks.install()\n" + INIT
    result = mpiexec(2, ["-c", code], env={variable: "soon"}, timeout=40, check=False)
    assert result.returncode == 1 and f"{variable}='soon': {text}" in result.stderr


def test_alone_without_mpi() -> None:
    code = """
import sys, os
sys.modules["mpi4py"] = None  # as if it were not installed
before = dict(os.environ), sys.excepthook, sys.exit
from hpc_alpa.runtime.launch import init
import numpy as np
world = init()
assert (world.rank, world.size, world.local_rank, world.local_size) == (0, 1, 0, 1)
assert world.hosts == ((0,),) and world.cores == world.threads == len(os.sched_getaffinity(0))
x = np.ones(3)
world.communicator.all_reduce(x)
assert x.tolist() == [1, 1, 1] and init() is world
assert before == (dict(os.environ), sys.excepthook, sys.exit)
assert not any(name.startswith(("cupy", "numba")) for name in sys.modules)
"""
    result = run(code, {})
    assert (result.returncode, result.stderr) == (0, "")


def test_mpi_is_not_started_for_one_rank() -> None:
    code = INIT + "\nimport sys; assert 'mpi4py.MPI' not in sys.modules"
    result = run(code, {"PMI_SIZE": "1", "PMI_RANK": "0"})
    assert (result.returncode, result.stderr) == (0, "")


WORLD = """
import json, os
from hpc_alpa.runtime import hooks
before = dict(os.environ)
hooks.install()
from hpc_alpa.runtime.launch import init
world = init()
changed = set(os.environ.items()) ^ set(before.items())
assert {name for name, _ in changed} <= {"KMP_DUPLICATE_LIB_OK"}  # threadpoolctl's own
assert init() is world
import numba, threadpoolctl
mine = dict(rank=world.rank, size=world.size, local=(world.local_rank, world.local_size),
            hosts=world.hosts, cores=world.cores, threads=world.threads,
            blas=[p["num_threads"] for p in threadpoolctl.threadpool_info()],
            numba=numba.get_num_threads(), asleep=world.communicator.waits_asleep)
told = world.communicator.gather_objects(mine)
if told:
    print(json.dumps(told))
"""


def test_world_of_two_hosts(mpiexec: Any) -> None:
    """MPICH splits the one host in two; ranks know their host, and the environment stays."""
    result = mpiexec(4, ["-c", WORLD], env={"MPIR_CVAR_NUM_CLIQUES": "2"})
    told = json.loads(result.stdout)
    cores = len(os.sched_getaffinity(0))
    assert [t["rank"] for t in told] == [0, 1, 2, 3]
    hosts = told[0]["hosts"]
    assert sorted(r for host in hosts for r in host) == [0, 1, 2, 3] and len(hosts) == 2
    for t in told:
        host = next(h for h in hosts if t["rank"] in h)
        assert t["local"] == [host.index(t["rank"]), 2] and t["hosts"] == hosts
        assert t["threads"] == max(1, cores // 2) and t["cores"] == cores
        assert all(n <= t["threads"] for n in t["blas"]) and t["numba"] <= t["threads"]
        assert t["asleep"] == (cores < 2)
    assert result.stderr.count("hpc_alpa: 4 ranks on 2 hosts") == 1


def test_a_lower_limit_stays(mpiexec: Any) -> None:
    told = json.loads(mpiexec(2, ["-c", WORLD], env={"OPENBLAS_NUM_THREADS": "1"}).stdout)
    assert all(t["blas"] == [1] * len(t["blas"]) for t in told)


def test_wrong_local_rank_is_told(mpiexec: Any) -> None:
    code = "import os; os.environ['MPI_LOCALRANKID'] = '5'\n" + WORLD
    result = mpiexec(2, ["-c", code])
    assert [t["local"] for t in json.loads(result.stdout)] == [[0, 2], [1, 2]]
    assert "[rank 1] MPI_LOCALRANKID=5, but by shared memory the local rank is 1" in result.stderr


def test_cores_of_a_host_are_those_of_all_its_ranks() -> None:
    """Open MPI binds each rank to a core of its own: the ranks do not outnumber the cores."""
    bound = host_map([0, 0, 2, 2], [frozenset({0}), frozenset({1}), frozenset({0}), frozenset({0})])
    assert bound.ranks == ((0, 1), (2, 3)) and bound.cores == (2, 1)
    assert bound.of(3) == 1
