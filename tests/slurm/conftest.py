"""A private Slurm of two virtual nodes, one for a test session, and `sbatch` of the job scripts."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
# On a loaded machine Slurm's pmi2 plugin sometimes takes a half-read line of MPICH for a whole one
# (about one start in a hundred); the ranks then wait for ever for its answer.
SLURM_LOST_A_LINE = "mpi/pmi2: invalid client request"
COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "srun")


@dataclass(frozen=True)
class Job:
    """A job that has ended, or was only submitted: then its code is that of sbatch."""

    code: int
    id: int
    log: str
    out: Path


@dataclass(frozen=True)
class Slurm:
    """The Slurm commands of the private cluster."""

    environment: dict[str, str]
    folder: Path

    def run(self, *command: str, timeout: float = 30) -> str:
        """What a Slurm command prints."""
        return subprocess.run(
            command,
            env=self.environment,
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=True,
        ).stdout

    def sbatch(
        self,
        job: str,
        *arguments: str,
        out: Path,
        env: dict[str, str] | None = None,
        options: tuple[str, ...] = (),
        wait: bool = True,
        timeout: float = 240,
    ) -> Job:
        """Submit jobscripts/<job>.sbatch on 2 nodes x 2 ranks; results and the log are under `out`.

        `arguments` go to the program, `options` to sbatch. With `wait` this returns when the job
        has ended, or fails after `timeout` seconds; the caller asserts on the job's exit code.
        """
        for _ in range(3):
            ended = self._sbatch(job, arguments, out, env or {}, options, wait, timeout)
            if SLURM_LOST_A_LINE not in ended.log:
                break
        return ended

    def _sbatch(
        self,
        job: str,
        arguments: tuple[str, ...],
        out: Path,
        env: dict[str, str],
        options: tuple[str, ...],
        wait: bool,
        timeout: float,
    ) -> Job:
        out.mkdir(parents=True, exist_ok=True)
        ranks = ("--nodes=1", "--ntasks-per-node=1")
        if job != "plan":
            ranks = ("--nodes=2", "--ntasks-per-node=2")
        command = [
            "sbatch",
            "--parsable",
            *ranks,
            "--time=15",
            f"--output={out}/%j.log",
            *options,
            f"jobscripts/{job}.sbatch",
            *arguments,
        ]
        done = subprocess.run(
            command,
            env=self.environment | {"HPC_ALPA_OUT": str(out)} | env,
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 0, done.stderr
        identity = int(done.stdout.split(";")[0])
        log = out / f"{identity}.log"
        code = self._wait(identity, timeout, log) if wait else 0
        return Job(code, identity, log.read_text() if wait and log.exists() else "", out)

    def _wait(self, identity: int, timeout: float, log: Path) -> int:
        # `sbatch --wait` asks ever more rarely, and would add many seconds to a short job.
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            state = self.run("scontrol", "show", "job", "--oneliner", str(identity))
            fields = dict(re.findall(r"(\w+)=(\S*)", state))
            if fields["JobState"] not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"):
                code, signal = fields["ExitCode"].split(":")
                return int(code) or 128 * (signal != "0") + int(signal)
            if log.exists() and SLURM_LOST_A_LINE in log.read_text():
                self.run("scancel", str(identity))
            time.sleep(0.1)
        self.run("scancel", str(identity))
        text = log.read_text() if log.exists() else "(no log)"
        pytest.fail(f"job {identity} did not end within {timeout} s: {fields}\n{text}")


def _free_ports(count: int) -> int:
    """The first of `count` neighbouring TCP ports that nobody uses."""
    for first in range(17300, 18300, count):
        sockets = [socket.socket() for _ in range(count)]
        try:
            for offset, s in enumerate(sockets):
                s.bind(("127.0.0.1", first + offset))
            return first
        except OSError:
            continue
        finally:
            for s in sockets:
                s.close()
    raise RuntimeError("no neighbouring free ports between 17300 and 18300")


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if os.geteuid() != 0:
        pytest.skip("slurm: starts slurmd, which needs root")
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"slurm: no {', '.join(missing)}: apt-get install slurm-wlm munge")
    folder = tmp_path_factory.mktemp("slurm")
    command = [str(HERE / "up.sh"), str(folder), str(_free_ports(3))]
    down = [str(HERE / "down.sh"), str(folder)]
    watchdog = subprocess.Popen(
        [*down, str(os.getpid())], stdin=subprocess.DEVNULL, start_new_session=True
    )
    try:
        up = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert up.returncode == 0, up.stdout + up.stderr
        # Only what a user has: no variables of an outer Slurm or mpiexec.
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SLURM_", "SBATCH_", "SRUN_", "PMI_", "HPC_ALPA_"))
        }
        yield Slurm(
            kept
            | {
                "SLURM_CONF": str(folder / "slurm.conf"),
                "HPC_ALPA_SITE": "local",
                "HPC_ALPA_PYTHON": sys.executable,
                "PYTHONPATH": str(REPOSITORY),
            },
            folder,
        )
    finally:
        watchdog.kill()
        watchdog.wait()
        subprocess.run(down, timeout=60)
