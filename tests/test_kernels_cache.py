"""Where compiled kernels are kept, when they are compiled again. Each case is a new process."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
RUN = """
import numpy as np
from hpc_alpa.kernels.cpu import gelu
out = np.empty(4)
gelu.gelu(np.ones(4), out)
assert abs(out[0] - 0.841192) < 1e-6, out
stats = gelu._gelu.stats
print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()), stats.cache_path)
"""


def run(code: str, checkout: Path = REPOSITORY, **environment: str) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=checkout,
        env={**kept, "PYTHONPATH": str(checkout), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def hits_and_misses(output: str) -> tuple[int, int]:
    hits, misses, _ = output.split(maxsplit=2)
    return int(hits), int(misses)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the few files that a kernel needs."""
    package = tmp_path / "checkout" / "hpc_alpa"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "kernels", package / "kernels", ignore=ignore)
    shutil.copy(REPOSITORY / "hpc_alpa" / "errors.py", package)
    # a folder without it would come after an installed hpc_alpa
    (package / "__init__.py").touch()
    return package.parent


def test_compiled_once_until_an_inlined_file_changes(checkout: Path, tmp_path: Path) -> None:
    """Numba itself looks at the kernel's own file only."""
    cache = str(tmp_path / "cache")
    first = run(RUN, checkout, NUMBA_CACHE_DIR=cache)
    assert cache in first
    assert hits_and_misses(first) == (0, 1)
    assert hits_and_misses(run(RUN, checkout, NUMBA_CACHE_DIR=cache)) == (1, 0)
    with (checkout / "hpc_alpa/kernels/cpu/elementary.py").open("a") as file:
        file.write("# changed\n")
    assert hits_and_misses(run(RUN, checkout, NUMBA_CACHE_DIR=cache)) == (0, 1)


def test_a_package_that_may_not_be_written(checkout: Path, tmp_path: Path) -> None:
    """The code goes to the user's cache; a file in the place of a directory stops even root."""
    (checkout / "hpc_alpa/kernels/cpu/__pycache__").write_text("")
    home = {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "home/.cache")}
    assert str(tmp_path / "home") in run(RUN, checkout, PYTHONDONTWRITEBYTECODE="1", **home)


def test_nowhere_to_write_still_runs(checkout: Path, tmp_path: Path) -> None:
    (checkout / "hpc_alpa/kernels/cpu/__pycache__").write_text("")
    (tmp_path / "home").write_text("")
    output = run(
        RUN,
        checkout,
        PYTHONDONTWRITEBYTECODE="1",
        HOME=str(tmp_path / "home"),
        XDG_CACHE_HOME=str(tmp_path / "home"),
    )
    assert output.split()[-1] == "None"


def test_importing_the_package_does_not_import_numba() -> None:
    code = "import sys, hpc_alpa.kernels; print(*sys.modules)"
    loaded = run(code).split()
    assert "numba" not in loaded
    assert "hpc_alpa.kernels.cpu" not in loaded


def test_no_kernel_starts_a_thread() -> None:
    code = """
import os
import numpy as np
from hpc_alpa import kernels
gelu = kernels.load("cpu", ("gelu",))["gelu"]
before = len(os.listdir("/proc/self/task"))
x = np.ones(1 << 20, "float32")
gelu(x, x.copy())
print(len(os.listdir("/proc/self/task")) - before)
"""
    # Numba imports SciPy when it compiles, whose OpenBLAS starts threads of its own
    assert run(code, OPENBLAS_NUM_THREADS="1").strip() == "0"
