"""Whole sweeps: alone, under mpiexec, resumed, killed at any moment."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hpc_alpa.arrays import BACKENDS
from hpc_alpa.cluster import Cluster, Host, Link
from hpc_alpa.comm.local import LocalWorld
from hpc_alpa.cost import (
    DatabaseCost,
    Quantiles,
    Sample,
    Work,
    load,
    measured_cluster,
    parameters,
    read,
)
from hpc_alpa.cost.sample import Run
from hpc_alpa.errors import CostError
from hpc_alpa.profiler import record as record_file
from hpc_alpa.profiler.__main__ import main
from hpc_alpa.profiler.profile import all_points, profile
from hpc_alpa.profiler.record import Record
from hpc_alpa.profiler.setting import Setting
from hpc_alpa.profiler.sweep import sweep

pytestmark = pytest.mark.alone

PROFILER = [sys.executable, "-m", "hpc_alpa.profiler"]
MPIEXEC = Path(sys.executable).with_name("mpiexec")
ROOT = Path(__file__).parents[1]


def alone(world, ranks=((0,),)):
    return Setting(world, ranks, 2, BACKENDS["host"](), 0.001)


def run(*arguments, ranks=0, timeout=120):
    launcher = [str(MPIEXEC), "-n", str(ranks)] if ranks else []
    return subprocess.run(
        [*launcher, *PROFILER, *map(str, arguments)],
        capture_output=True, text=True, timeout=timeout, cwd=ROOT,
    )  # fmt: skip


def test_a_sweep_keeps_all_samples_and_resumes(tmp_path):
    path = tmp_path / "costs.h5"

    def some(points, number):
        return [p for p in points if p.group == "copies"][:number]

    def first(world):
        setting = alone(world)
        points = some(all_points(setting, ("float32",), 1024), 6)
        kept: list[Any] = []
        outcome = sweep(setting, points, seconds=60, keep=kept.append)
        assert (outcome.measured, outcome.known, outcome.left) == (6, 0, 0)
        again = sweep(setting, points, seconds=60, known={s.key for s in kept[:4]})
        assert (again.measured, again.known, again.left) == (2, 4, 0)
        late = sweep(setting, points, seconds=0)
        coarse = sum(p.level == 0 for p in points)  # measured whatever the time
        assert (late.measured, late.left, late.total) == (coarse, 6 - coarse, 6)
        return kept

    kept = LocalWorld(1).run(first)[0]
    record = Record(path, Run.of(command="one"))
    for sample in kept[:4]:
        record.keep(sample)
    record.close()
    record = Record(path, Run.of(command="two"))
    for sample in kept[3:]:
        record.keep(sample)
    record.close()
    database = load(path)
    assert len(database.samples) == 7 and len(database.keys) == 6
    assert [r["command"] for r in database.runs] == ["one", "two"]
    assert [s.run for s in database.samples] == [0, 0, 0, 0, 1, 1, 1]


def test_an_unusable_file_is_refused_on_all_ranks(tmp_path):
    path = tmp_path / "costs.h5"
    path.write_text("not a database")

    def rank(world):
        with pytest.raises(CostError, match=r"costs\.h5 is not HDF5"):
            profile(alone(world, ((0, 1),)), path, seconds=1)
        return True

    assert LocalWorld(2).run(rank) == [True, True]
    assert path.read_text() == "not a database"


def writer(path: Path, seed: int) -> None:
    """Sweep at full speed and save after every sample, until killed."""
    record = Record(path, Run.of(command=f"run {seed}", seed=seed))
    start = len(record.database.samples)
    for number in range(10**6):
        values = parameters("copies", nbytes=start + number, variant="test")
        record.keep(Sample("copies", "copy", values, Quantiles.of([1e-6 * (number + 1)])))


def test_kill_9_never_costs_an_earlier_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(record_file, "SAVE_SECONDS", 0.0)
    path = tmp_path / "costs.h5"
    rng = random.Random(0)
    seen: frozenset[Any] = frozenset()
    for number in range(10):
        child = os.fork()
        if child == 0:
            try:
                writer(path, number)
            finally:
                os._exit(1)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:  # until this run has added something
            if path.exists() and len(read(path).runs) > number and read(path).samples:
                break
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.3))
        before = read(path).keys if path.exists() else frozenset()
        os.kill(child, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        after = load(path)
        assert after.keys >= before >= seen
        assert len(after.samples) == len(after.keys)
        assert len(after.runs) == number + 1
        seen = after.keys
    assert len(seen) > 10


def test_kill_9_of_the_profiler_and_resume(tmp_path):
    path = tmp_path / "costs.h5"
    arguments = ["--out", str(path), "--seconds", "60", "--dtype", "float32"]
    child = subprocess.Popen([*PROFILER, *arguments], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (path.exists() and read(path).samples):
            time.sleep(0.05)
        before = read(path)
    finally:
        child.kill()
        child.wait()
    after = load(path)
    assert before.samples and after.keys >= before.keys
    done = run("--out", path, "--seconds", 2, "--dtype", "float32", "--resume", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["known"] == len(after.keys) and facts["samples"] > len(after.samples)
    assert load(path).keys >= after.keys


def test_alone(tmp_path):
    path = tmp_path / "costs.h5"
    done = run("--out", path, "--seconds", 5, "--dtype", "float32", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["ranks"] == 1 and facts["measured"] == facts["samples"] > 10
    database = load(path)
    groups = {s.group for s in database.samples}
    assert groups <= {"operators", "copies"} and "operators" in groups
    run_facts = dict(database.runs[0].facts)
    assert {"command", "date", "libraries", "machine_cpu", "mpi", "blas"} <= set(run_facts)
    assert run_facts["ranks"] == "1" and "--seconds 5" in run_facts["command"]
    assert os.uname().nodename not in json.dumps(run_facts)
    assert len({s.name for s in database.samples if s.group == "operators"}) > 5


def test_two_ranks(tmp_path):
    path = tmp_path / "costs.h5"
    done = run(
        "--out", path, "--seconds", 10, "--dtype", "float32", "--max-bytes", 2**20, "--json",
        ranks=2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)  # rank 0 alone speaks
    assert facts["ranks"] == 2
    database = load(path)
    assert {s.group for s in database.samples} >= {"operators", "collectives", "point_to_point"}
    busy = {(s["threads"], s["busy"]) for s in database.samples if s.group == "operators"}
    cores = len(os.sched_getaffinity(0))
    assert (max(1, cores // 2), min(2, cores)) in busy
    machine = measured_cluster(database, (2,))
    assert machine.num_devices == 2
    assert machine.host_link is not None and machine.host_link.beta > 0
    cost = DatabaseCost(database, machine)
    assert cost.collective("all_reduce", 1e5, (0, 1)) > 0 < cost.point_to_point(1e5, 0, 1)
    large = cost.compute(Work("dot_general", 0, 0, "float32", (1, 2048, 512, 512)))
    small = cost.compute(Work("dot_general", 0, 0, "float32", (1, 64, 64, 64)))
    assert 0 < small < large
    with pytest.raises(CostError, match=r"all_reduce over 3 ranks on 1 host.*mpirun -n 3"):
        three = Cluster("3", (Host(3, 2, 1e9, machine.hosts[0].flops, 1e9),), Link("host", 0, 0))
        DatabaseCost(database, three).collective("all_reduce", 8, (0, 1, 2))


def test_wrong_use(tmp_path):
    for arguments in (["--seconds", "-1"], ["--dtype", "float16"], ["--nonsense"]):
        done = CliRunner().invoke(main, ["--out", str(tmp_path / "x.h5"), *arguments])
        assert done.exit_code == 2 and "Error" in done.output
    done = run("--out", tmp_path / "x.h5", "--max-bytes", "1")
    assert done.returncode == 2 and "--max-bytes" in done.stderr
    assert not list(tmp_path.iterdir())
