"""The plan follows the cost: what the search chooses on machines that ask for one thing or another.

Every plan is executed on threads and equals one rank.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from hpc_alpa.api import ParallelStep, fetch, parallelize
from hpc_alpa.cluster import Cluster, Host, Link
from hpc_alpa.errors import InfeasibleError, TracingError
from hpc_alpa.lower.program import COLLECTIVES, KIND, Program, Send
from hpc_alpa.models import AdamW, MLPConfig, adamw, mlp
from hpc_alpa.pytree import flatten
from hpc_alpa.search import candidates
from hpc_alpa.search.slicing import Slices
from hpc_alpa.sharding import ShardingSpec
from hpc_alpa.trace import value_and_grad
from tests.helpers.equality import planned_collectives

OPTIMIZER = adamw(AdamW())
FAST, SLOW = (1e-6, 1e-11), (5e-5, 3e-8)  # alpha, beta


def machine(
    hosts: int, devices: int, link: tuple[float, float] = FAST, network: tuple[float, float] = SLOW
) -> Cluster:
    host = Host(devices, devices, 4e9, (("float64", 5e9),), 2e10)
    return Cluster("machine", (host,) * hosts, Link("host", *link), Link("network", *network))


class Trained:
    """An MLP in float64, planned by the search and trained for two steps on threads."""

    def __init__(
        self, cluster: Cluster, layers: int, hidden: int, rows: int, **options: Any
    ) -> None:
        config = MLPConfig(layers, hidden, "float64")
        function, init = mlp.train_step(OPTIMIZER), mlp.init(config, OPTIMIZER)
        r = np.random.default_rng(0)
        batches = [{name: r.normal(size=(rows, hidden)) for name in ("x", "y")} for _ in range(2)]
        self.step: ParallelStep = parallelize(
            function, cluster=cluster, costs="analytic", backend="local", **options
        )
        plain, state = init(3), self.step.create(init, 3)
        self.full_state = sum(np.asarray(x).nbytes for x in flatten(plain)[0])
        for batch in batches:
            plain, want = function(plain, batch)
            state, got = self.step(state, batch)
            assert float(got["loss"]) == pytest.approx(float(want["loss"]), rel=1e-10)
        for a, b in zip(flatten(plain)[0], flatten(fetch(state))[0], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
        assert self.step.record.collectives == planned_collectives(self.step)

    @property
    def programs(self) -> tuple[Program, ...]:
        return self.step.programs

    def state_bytes(self, rank: int) -> int:
        """Bytes of the state's tiles on a rank."""
        leaves = self.step._current()[0].num_state_leaves
        return sum(p.type.nbytes for p in self.programs[rank].inputs if p.position < leaves)

    def specs(self, rank: int = 0) -> dict[int, ShardingSpec]:
        return {p.position: ShardingSpec.parse(p.spec) for p in self.programs[rank].inputs}


def in_the_loop(program: Program) -> Counter[str]:
    """Collectives of the forward and backward passes."""
    found: Counter[str] = Counter()
    marks, label = dict(program.marks), ""
    for k, i in enumerate(program.instructions):
        label = marks.get(k, label)
        if type(i) in KIND and label not in ("prepare", "apply"):
            found[KIND[type(i)]] += 1
    return found


@pytest.mark.parametrize("devices", [1, 2])
def test_slow_links_between_hosts_give_stages_along_the_hosts(devices: int) -> None:
    cluster = machine(2, devices)
    made = Trained(cluster, layers=4, hidden=256, rows=64)
    stages = made.step.plan.stages
    assert len(stages) > 1 and made.step.plan.num_microbatches > 1
    for stage in stages:
        assert len({cluster.host_of(d) for d in stage.devices}) == 1, "no stage crosses hosts"
    for p in made.programs:
        here = cluster.host_of(p.rank)
        for i in p.instructions:
            # Only activations, their gradients and the loss cross the network.
            if type(i) in KIND and KIND[type(i)] != "broadcast":
                assert {cluster.host_of(d) for d in i.group} == {here}  # type: ignore[union-attr]
            if isinstance(i, Send):
                assert i.nbytes <= 64 // made.step.plan.num_microbatches * 256 * 8


def test_fast_links_give_tensor_or_data_parallelism() -> None:
    made = Trained(machine(1, 4), layers=4, hidden=256, rows=64)
    assert [s.devices for s in made.step.plan.stages] == [(0, 1, 2, 3)]
    flops = [_flops(p) for p in made.programs]
    alone = _flops(Trained(machine(1, 1), layers=4, hidden=256, rows=64).programs[0])
    assert max(flops) == pytest.approx(alone / 4), "matrix products are split, not repeated"


def test_meshes_of_three_axes_are_tried_where_hosts_are_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One plan of such a mesh, on 16 threads."""
    tried = []
    every_slice = candidates.slice_stages

    def three_axes(*given: Any) -> Iterator[Slices]:
        for found in every_slice(*given):
            tried.append(found.meshes[0].shape)
            if len(found.meshes[0].shape) == 3:
                yield found

    monkeypatch.setattr(candidates, "slice_stages", three_axes)
    made = Trained(machine(2, 8), layers=1, hidden=16, rows=64, num_microbatches=1)
    assert tried == [(16,), (2, 8), (4, 4), (8, 2), (2, 2, 4)]
    [stage] = made.step.plan.stages
    assert stage.mesh_shape == (2, 2, 4) and stage.axes == ("x", "y", "z")


def _flops(program: Program) -> float:
    return sum(
        k.work.flops
        for body, _ in program.runs()
        for k in body.kernels
        if k.work.op == "dot_general"
    )


def test_small_weights_and_a_large_batch_give_data_parallelism() -> None:
    made = Trained(machine(1, 4, link=(5e-6, 1e-10)), layers=2, hidden=16, rows=4096)
    assert len(made.step.plan.stages) == 1
    assert [str(made.specs()[k]) for k in (13, 14)] == ["S0R", "S0R"], "the batch is split"
    for p in made.programs:
        assert not in_the_loop(p), "forward and backward passes need nobody"
        nbytes = sum(i.nbytes for i in p.instructions if isinstance(i, COLLECTIVES))
        assert nbytes < 4096 * 16 * 8 / 16, "gradients and weights travel, no activation does"


def test_too_little_memory_for_replicas_gives_sharded_weights() -> None:
    cluster = machine(1, 2)
    whole = Trained(cluster, layers=3, hidden=64, rows=32, method="dp2")
    assert whole.state_bytes(0) == whole.full_state
    peak = max(whole.step.plan.predicted["peak_bytes"])
    limit = 0.7 * peak
    made = Trained(cluster, layers=3, hidden=64, rows=32, memory=limit, num_microbatches=1)
    for rank in range(2):
        assert made.state_bytes(rank) < 0.7 * whole.state_bytes(rank)
    assert max(made.step.plan.predicted["peak_bytes"]) <= limit
    with pytest.raises(InfeasibleError, match="bytes too many"):
        Trained(cluster, layers=3, hidden=64, rows=32, memory=limit, method="dp2")


def test_the_nearest_fit_of_all_candidates_is_named() -> None:
    """More microbatches hold less: the error is the one of the candidate that misses least."""
    cluster, limit = machine(1, 2), 300_000
    with pytest.raises(InfeasibleError) as auto:
        Trained(cluster, layers=3, hidden=64, rows=512, memory=limit)
    with pytest.raises(InfeasibleError) as one:
        Trained(cluster, layers=3, hidden=64, rows=512, memory=limit, num_microbatches=1)
    assert 0 < auto.value.missing < one.value.missing
    for error in (auto.value, one.value):
        found = re.search(r"([\d,]+) bytes too many", str(error))
        assert found is not None
        assert "of 300,000 bytes" in str(error) or "is 300,000 bytes" in str(error)
        assert int(found[1].replace(",", "")) == pytest.approx(error.missing, abs=1)


def _batch_norm_step(state: Any, batch: Any) -> Any:
    def loss(w: Any) -> Any:
        h = batch["x"] @ w
        centred = h - h.mean(axis=0)
        return np.mean((centred / np.sqrt((centred**2).mean(axis=0) + 0.1) - batch["y"]) ** 2)

    value, g = value_and_grad(loss)(state["w"])
    return {"w": state["w"] - 0.1 * g}, {"loss": value}


@pytest.mark.parametrize("method", ["auto", "pp2"])
def test_microbatches_that_are_part_of_the_meaning_are_asked_for(method: str) -> None:
    r = np.random.default_rng(0)
    state = {"w": r.normal(size=(6, 4))}
    batch = {"x": r.normal(size=(8, 6)), "y": r.normal(size=(8, 4))}

    def step(**options: Any) -> ParallelStep:
        cluster = machine(1, 2)
        return parallelize(
            _batch_norm_step, backend="local", cluster=cluster, costs="analytic", **options
        )

    with pytest.raises(TracingError, match=r"test_search_choices\.py:\d+ needs.*num_microbatches"):
        step(method=method)(state, batch)
    for chosen in (method, "dp2"):
        got, metrics = step(method=chosen, num_microbatches=1)(state, batch)
        want, plain = _batch_norm_step(state, batch)
        np.testing.assert_allclose(fetch(got)["w"], want["w"], rtol=1e-10)
        assert float(metrics["loss"]) == pytest.approx(float(plain["loss"]), rel=1e-12)
