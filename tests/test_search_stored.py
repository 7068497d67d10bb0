"""Plans that are kept: searched once, never believed, made again when they are broken."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from hpc_alpa.cli import main
from hpc_alpa.plan.plan import Plan
from hpc_alpa.search import Request, search, stored
from tests.test_cli_commands import CLUSTER, SCRIPT
from tests.test_report_frontier import request

module = importlib.import_module("hpc_alpa.search.search")


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """The requests that were really searched for."""
    seen: list[Request] = []
    find = module._search

    def counted(request: Request) -> Plan:
        seen.append(request)
        return find(request)

    monkeypatch.setattr(module, "_search", counted)
    return seen


def test_a_request_is_searched_once(tmp_path: Path, searches: list[Request]) -> None:
    asked = replace(request(), folder=tmp_path / "new")
    first = search(asked)
    second = search(asked)
    assert len(searches) == 1
    assert second.digest == first.digest and second.predicted == first.predicted
    assert second.solver["known"] and second.solver["planning_seconds"] < 1.0
    # The choice programs' solutions are kept as well, for searches that differ.
    assert list((tmp_path / "new" / "solutions").iterdir())
    search(request())
    assert len(searches) == 2


def test_all_that_a_search_depends_on_counts() -> None:
    asked = request()
    one = replace(asked.graph.eqns[0], params=(("other", 1),))
    others = [
        replace(asked, graph=replace(asked.graph, eqns=(one, *asked.graph.eqns[1:]))),
        replace(asked, batch=frozenset()),
        replace(asked, memory=1e9),
        replace(asked, num_microbatches=2),
        replace(asked, method="dp2"),
        replace(asked, pins={"params/w": "RR"}),
        replace(asked, recompute="none"),
        replace(asked, seconds=7.0),
    ]
    names = {stored.digest(r) for r in (asked, *others)}
    assert len(names) == 1 + len(others)
    assert stored.digest(replace(asked, folder=Path("elsewhere"))) == stored.digest(asked)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content.pop("stages"),
        lambda content: content.update(graph="another"),
        lambda content: content.update(format="another"),
    ],
)
def test_what_is_broken_is_made_and_kept_again(
    tmp_path: Path, searches: list[Request], spoil: Callable[[dict[str, object]], object]
) -> None:
    asked = replace(request(), folder=tmp_path)
    good = search(asked)
    [path] = tmp_path.glob("*.json")
    content = json.loads(path.read_text())
    spoil(content)
    path.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="not the plan that was kept"):
        assert search(asked).digest == good.digest
    assert search(asked).digest == good.digest and len(searches) == 2


def test_a_folder_that_cannot_be_written_only_warns(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="could not be"):
        assert search(replace(request(), folder=tmp_path / "file")).stages


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(stored.VARIABLE, str(tmp_path))
    assert stored.default_folder() == tmp_path
    monkeypatch.setenv(stored.VARIABLE, "")
    assert stored.default_folder() is None
    monkeypatch.delenv(stored.VARIABLE)
    folder = stored.default_folder()
    assert folder is not None and folder.parts[-2:] == ("hpc_alpa", "plans")


def test_the_command_says_where_to_search_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, searches: list[Request]
) -> None:
    monkeypatch.setenv(stored.VARIABLE, str(tmp_path / "plans"))
    script, machine = tmp_path / "train.py", tmp_path / "machine.toml"
    script.write_text(SCRIPT)
    machine.write_text(CLUSTER)
    asked = ["plan", "--script", str(script), "--cluster", str(machine), "--json"]
    for count, more in ((1, []), (1, []), (2, ["--no-cache"])):
        result = CliRunner().invoke(main, [*asked, *more], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert len(searches) == count
