"""What is installed equals what is on disk: the package list, the wheel, the links."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
LINKS = ("kernels", "profiler")
# folder on disk: the package that it is when installed
ROOTS = {folder: package for package, folder in SETUPTOOLS["package-dir"].items()}


def files_on_disk() -> list[tuple[str, Path]]:
    """(place inside the installed tree, file) of everything that belongs to the library."""
    found = []
    for folder, package in ROOTS.items():
        for top, folders, names in os.walk(REPOSITORY / folder):  # does not follow the links
            folders[:] = [name for name in folders if name != "__pycache__"]
            inside = Path(top).relative_to(REPOSITORY / folder)
            place = Path(package.replace(".", "/")) / inside
            found += [
                ((place / name).as_posix(), Path(top, name))
                for name in names
                if not name.endswith((".md", ".pyc")) and name not in LINKS
            ]
    return sorted(found)


def packages_on_disk() -> list[str]:
    return sorted(
        {str(Path(place).parent).replace("/", ".") for place, _ in files_on_disk() if is_py(place)}
    )


def is_py(place: str) -> bool:
    return place.endswith(".py")


def test_listed_packages_are_the_packages_on_disk() -> None:
    listed, there = SETUPTOOLS["packages"], packages_on_disk()
    missing = [f'    "{name}",' for name in there if name not in listed]
    stale = [f'    "{name}",' for name in listed if name not in there]
    assert not missing and not stale, (
        "in pyproject.toml, [tool.setuptools] packages:\n"
        + ("add\n" + "\n".join(missing) + "\n" if missing else "")
        + ("remove\n" + "\n".join(stale) if stale else "")
    )
    assert listed == sorted(listed), "keep the list of packages in pyproject.toml alphabetical"


def test_every_package_has_an_init() -> None:
    there = {place for place, _ in files_on_disk()}
    bare = [p for p in packages_on_disk() if f"{p.replace('.', '/')}/__init__.py" not in there]
    assert not bare, f"no __init__.py in {', '.join(bare)}: setuptools leaves such folders out"


@pytest.mark.parametrize("name", LINKS)
def test_links_are_links(name: str) -> None:
    link = REPOSITORY / "hpc_alpa" / name
    assert link.is_symlink() and os.readlink(link) == f"../{name}"
    mode = subprocess.run(
        ["git", "ls-files", "--stage", f"hpc_alpa/{name}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    ).stdout
    # empty in a source archive, which has no repository
    assert not mode or mode.startswith("120000 "), f"git does not keep {link} as a link: {mode}"


def _copy_sources(to: Path, links: bool) -> None:
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        if (REPOSITORY / name).exists():
            shutil.copy(REPOSITORY / name, to)
    for folder in ROOTS:
        shutil.copytree(
            REPOSITORY / folder,
            to / folder,
            symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__", "*.pyc"),
        )
    if not links:  # as in a clone with core.symlinks=false
        for name in LINKS:
            (to / "hpc_alpa" / name).unlink()
            (to / "hpc_alpa" / name).write_text(f"../{name}")


def _build(kind: str, source: Path, to: Path) -> Path:
    """Build an sdist or a wheel of `source` with the environment's own setuptools, offline."""
    to.mkdir(parents=True, exist_ok=True)
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(to)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return to / done.stdout.split()[-1]


@pytest.mark.parametrize("links", [True, False], ids=["links", "no-links"])
def test_wheel_holds_what_is_on_disk(links: bool, tmp_path: Path) -> None:
    """By way of an sdist, as users' tools do it; and from a checkout that cannot have links."""
    source = tmp_path / "source"
    source.mkdir()
    _copy_sources(source, links)
    if links:
        sdist = _build("sdist", source, tmp_path / "dist")
        shutil.unpack_archive(sdist, tmp_path / "unpacked", filter="data")
        (source,) = (tmp_path / "unpacked").iterdir()
    wheel = _build("wheel", source, tmp_path / "dist")

    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if not name.endswith("/")}
        (metadata,) = (n for n in inside if n.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
    information = {name for name in inside if ".dist-info/" in name}
    there = {place for place, _ in files_on_disk()}
    absent = sorted(there - inside)
    assert not absent, (
        f"{len(absent)} files are not in the wheel (pyproject.toml, packages and package-data). "
        f"The first: {absent[:5]}"
    )
    assert inside - information == there, "in the wheel, but not on disk"
    assert any(name.endswith("/licenses/LICENSE") for name in information)
    assert re.search(r"^License-Expression: Apache-2.0$", text, re.MULTILINE)


def test_one_version() -> None:
    version = PROJECT["project"]["version"]
    citation = (REPOSITORY / "CITATION.cff").read_text()
    assert re.search(rf"^version: {re.escape(version)}$", citation, re.MULTILINE)
    init = (REPOSITORY / "hpc_alpa" / "__init__.py").read_text()
    for stated in re.findall(r"""__version__ = ["'](.+)["']""", init):
        assert stated == version
