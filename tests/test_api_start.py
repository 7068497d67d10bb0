"""How a step comes to its ranks: by its backend, or by the step that it follows."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpc_alpa.api import fetch, parallelize
from hpc_alpa.api.start import start
from hpc_alpa.arrays import DeviceError
from hpc_alpa.comm.null import NullCommunicator
from hpc_alpa.errors import PlanError
from hpc_alpa.models import gpt, optimizers
from hpc_alpa.report.plan_rows import counts
from tests.helpers.equality import CONFIG, RATE, batch, cluster


def test_an_evaluation_step_made_before_the_first_call_runs_where_the_training_runs() -> None:
    config = gpt.GPTConfig(**CONFIG)
    optimizer = optimizers.adamw(optimizers.AdamW())
    train = parallelize(
        gpt.train_step(config, optimizer, seed=5),
        method="dp2",
        backend="local",
        cluster=cluster(2),
        costs="analytic",
    )
    evaluate = parallelize(gpt.eval_step(config), follow=train)
    state, _ = train(train.create(gpt.init(config, optimizer), 3), batch(0), RATE)
    found = evaluate(state, batch(1))
    assert evaluate.plan.num_devices == 2
    plain = gpt.eval_step(config)(fetch(state), batch(1))
    np.testing.assert_allclose(float(found["loss"]), plain["loss"], rtol=1e-5)
    train(state, batch(1), RATE)  # the evaluation has left the state to its owner


@pytest.mark.skipif(importlib.util.find_spec("cupy") is not None, reason="CuPy is installed")
def test_the_cuda_backend_without_cupy_is_a_named_error() -> None:
    step = parallelize(lambda state, batch: state, backend="cuda", cluster=cluster(1))
    with pytest.raises(DeviceError, match="CuPy cannot be imported"):
        step.create(lambda seed: {"w": np.zeros(2)}, 0)


def gpt_step(**options: Any) -> tuple[Any, Any]:
    config, optimizer = gpt.GPTConfig(**CONFIG), optimizers.adamw(optimizers.AdamW())
    step = parallelize(gpt.train_step(config, optimizer, seed=5), **options)
    return step, step.create(gpt.init(config, optimizer), 3)


def test_null_runs_one_rank_of_many_and_moves_nothing() -> None:
    step, state = gpt_step(backend="null", method="dp4", cluster=cluster(4), costs="analytic")
    _, metrics = step(state, batch(0), RATE)
    assert np.isfinite(float(metrics["loss"]))
    assert step.program.rank == 0 and len(step.programs) == 4
    assert step.record.collectives == counts(step.program) == {"all_reduce": 1}


def test_null_needs_a_cluster_where_it_is_alone() -> None:
    with pytest.raises(PlanError, match="backend='null' runs the devices of a cluster"):
        gpt_step(backend="null", costs="analytic")


def test_costs_of_alpa_by_name() -> None:
    step, state = gpt_step(backend="local", method="auto", cluster=cluster(2), costs="alpa")
    plan = step.prepare(state, batch(0), RATE)
    assert plan.costs[0] == "alpa" and len(plan.stages) == 1 and plan.num_microbatches == 1
    assert counts(step.program), "products are split, so something is communicated"
    state, metrics = step(state, batch(0), RATE)
    alone, made = gpt_step(backend="local", cluster=cluster(1), costs="analytic")
    _, want = alone(made, batch(0), RATE)
    assert float(metrics["loss"]) == pytest.approx(float(want["loss"]), rel=1e-5)


def test_a_given_plan_needs_no_costs_neither_to_train_nor_to_evaluate(tmp_path: Path) -> None:
    step, state = gpt_step(backend="local", method="dp2", cluster=cluster(2), costs="analytic")
    step.prepare(state, batch(0), RATE).save(tmp_path / "plan.json")
    given, state = gpt_step(backend="local", cluster=cluster(2), plan=tmp_path / "plan.json")
    evaluate = parallelize(gpt.eval_step(gpt.GPTConfig(**CONFIG)), follow=given)
    state, _ = given(state, batch(0), RATE)
    assert np.isfinite(float(evaluate(state, batch(1))["loss"]))


def test_deterministic_is_asked_of_the_communicator(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def ordered(comm: NullCommunicator) -> NullCommunicator:
        asked.append(comm.size)
        return comm

    monkeypatch.setattr(NullCommunicator, "ordered", ordered)
    for deterministic in (False, True):
        start("null", cluster(3), deterministic)
    assert asked == [3]
