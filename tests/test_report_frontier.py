"""Time against memory: found by the search, as a table, as a picture, on the command line."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from hpc_alpa.api import frontier as module
from hpc_alpa.api.frontier import Frontier, frontier
from hpc_alpa.cli import main
from hpc_alpa.cost import AnalyticCost
from hpc_alpa.errors import InfeasibleError
from hpc_alpa.plan.plan import Plan
from hpc_alpa.report.frontier import frontier_table
from hpc_alpa.report.plots import PlotError, frontier_plot
from hpc_alpa.report.rows import FrontierPoint
from hpc_alpa.report.tables import show
from hpc_alpa.search import Request, search
from hpc_alpa.trace import value_and_grad
from tests.helpers.equality import cluster
from tests.helpers.random_losses import traced_case
from tests.test_cli_commands import CLUSTER, SCRIPT


def loss(params: Any, batch: Any) -> Any:
    return np.mean((np.tanh(batch["x"] @ params["w"]) - batch["y"]) ** 2)


def step(state: Any, batch: Any) -> Any:
    total, g = value_and_grad(loss)(state["params"], batch)
    momentum = 0.9 * state["momentum"] + g["w"]
    return {"params": {"w": state["params"]["w"] - 0.1 * momentum}, "momentum": momentum}, total


@cache
def request() -> Request:
    """A layer with a momentum on two devices, best trained by data parallelism."""
    r = np.random.default_rng(0)
    state = {"params": {"w": r.normal(size=(32, 32))}, "momentum": np.zeros((32, 32))}
    case = traced_case(step, state, {k: r.normal(size=(64, 32)) for k in "xy"})
    machine = cluster(2)
    return Request(
        case.graph, case.batch, case.renewed, machine, AnalyticCost(machine), 2, num_microbatches=1
    )


@cache
def found() -> Frontier:
    return frontier(request(), 5)


def test_time_rises_as_memory_falls() -> None:
    points = found().points
    assert len(points) == 5 and found().fits
    limits, peaks = [p.limit for p in points], [p.peak_bytes for p in points]
    seconds = [p.seconds for p in points]
    assert limits == sorted(limits, reverse=True) and peaks == sorted(peaks, reverse=True)
    assert seconds == sorted(seconds) and seconds[0] < seconds[-1]
    assert all(p.peak_bytes <= p.limit for p in points)
    ratios = [a / b for a, b in zip(limits, limits[1:], strict=False)]
    assert ratios == pytest.approx([ratios[0]] * len(ratios))
    for p, before in zip(points[1:], points, strict=False):
        assert (p.plan == before.plan) == (p.inputs + p.strategies == 0)
    # Data parallelism, and with what ZeRO splits.
    assert points[0].collectives == {"all_reduce": 1}
    assert {"all_gather", "reduce_scatter"} <= points[-1].collectives.keys()


def test_the_ends_are_what_the_search_says() -> None:
    loosest, tightest = found().points[0], found().points[-1]
    free = search(request())
    assert loosest.limit == loosest.peak_bytes == max(free.predicted["peak_bytes"])
    assert loosest.seconds == free.predicted["step_seconds"]
    assert found().plan.digest == free.digest == loosest.plan
    with pytest.raises(InfeasibleError):
        search(_under(tightest.limit / module.CLOSE**2))


def test_a_limit_between_is_a_point_and_its_plan_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_TRIES", 1)
    limit = 0.95 * found().points[0].limit
    own = frontier(_under(limit), 3)
    [point] = [p for p in own.points if p.limit == limit]
    assert own.fits and own.limit == limit
    assert own.plan.digest == point.plan and max(own.plan.predicted["peak_bytes"]) <= limit
    assert point.seconds <= search(_under(limit)).predicted["step_seconds"]


def test_nothing_fits_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_TRIES", 1)
    own = frontier(_under(100.0), 3)
    assert not own.fits and own.plan.digest == own.points[-1].plan


def _under(limit: float) -> Request:
    return replace(request(), memory=limit)


POINTS = (
    FrontierPoint(4e9, 0.010, 3.9e9, 8, ("2x2",), {"all_reduce": 3}, 0, 0, "a"),
    FrontierPoint(3e9, 0.012, 2.8e9, 8, ("4",), {"all_gather": 2, "all_reduce": 1}, 3, 17, "b"),
    FrontierPoint(2.9e9, 0.012, 2.8e9, 8, ("4",), {"all_gather": 2, "all_reduce": 1}, 0, 0, "b"),
    FrontierPoint(2e9, 0.020, 1.9e9, 8, ("2", "2"), {}, 5, 20, "c", (0, 1, 3)),
)


def test_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    text = io.StringIO()
    show(frontier_table(POINTS, 3e9), text)
    lines = text.getvalue().splitlines()
    rows = [line for line in lines if "GB" in line and "ms" in line]
    assert len(rows) == 4 and "* 3 GB" in rows[1] and "*" not in rows[0]
    for row, part in zip(
        rows,
        ("3 all_reduce", "3 inputs, 17 equations", "the same plan", "0-1, 3"),
        strict=True,
    ):
        assert part in row


def test_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    from hpc_alpa.report.plots import figure

    made: list[Any] = []
    monkeypatch.setattr(figure, "save", lambda figure, target: made.append(figure))
    frontier_plot(tmp_path / "x.png", POINTS, limit=3e9)
    above, below = made[0].axes
    [steps] = [line for line in above.lines if line.get_drawstyle() == "steps-post"]
    assert list(steps.get_xdata()) == pytest.approx([1.9, 2.8, 3.9])
    assert list(steps.get_ydata()) == pytest.approx([20, 12, 10])
    assert sum(bar.get_height() for bar in below.patches) == 6
    assert any("limit 3 GB" in t.get_text() for t in above.texts)
    with pytest.raises(PlotError, match="no point"):
        frontier_plot(tmp_path / "x.png", ())


def test_command_line(tmp_path: Path) -> None:
    (tmp_path / "cluster.toml").write_text(CLUSTER)
    (tmp_path / "train.py").write_text(SCRIPT)
    ask = (
        "plan", "--script", tmp_path / "train.py", "--cluster", tmp_path / "cluster.toml",
        "--devices", 2, "--method", "zero3", "--num-microbatches", 1,
        "--frontier", "--points", 2, "--out", tmp_path / "plan.json",
    )  # fmt: skip
    done = CliRunner().invoke(main, [*map(str, ask), "--json"])
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert data["fits"] and data["limit"] == 4e9
    assert Plan.load(tmp_path / "plan.json").digest == data["points"][0]["plan"]
    assert (tmp_path / "plan.png").stat().st_size > 1000
