"""The job scripts, by sbatch, on 2 virtual nodes x 2 ranks with the host backend."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path

import pytest

from tests.slurm.conftest import Slurm

pytestmark = [pytest.mark.alone, pytest.mark.slurm]

PROGRAMS = Path(__file__).parent / "programs"

# 3 steps of a GPT that is searched in seconds: one microbatch, so no pipelines.
SMALL = (
    *("--layers", "1", "--hidden", "48", "--heads", "6", "--sequence", "32"),
    *("--batch", "16", "--microbatches", "1", "--steps", "3", "--seed", "1"),
)
CLUSTER = """
name = "two virtual nodes"
[[host]]
count = 2
devices = 2
cores = 2
memory_bytes = 4e9
flops = {float32 = 1e11}
memory_bandwidth = 2e10
[link.host]
alpha = 5e-6
beta = 1e-10
[link.network]
alpha = 5e-5
beta = 1e-8
"""


@pytest.fixture(scope="module")
def database(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cost database that profile.sbatch writes on 4 ranks."""
    out = tmp_path_factory.mktemp("profile")
    path = out / "costs.h5"
    sweep = ("--seconds", "20", "--max-bytes", "65536", "--dtype", "float32")
    job = slurm.sbatch("profile", *sweep, out=out, env={"HPC_ALPA_DB": str(path)})
    assert job.code == 0, job.log
    return path


def test_profile_writes_a_database(database: Path) -> None:
    import h5py

    with h5py.File(database) as file:
        assert file.attrs["format"] == "hpc_alpa-costs"
        assert {"operators", "collectives", "point_to_point"} <= set(file)


def test_plan_writes_a_plan_that_train_follows(slurm: Slurm, tmp_path: Path) -> None:
    cluster = tmp_path / "cluster.toml"
    cluster.write_text(CLUSTER)
    env = {"HPC_ALPA_CLUSTER": str(cluster)}
    job = slurm.sbatch("plan", "--", *SMALL, out=tmp_path / "plan", env=env)
    assert job.code == 0, job.log
    plan = job.out / "plan.json"
    assert json.loads(plan.read_text())

    env["HPC_ALPA_PLAN"] = str(plan)
    job = slurm.sbatch("train", *SMALL, "--analytic", out=tmp_path / "train", env=env)
    assert job.code == 0, job.log
    result = json.loads((job.out / "train.json").read_text())
    assert result["ranks"] == 4 and len(result["losses"]) == 3


def test_plan_needs_a_cluster(slurm: Slurm, tmp_path: Path) -> None:
    job = slurm.sbatch("plan", out=tmp_path)
    assert job.code == 2
    assert "HPC_ALPA_CLUSTER is not set" in job.log


def test_train_uses_the_database(slurm: Slurm, database: Path, tmp_path: Path) -> None:
    job = slurm.sbatch("train", *SMALL, out=tmp_path, env={"HPC_ALPA_DB": str(database)})
    assert job.code == 0, job.log
    result = json.loads((tmp_path / "train.json").read_text())
    assert result["ranks"] == 4
    assert len(result["losses"]) == 3
    assert (tmp_path / "plan.json").exists()


def test_train_without_costs_says_what_to_do(slurm: Slurm, tmp_path: Path) -> None:
    env = {"HPC_ALPA_DB": str(tmp_path / "none.h5")}
    job = slurm.sbatch("train", *SMALL, out=tmp_path, env=env)
    assert job.code == 2
    assert f"no cost database at {tmp_path}/none.h5" in job.log
    assert "profile.sbatch" in job.log


def test_scaling_runs_1_2_and_4_ranks(slurm: Slurm, tmp_path: Path) -> None:
    job = slurm.sbatch("scaling", *SMALL, "--analytic", out=tmp_path)
    assert job.code == 0, job.log
    with open(tmp_path / "scaling.csv") as file:
        table = list(csv.DictReader(file))
    assert [row["ranks"] for row in table] == ["1", "2", "4"]
    assert float(table[0]["efficiency"]) == 1.0
    assert all(float(row["step_seconds"]) > 0 for row in table)


def test_a_failed_rank_ends_the_job(slurm: Slurm, tmp_path: Path) -> None:
    begin = time.monotonic()
    env = {"HPC_ALPA_SCRIPT": str(PROGRAMS / "raise_on_rank_1.py")}
    job = slurm.sbatch("train", "--analytic", out=tmp_path, env=env)
    assert job.code != 0
    assert "this rank fails on purpose" in job.log
    assert "[rank 1]" in job.log
    assert time.monotonic() - begin < 30


def test_unknown_site_is_named(slurm: Slurm, tmp_path: Path) -> None:
    job = slurm.sbatch("train", out=tmp_path, env={"HPC_ALPA_SITE": "atlantis"})
    assert job.code == 2
    assert "no site 'atlantis'" in job.log and "perlmutter" in job.log


def _wait_for(condition, what: str, seconds: float = 240) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.1)


def _started(out: Path, start: int) -> bool:
    return len(list(out.glob(f"start-*-{start}"))) == 4


def _ended(out: Path, start: int) -> list[str]:
    return [path.read_text() for path in out.glob(f"end-*-{start}")]


def test_time_limit_reaches_the_ranks(slurm: Slurm, tmp_path: Path) -> None:
    """Without restarts the signal ends the job, after every rank has had its SIGTERM."""
    env = {"HPC_ALPA_SCRIPT": str(PROGRAMS / "until_term.py")}
    job = slurm.sbatch("train", "--analytic", out=tmp_path, env=env, wait=False)
    _wait_for(lambda: _started(tmp_path, 0), "start")
    slurm.run("scancel", "--batch", "--signal=USR1", str(job.id))
    _wait_for(lambda: len(_ended(tmp_path, 0)) == 4, "SIGTERM on 4 ranks")
    assert _ended(tmp_path, 0) == ["SIGTERM"] * 4
    _wait_for(lambda: not slurm.run("squeue", "--noheader"), "the end of the job")
    assert not _started(tmp_path, 1)


def test_successor_goes_on(slurm: Slurm, tmp_path: Path) -> None:
    """Where requeueing is off, the job submits itself again, with its options and arguments."""
    site = tmp_path / "jobscripts"
    _copy_jobscripts_with(site, "SITE_RESTART=successor")
    env = {
        "HPC_ALPA_JOBSCRIPTS": str(site),
        "HPC_ALPA_SCRIPT": str(PROGRAMS / "until_term.py"),
        "HPC_ALPA_MAX_RESTARTS": "1",
    }
    out = tmp_path / "out"
    job = slurm.sbatch("train", "--analytic", out=out, env=env, wait=False)
    _wait_for(lambda: _started(out, 0), "start")
    slurm.run("scancel", "--batch", "--signal=USR1", str(job.id))
    _wait_for(lambda: len(_ended(out, 1)) == 4, "the successor's end")
    assert _ended(out, 0) == ["SIGTERM"] * 4
    assert _ended(out, 1) == ["done"] * 4
    _wait_for(lambda: not slurm.run("squeue", "--noheader"), "the end of the jobs")
    # it goes on in the same log
    assert [path.name for path in out.glob("*.log")] == [f"{job.id}.log"]


def test_requeue_goes_on(slurm: Slurm, tmp_path: Path) -> None:
    env = {
        "HPC_ALPA_SCRIPT": str(PROGRAMS / "until_term.py"),
        "HPC_ALPA_MAX_RESTARTS": "1",
    }
    job = slurm.sbatch(
        "train", "--analytic", out=tmp_path, env=env, options=("--requeue",), wait=False
    )
    _wait_for(lambda: _started(tmp_path, 0), "start")
    slurm.run("scancel", "--batch", "--signal=USR1", str(job.id))
    _wait_for(lambda: "Restarts=1" in slurm.run("scontrol", "show", "job", str(job.id)), "requeue")
    _wait_for(lambda: len(_ended(tmp_path, 1)) == 4, "the second run's end")
    assert _ended(tmp_path, 0) == ["SIGTERM"] * 4
    assert _ended(tmp_path, 1) == ["done"] * 4
    _wait_for(lambda: not slurm.run("squeue", "--noheader"), "the end of the job")


def _copy_jobscripts_with(folder: Path, setting: str) -> None:
    import shutil

    shutil.copytree(Path(__file__).parents[2] / "jobscripts", folder)
    with open(folder / "sites" / "local.sh", "a") as file:
        file.write(f"{setting}\n")
