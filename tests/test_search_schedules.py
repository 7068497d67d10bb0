"""Schedules in the search: the same layers on the same submeshes, whichever order is fastest."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from hpc_alpa.api.explain import explain
from hpc_alpa.cluster import DeviceMesh
from hpc_alpa.models import SGD, MLPConfig, mlp, sgd
from hpc_alpa.plan.solve.options import Clock
from hpc_alpa.schedule import SCHEDULES
from hpc_alpa.search import Request
from hpc_alpa.search.candidates import Candidate, candidates, steps
from hpc_alpa.search.layers import Layers
from hpc_alpa.search.schedules import rescheduled
from tests.helpers.random_losses import traced_case
from tests.test_report_frontier import request
from tests.test_search_choices import Trained, machine


def pipeline(num_stages: int, num_layers: int) -> tuple[Candidate, Layers]:
    starts = tuple(range(0, 3 * num_layers, 3))
    layers = Layers(starts, (1.0,) * num_layers, (8.0,) * (num_layers - 1))
    each = num_layers // num_stages
    meshes = tuple(DeviceMesh((2,), (2 * k, 2 * k + 1)) for k in range(num_stages))
    cuts = starts[each::each][: num_stages - 1]
    return Candidate(8, "1f1b", cuts, meshes, (("x",),) * num_stages), layers


def test_every_schedule_has_the_stages_that_it_places() -> None:
    candidate, layers = pipeline(4, 16)
    found = {c.schedule: c for c in rescheduled(candidate, layers)}
    assert set(found) == {"zb_h1", "zb_v", "interleaved_1f1b", "eager_1f1b"}
    for name, other in found.items():
        placement = SCHEDULES[name].placement(4)
        assert [m.devices[0] // 2 for m in other.meshes] == list(placement)
        assert len(other.cuts) == len(placement) - 1
        sizes = [b - a for a, b in zip((0, *other.cuts), (*other.cuts, 48), strict=True)]
        assert Counter(sizes) == {48 // len(placement): len(placement)}, (
            "equal layers in equal parts"
        )


def test_layers_and_meshes_that_do_not_suit() -> None:
    candidate, layers = pipeline(4, 4)
    assert {c.schedule for c in rescheduled(candidate, layers)} == {"zb_h1", "eager_1f1b"}
    candidate, layers = pipeline(2, 8)
    uneven = Candidate(
        8, "1f1b", candidate.cuts, (DeviceMesh((2,), (0, 1)), DeviceMesh((1,), (2,))), (("x",),) * 2
    )
    assert {c.schedule for c in rescheduled(uneven, layers)} == {"zb_h1", "eager_1f1b"}


@pytest.mark.parametrize("microbatches", [4])
def test_the_search_takes_a_faster_schedule(microbatches: int) -> None:
    """On hosts that are far apart a pipeline wins, and one that fills its bubble wins over 1F1B."""
    options = {"layers": 8, "hidden": 128, "rows": 64, "num_microbatches": microbatches}
    plan = Trained(machine(2, 1), **options).step.plan  # type: ignore[arg-type]
    plain = Trained(machine(2, 1), schedule="1f1b", **options).step.plan  # type: ignore[arg-type]
    assert len(plan.submeshes) == 2 and plain.schedule == "1f1b"
    assert plan.schedule != "1f1b"
    assert plan.predicted["step_seconds"] < plain.predicted["step_seconds"]
    # On several hosts the plan says whether its devices are in the best order.
    assert plan.predicted["placement"]["ranks"] == 2
    assert "placement" in explain(plan) and "in their order" in explain(plan)


def test_one_stage_or_so_many_where_it_is_asked_for() -> None:
    optimizer = sgd(SGD())
    state = mlp.init(MLPConfig(4, 32, "float64"), optimizer)(0)
    rows = {name: np.zeros((64, 32)) for name in ("x", "y")}
    case = traced_case(mlp.train_step(optimizer), state, rows)
    found = replace(request(), graph=case.graph, batch=case.batch, renewed=case.renewed)
    asked = replace(found, num_microbatches=4)
    assert {len(c.meshes) for c in _candidates(replace(asked, num_stages=1))} == {1}
    assert {len(c.meshes) for c in _candidates(asked)} == {1, 2}
    assert {len(c.meshes) for c in _candidates(replace(asked, num_stages=2))} == {2}


def test_microbatches_follow_the_memory() -> None:
    """More where little fits, and none so few that the largest value alone does not fit."""
    asked = replace(request(), num_microbatches=None)  # two devices, 64 rows
    loose = [s.num_microbatches for s in steps(asked, None)]
    assert loose == [1, 2, 4, 8, 16]
    largest = max(e.output.type.nbytes for e in asked.graph.eqns if e.phase == "forward")
    tight = [s.num_microbatches for s in steps(replace(asked, memory=largest / 16), None)]
    assert tight[0] == 8 and tight[-1] > 16


def _candidates(asked: Request) -> list[Candidate]:
    [step] = steps(asked, None)
    return list(candidates(asked, None, step, (), Clock(math.inf)))
