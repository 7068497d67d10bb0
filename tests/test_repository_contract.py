"""Every module of the library has its row in the import contract, and mypy knows the pure ones."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIGURATION = configparser.ConfigParser(interpolation=None)
CONFIGURATION.read(REPOSITORY / "setup.cfg")

# what is data in, data out: strict types
PURE = (
    *("arrays", "cluster", "comm", "cost", "ir", "lower", "options", "plan", "pytree"),
    *("reshard", "schedule", "sharding", "step", "trace", "transform"),
)


def modules_on_disk() -> list[str]:
    """The children of hpc_alpa: modules, and folders with Python files in them."""
    package = REPOSITORY / "hpc_alpa"
    modules = [p.stem for p in package.glob("*.py") if p.stem != "__init__"]
    return sorted(modules + [p.name for p in package.iterdir() if any(p.glob("*.py"))])


def rows() -> list[list[str]]:
    layers = CONFIGURATION["importlinter:contract:layers"]["layers"]
    return [re.findall(r"\w+", line) for line in layers.split("\n") if line.strip()]


def test_every_module_has_a_row() -> None:
    listed = [name for row in rows() for name in row]
    missing = [name for name in modules_on_disk() if name not in listed]
    assert not missing, (
        f"no row in the import contract for {missing}: add `({missing[0]})` to the layers in "
        "setup.cfg, above everything that it imports and below everything that imports it"
    )
    assert len(set(listed)) == len(listed), "a module is in two rows of the import contract"


def test_contract_cannot_be_escaped() -> None:
    contract = CONFIGURATION["importlinter:contract:layers"]
    assert contract["containers"].split() == ["hpc_alpa"]
    assert contract["exhaustive"] == "true"
    for exception in ("ignore_imports", "exhaustive_ignores"):
        assert exception not in contract, f"{exception}: move the code to where its imports point"


def test_pure_packages_are_strict() -> None:
    (strict,) = (
        section
        for section in CONFIGURATION.sections()
        if CONFIGURATION[section].get("disallow_untyped_defs") == "True"
    )
    patterns = strict.removeprefix("mypy-").split(",")
    loose = [
        name for name in PURE if not {f"hpc_alpa.{name}", f"hpc_alpa.{name}.*"} & set(patterns)
    ]
    assert not loose
