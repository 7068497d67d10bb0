"""What every test can use: the fixture `mpiexec`, and why a marked test is skipped."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import hypothesis
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

# pytest-isolate-mpi looks for mpirun on PATH when it starts; so `python -m pytest` also works with
# the Python of an environment that is not activated.
if Path(sys.executable).with_name("mpiexec").exists():
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"

# On a shared machine one example may take long by chance.
hypothesis.settings.register_profile("shared machine", deadline=None)
hypothesis.settings.load_profile("shared machine")

# A test searches, also where another one has searched for the same.
os.environ["HPC_ALPA_PLANS"] = ""

Mpiexec = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hpc_alpa")
    group.addoption("--slow", action="store_true", help="run the tests marked slow too")
    group.addoption("--slurm", action="store_true", help="run the tests marked slurm too")
    group.addoption(
        "--fail-skipped",
        metavar="MARKER",
        action="append",
        default=[],
        help="a skipped test with this marker is a failure",
    )


def _cuda_compiler() -> bool:
    return importlib.util.find_spec("numba_cuda") is not None


def _gpu() -> bool:
    if importlib.util.find_spec("cupy") is None:
        return False
    import cupy

    return bool(cupy.cuda.is_available())


# marker: (may its tests run here?, the reason if not)
CONDITIONS: dict[str, tuple[Callable[[pytest.Config], bool], str]] = {
    "cuda_compile": (lambda _: _cuda_compiler(), "no CUDA compiler: run `make test-cuda`"),
    "gpu": (lambda _: _gpu(), "no GPU that CuPy can use: install the extra cuda12 on a GPU node"),
    "slow": (lambda config: config.getoption("--slow"), "takes minutes: run `make test-all`"),
    "slurm": (
        lambda config: config.getoption("--slurm"),
        "starts a private Slurm as root: run `make test-slurm`",
    ),
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    used = {name for name in CONDITIONS for item in items if item.get_closest_marker(name)}
    skips = {
        name: pytest.mark.skip(reason=f"{name}: {reason}")
        for name, (condition, reason) in CONDITIONS.items()
        if name in used and not condition(config)
    }
    for item in items:
        for name, skip in skips.items():
            if item.get_closest_marker(name):
                item.add_marker(skip)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    """CI must not pass because a test it installed Slurm for was skipped."""
    report = yield
    required = [m for m in item.config.getoption("--fail-skipped") if item.get_closest_marker(m)]
    if report.skipped and required and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, but --fail-skipped={required[0]}: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def mpiexec() -> Mpiexec:
    """`mpiexec(n, args, timeout=60, env=None, check=True)`: run `python ARGS` on n ranks.

    `args` are Python's arguments, `env` is added to the environment. Returns the CompletedProcess,
    stdout and stderr as text. A run that exceeds `timeout` seconds is killed with all its ranks and
    fails the test with what it printed; so does a non-zero exit code unless `check` is false.
    """
    launcher = shutil.which("mpiexec")
    if launcher is None:
        pytest.skip("mpiexec: none beside this Python or on PATH; install the extra mpich")

    def run(
        n: int,
        args: Sequence[str | os.PathLike[str]],
        timeout: float = 60,
        env: dict[str, str] | None = None,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        command = [launcher, "-n", str(n), sys.executable, *(os.fspath(a) for a in args)]
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=_clean_environment() | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            pytest.fail(f"no end after {timeout} s: {command}\n{_tail(out)}\n{_tail(err)}")
        if check and process.returncode != 0:
            pytest.fail(f"exit code {process.returncode}: {command}\n{_tail(out)}\n{_tail(err)}")
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    return run


def _clean_environment() -> dict[str, str]:
    # A rank that itself starts mpiexec would hand its own place in the outer job to inner ranks.
    launchers = ("PMI_", "PMIX_", "HYDRA_", "HYDI_", "MPIR_CVAR_", "MPI_LOCAL", "OMPI_", "PRTE_")
    env = {k: v for k, v in os.environ.items() if not k.startswith(launchers)}
    # The checkout is importable from anywhere, whether or not it is installed.
    path = os.environ.get("PYTHONPATH")
    return env | {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{path}" if path else str(REPOSITORY)}


def _tail(text: str, lines: int = 60) -> str:
    return "\n".join(text.splitlines()[-lines:])
