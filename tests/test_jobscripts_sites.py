"""Every site's settings make the right commands, without a scheduler: `--dry-run` prints them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

JOBSCRIPTS = Path(__file__).resolve().parent.parent / "jobscripts"
SITES = sorted(path.stem for path in (JOBSCRIPTS / "sites").glob("*.sh"))
JOBS = ("profile", "plan", "train", "scaling")
BACKENDS = ("cuda", "host")

# (ranks per node, CPUs per rank, backend): one rank per GPU, with its share of the host
EXPECTED = {
    "alps": (4, 72, "cuda"),
    "frontier": (8, 7, "host"),
    "juwels-booster": (4, 12, "cuda"),
    "jupiter": (4, 72, "cuda"),
    "leonardo": (4, 8, "cuda"),
    "local": (2, 1, "host"),
    "lumi-g": (8, 6, "host"),
    "marenostrum5": (4, 20, "cuda"),
    "perlmutter": (4, 32, "cuda"),
    "polaris": (4, 8, "cuda"),
}
PBS = {"polaris"}
NVIDIA = sorted(site for site, (_, _, backend) in EXPECTED.items() if backend == "cuda")
SLURM_NVIDIA = sorted(set(NVIDIA) - PBS)


def run(command: list[str], cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    ours = ("SLURM_", "PBS_", "HPC_ALPA_", "NCCL_", "OMP_", "CUDA_", "MPICH_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(
        command, cwd=cwd, env=clean | env, capture_output=True, text=True, timeout=20
    )


def submit(cwd: Path, *arguments: str, **env: str) -> list[str]:
    """The words of the command that submit.sh would run."""
    done = run([str(JOBSCRIPTS / "submit.sh"), "--dry-run", *arguments], cwd, **env)
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout)


def job(cwd: Path, name: str, *arguments: str, **env: str) -> list[list[str]]:
    """The launch commands of a job script, run by hand as the scheduler would, but only printed.

    On 2 nodes, or NODES of the environment.
    """
    nodes = int(env.get("NODES", 2))
    site = env["HPC_ALPA_SITE"]
    nodefile = cwd / "nodes"
    nodefile.write_text("".join(f"node{i}\n" for i in range(nodes)))
    scheduler = (
        {"PBS_NODEFILE": str(nodefile), "PBS_O_WORKDIR": str(cwd), "PBS_JOBID": "7.host"}
        if site in PBS
        else {"SLURM_JOB_NUM_NODES": str(nodes), "SLURM_SUBMIT_DIR": str(cwd), "SLURM_JOB_ID": "7"}
    )
    done = run(
        ["bash", str(JOBSCRIPTS / f"{name}.sbatch"), *arguments],
        cwd,
        HPC_ALPA_JOBSCRIPTS=str(JOBSCRIPTS),
        HPC_ALPA_DRY_RUN="1",
        HPC_ALPA_PYTHON=sys.executable,
        **scheduler,
        **env,
    )
    assert done.returncode == 0 or name == "scaling", done.stderr
    return [shlex.split(line[2:]) for line in done.stderr.splitlines() if line.startswith("+ ")]


def test_every_site_is_expected() -> None:
    assert sorted(EXPECTED) == SITES


@pytest.mark.parametrize("site", SITES)
def test_site_says_where_its_lines_come_from(site: str) -> None:
    text = (JOBSCRIPTS / "sites" / f"{site}.sh").read_text()
    assert "Source" in text or site == "local"


@pytest.mark.parametrize("site", SITES)
def test_submit(site: str, tmp_path: Path) -> None:
    ranks, cpus, _ = EXPECTED[site]
    words = submit(tmp_path, "train", "--account=abc", "--", "--layers", "2", HPC_ALPA_SITE=site)
    assert "--account=abc" in words
    if site in PBS:
        assert words[0] == "qsub" and words[-1].endswith(f"{site}.pbs")
    else:
        assert words[0] == "sbatch" and words[-3:-2][0].endswith("train.sbatch")
        assert words[-2:] == ["--layers", "2"]
        assert f"--ntasks-per-node={ranks}" in words
        assert f"--cpus-per-task={cpus}" in words


@pytest.mark.parametrize("site", SLURM_NVIDIA)
def test_gpus_are_asked_for_only_with_cuda(site: str, tmp_path: Path) -> None:
    def gpu_options(backend: str) -> list[str]:
        words = submit(tmp_path, "train", HPC_ALPA_SITE=site, HPC_ALPA_BACKEND=backend)
        return [word for word in words if word.startswith(("--gpus", "--gres"))]

    assert gpu_options("cuda") and not gpu_options("host")
    assert any(word.endswith(("=4", ":4")) for word in gpu_options("cuda"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("site", SITES)
def test_train_starts_one_rank_per_device(site: str, backend: str, tmp_path: Path) -> None:
    ranks = 2 * EXPECTED[site][0]
    (words,) = job(tmp_path, "train", "--analytic", HPC_ALPA_SITE=site, HPC_ALPA_BACKEND=backend)
    launcher = words[: words.index(sys.executable)]
    if site in PBS:
        assert launcher[:5] == ["mpiexec", "-n", str(ranks), "--ppn", str(EXPECTED[site][0])]
    else:
        assert launcher[0] == "srun" and f"--ntasks={ranks}" in launcher
        assert "--kill-on-bad-exit=1" in launcher
    # a rank that sees one GPU only cannot reach its neighbours by CUDA IPC
    assert not any("gpus-per-task" in word for word in launcher)
    if backend == "host":
        assert not any("gpu" in word.lower() or "CUDA" in word for word in launcher)
    program = words[len(launcher) + 1 :]
    assert program[:3] == ["examples/train_gpt.py", "--backend", backend]
    assert program[-1] == "--analytic"


@pytest.mark.parametrize("site", ["local", "perlmutter", "polaris"])
def test_scaling_doubles_up_to_all_ranks(site: str, tmp_path: Path) -> None:
    per_node = EXPECTED[site][0]
    commands = job(tmp_path, "scaling", "--analytic", NODES="3", HPC_ALPA_SITE=site)
    option = (lambda c: c[2]) if site in PBS else (lambda c: c[2].removeprefix("--ntasks="))
    counts = [int(option(command)) for command in commands]
    assert counts == [n for n in (1, 2, 4, 8) if n < 3 * per_node] + [3 * per_node]
    if site not in PBS:
        assert [c[1] for c in commands] == [f"--nodes={-(-n // per_node)}" for n in counts]


@pytest.mark.parametrize("name", JOBS)
def test_polaris_hands_the_job_over(name: str, tmp_path: Path) -> None:
    (tmp_path / "nodes").write_text("a\nb\n")
    done = run(
        ["bash", str(JOBSCRIPTS / "polaris.pbs")],
        tmp_path,
        PBS_O_WORKDIR=str(tmp_path),
        PBS_NODEFILE=str(tmp_path / "nodes"),
        PBS_JOBID="7",
        HPC_ALPA_JOBSCRIPTS=str(JOBSCRIPTS),
        HPC_ALPA_JOB=name,
        HPC_ALPA_ARGUMENTS="--analytic --seed 3",
        HPC_ALPA_CLUSTER="some.toml",
        HPC_ALPA_DRY_RUN="1",
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("+ mpiexec")]
    assert lines and all(line.endswith("--analytic --seed 3") for line in lines)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({}, "HPC_ALPA_SITE is not set. Known sites: alps frontier"),
        ({"HPC_ALPA_SITE": "atlantis"}, "no site 'atlantis'"),
        ({"HPC_ALPA_SITE": "local", "HPC_ALPA_BACKEND": "tpu"}, "it must be cuda or host"),
    ],
)
def test_wrong_settings_are_named(env: dict[str, str], message: str, tmp_path: Path) -> None:
    done = run([str(JOBSCRIPTS / "submit.sh"), "--dry-run", "train"], tmp_path, **env)
    assert done.returncode == 2
    assert message in done.stderr


def test_costs_are_named_never_guessed(tmp_path: Path) -> None:
    def options(*arguments: str, **env: str) -> list[str]:
        (words,) = job(tmp_path, "train", *arguments, HPC_ALPA_SITE="local", **env)
        return words[words.index("--backend") + 2 : words.index("--out")]

    (tmp_path / "c.h5").touch()
    (tmp_path / "p.json").touch()
    assert options("--analytic") == []
    assert options(HPC_ALPA_DB="c.h5") == ["--costs", "c.h5"]
    assert options("--analytic", HPC_ALPA_DB="c.h5") == []
    assert options("--costs=d.h5", HPC_ALPA_DB="c.h5") == []
    plan = {"HPC_ALPA_PLAN": "p.json", "HPC_ALPA_CLUSTER": "c.toml"}
    assert options("--analytic", **plan) == ["--cluster", "c.toml", "--plan", "p.json"]
    assert options("--cluster", "d.toml", "--analytic", "--plan", "q.json", **plan) == []
    with pytest.raises(AssertionError, match="no cost database at out/local.h5"):
        options()


def test_a_users_setting_wins(tmp_path: Path) -> None:
    script = (
        f"HPC_ALPA_JOBSCRIPTS={shlex.quote(str(JOBSCRIPTS))}; set -euo pipefail;"
        'source "$HPC_ALPA_JOBSCRIPTS/common.sh"; start train >/dev/null; env'
    )
    done = run(
        ["bash", "-c", script],
        tmp_path,
        HPC_ALPA_SITE="alps",
        SLURM_JOB_NUM_NODES="2",
        NCCL_CROSS_NIC="0",
        OMP_NUM_THREADS="5",
    )
    assert done.returncode == 0, done.stderr
    variables = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    assert variables["NCCL_CROSS_NIC"] == "0" and variables["OMP_NUM_THREADS"] == "5"
    assert variables["NCCL_NET"] == "AWS Libfabric"
    assert variables["SRUN_CPUS_PER_TASK"] == "72"


def test_scaling_table(tmp_path: Path) -> None:
    for ranks, seconds in ((4, 0.3), (1, 1.0), (2, 0.5)):
        run_of = {
            "ranks": ranks,
            "measured_step_seconds": seconds,
            "predicted_step_seconds": seconds,
            "tokens_per_second": 100 / seconds,
            "plan_digest": "abc",
        }
        (tmp_path / f"{ranks}.json").write_text(json.dumps(run_of))
    table = str(JOBSCRIPTS / "scaling_table.py")
    done = run([sys.executable, table, str(tmp_path)], tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line.split(",") for line in (tmp_path / "scaling.csv").read_text().splitlines()]
    assert [row[0] for row in rows] == ["ranks", "1", "2", "4"]
    assert float(rows[3][4]) == pytest.approx(1 / 0.3)
    assert float(rows[3][5]) == pytest.approx(1 / 1.2)
    empty = run([sys.executable, table, str(JOBSCRIPTS)], tmp_path)
    assert empty.returncode == 1 and "no run has finished" in empty.stderr
