"""How a step comes to its ranks: by its backend, or by the step that it follows."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from hpc_alpa.api import fetch, parallelize
from hpc_alpa.arrays import DeviceError
from hpc_alpa.models import gpt, optimizers
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
