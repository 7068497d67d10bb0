"""The metadata is true: what is imported is a dependency, what is a dependency is imported."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]

# modules whose distribution has another name
DISTRIBUTIONS = {
    "cupy": "cupy-cuda12x",
    "cupy_backends": "cupy-cuda12x",
    "cupyx": "cupy-cuda12x",
    "numba_cuda": "numba-cuda",
}
# needed, but not by an import of ours
NOT_IMPORTED = {
    "nvidia-nccl-cu12": "the library that cupy.cuda.nccl loads",
    "numba-cuda": "takes the place of numba.cuda",
}


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=!~;\s]", text)[0] for text in requirements}


def imported(*folders: str) -> dict[str, str]:
    """Distribution of each third-party module that the folders import, and a file that does."""
    found: dict[str, str] = {}
    for folder in folders:
        for path in sorted((REPOSITORY / folder).rglob("*.py")):  # does not follow the links
            for node in ast.walk(ast.parse(path.read_text())):
                modules = []
                if isinstance(node, ast.Import):
                    modules = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                    modules = [node.module]
                for module in modules:
                    top = module.split(".")[0]
                    if top not in sys.stdlib_module_names and top != "hpc_alpa":
                        where = str(path.relative_to(REPOSITORY))
                        found.setdefault(DISTRIBUTIONS.get(top, top), where)
    return found


def test_imports_are_dependencies() -> None:
    run_time = names(PROJECT["dependencies"])
    optional = names([r for extra in ("cuda12", "jax", "plot") for r in EXTRAS[extra]])
    unknown = {
        name: where
        for name, where in imported("hpc_alpa", "kernels", "profiler").items()
        if name not in run_time | optional
    }
    assert not unknown, f"imported, but not in pyproject.toml's dependencies: {unknown}"


def test_dependencies_are_imported() -> None:
    used = imported("hpc_alpa", "kernels", "profiler").keys() | NOT_IMPORTED.keys()
    stated = names([*PROJECT["dependencies"], *EXTRAS["cuda12"], *EXTRAS["plot"]])
    assert not stated - used, f"in pyproject.toml, but nothing imports them: {stated - used}"


def test_every_dependency_has_a_lower_bound() -> None:
    for requirement in [r for list_ in (PROJECT["dependencies"], *EXTRAS.values()) for r in list_]:
        assert re.search(r">=\d", requirement), f"{requirement}: `make test-lowest` needs a bound"


def test_constraints_satisfy_the_metadata() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))

    def key(version: str) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", version)]

    made = ("mpich", "plot", "test")  # the extras of `make env`
    for requirement in [*PROJECT["dependencies"], *(r for e in made for r in EXTRAS[e])]:
        name, lowest = re.fullmatch(r"([\w.-]+)>=([\w.]+)", requirement).groups()  # type: ignore[union-attr]
        assert name in pins, f"constraints.txt has no version of {name}"
        assert key(pins[name]) >= key(lowest), f"{name}: {pins[name]} < {lowest}"


def environment(tmp_path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(REPOSITORY / ".ci" / "environment"), str(tmp_path / "venv"), "test"],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_no_usable_python_is_named(tmp_path: Path) -> None:
    """Passed over: a Python that is too old, one without venv, and a shim that does not run."""
    faults = {"old": "sys.version_info = (3, 9)", "bare": "sys.modules['venv'] = None"}
    for name, code in faults.items():
        site = tmp_path / name
        site.mkdir()
        (site / "sitecustomize.py").write_text(f"import sys; {code}\n")
        fake = tmp_path / f"python-{name}"
        fake.write_text(f'#!/bin/sh\nPYTHONPATH={site} exec {sys.executable} "$@"\n')
        fake.chmod(0o755)
    shim = tmp_path / "shim"
    shim.write_text("#!/bin/sh\necho 'command not found' >&2; exit 127\n")
    shim.chmod(0o755)
    candidates = f"{tmp_path}/python-old {tmp_path}/python-bare {shim} python-that-is-not-there"
    done = environment(tmp_path, PYTHON=candidates)
    assert done.returncode == 1
    assert "no Python >= 3.11 with the modules venv and ensurepip" in done.stderr
    assert f"{shim}: does not run" in done.stderr
    assert "make PYTHON=" in done.stderr
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("name", ["LICENSE", "CITATION.cff", "CHANGELOG.md", "README.md"])
def test_documents_are_there(name: str) -> None:
    assert (REPOSITORY / name).stat().st_size > 200
