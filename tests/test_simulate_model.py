"""A plan of a paper's model, simulated by the model's name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from hpc_alpa.api.compile import trace_step
from hpc_alpa.cli.simulate import command
from hpc_alpa.cluster import Cluster
from hpc_alpa.cost import AnalyticCost
from hpc_alpa.lower import lower
from hpc_alpa.models import gpt, paper_model
from hpc_alpa.plan.plan import Plan, StagePlan
from hpc_alpa.pytree import flatten
from hpc_alpa.sharding import ShardingSpec
from hpc_alpa.simulate import simulate
from hpc_alpa.step import anchors, split_batch, split_stages

NAME = "gpt-350M"


def test_two_stages_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two stages of one device, whose plan needs no search: nothing is split."""
    monkeypatch.setitem(gpt.SIZES, "350M", (64, 2, 2))  # fewer layers: it is traced twice
    model, cluster = paper_model(NAME), Cluster.preset("laptop")
    state, batch = model.example()
    leaves, tree = flatten(state, "state")
    step = trace_step(model.train_step, (state, batch), len(leaves), tree, False)
    inputs = frozenset(step.graph.inputs[k] for k in step.batch_positions)
    divided = split_batch(step.graph, inputs, 4, step.renewed)
    cuts = (len(anchors(divided)) // 2,)
    stages = []
    for k, part in enumerate(split_stages(divided, cuts)):
        ins, outs = (
            tuple(str(ShardingSpec.replicated(v.type.ndim)) for v in values)
            for values in (part.graph.inputs, part.graph.outputs)
        )
        idle = ("-",) * len(part.graph.eqns)
        stages.append(StagePlan((1,), (k,), ("x",), idle, ins, outs))
    plan = Plan(
        "pp2", "1f1b", 4, cuts, tuple(stages), step.graph.digest, cluster.digest, ("", "")
    )  # fmt: skip
    plan.save(tmp_path / "plan.json")
    arguments = [str(tmp_path / "plan.json"), NAME, "--cluster", "laptop", "--json"]
    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    found = json.loads(done.stdout)
    wanted = simulate(lower(divided, plan), AnalyticCost(cluster))
    assert found["step_seconds"] == wanted.step_seconds > 0
    assert found["bubble"] == pytest.approx(wanted.bubble) and 0.1 < wanted.bubble < 0.5
    assert [r["peak_bytes"] for r in found["ranks"]] == list(wanted.peak_bytes)
    assert found["classes"] == [[0], [1]]
