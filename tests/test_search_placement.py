"""Placement: against all permutations on small clusters, and on plans whose order is bad."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from hpc_alpa.cluster import Cluster, DeviceMesh, Host, Level, Link
from hpc_alpa.cost import AnalyticCost
from hpc_alpa.lower import lower, lowering
from hpc_alpa.lower.check import check
from hpc_alpa.lower.program import COLLECTIVES, KIND, Send
from hpc_alpa.report.placement import placement_row
from hpc_alpa.search import placement
from hpc_alpa.search.placement import Flow, flows, place, place_plan, placed
from hpc_alpa.simulate import simulate
from tests.helpers.lowered import lowered_plan

KINDS = ("all_gather", "all_reduce", "all_to_all", "reduce_scatter")
HOST, NETWORK = Link("host", 1e-6, 1e-11), Link("network", 1e-5, 1e-9)
ISLAND = Level(2, Link("island", 2e-5, 5e-9))


def machine(widths: tuple[int, ...], levels: tuple[Level, ...] = ()) -> AnalyticCost:
    hosts = tuple(Host(n, n, 1e9, (("float32", 1e12),), 1e12) for n in widths)
    return AnalyticCost(Cluster("some", hosts, HOST, NETWORK, levels))


def random_flows(rng: random.Random, num_ranks: int) -> list[Flow]:
    found = []
    for _ in range(rng.randint(2, 9)):
        ranks = tuple(rng.sample(range(num_ranks), rng.randint(2, num_ranks - 1)))
        kind = "point_to_point" if len(ranks) == 2 else rng.choice(KINDS)
        calls = ((kind, rng.randint(1, 9) * 1000, rng.randint(1, 4)),)
        found.append(Flow(ranks, calls))
    return found


def plain_cost(found: list[Flow], cost: AnalyticCost, order: tuple[int, ...]) -> float:
    """Seconds of each call, for each rank that takes part, over the number of ranks."""
    total = 0.0
    for f in found:
        devices = tuple(order[r] for r in f.ranks)
        for kind, nbytes, times in f.calls:
            if kind == "point_to_point":
                seconds = cost.point_to_point(nbytes, *devices)
            else:
                seconds = cost.collective(kind, nbytes, devices)
            total += times * seconds * len(devices)
    return total / len(order)


CLUSTERS = [((2, 2, 2), ()), ((3, 3), ()), ((4, 2), ()), ((2, 1, 2, 1), (ISLAND,))]


@pytest.mark.parametrize("seed", range(8))
def test_small_ones_equal_enumeration(seed: int) -> None:
    rng = random.Random(seed)
    widths, levels = CLUSTERS[seed % len(CLUSTERS)]
    cost, found = machine(widths, levels), random_flows(rng, 6)
    same = tuple(range(6))
    got = place(found, cost, [dict(enumerate(same))])
    assert got.exact
    order = tuple(d for _, d in got.devices)
    assert sorted(order) == list(same)
    assert got.before == pytest.approx(plain_cost(found, cost, same))
    assert got.after == pytest.approx(plain_cost(found, cost, order))
    least = min(plain_cost(found, cost, p) for p in permutations(same))
    assert got.after == pytest.approx(least)


@pytest.mark.parametrize("seed", range(12))
def test_swaps_never_lose(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the exact search: at most the order's cost, and within a third of the best gain."""
    rng = random.Random(seed)
    widths, levels = CLUSTERS[seed % len(CLUSTERS)]
    cost, found = machine(widths, levels), random_flows(rng, 6)
    best = place(found, cost, [{r: r for r in range(6)}])
    monkeypatch.setattr(placement, "MOST_ASSIGNMENTS", 0)
    got = place(found, cost, [{r: r for r in range(6)}])
    assert not got.exact
    assert best.after <= got.after * (1 + 1e-9) and got.after <= got.before
    assert got.before - got.after >= 0.66 * (best.before - best.after)


def test_flows_are_what_the_programs_do() -> None:
    """Bytes by kind and group, counted over all programs."""
    made = lowered_plan("gpt", "dp2tp2pp2", 8)
    counted: dict[tuple[str, frozenset[int]], int] = {}
    for p in made.programs():
        for i in p.instructions:
            if isinstance(i, COLLECTIVES) and p.rank == min(i.group):
                key = KIND[type(i)], frozenset(i.group)
                counted[key] = counted.get(key, 0) + i.nbytes
            elif isinstance(i, Send):
                key = "point_to_point", frozenset((p.rank, i.peer))
                counted[key] = counted.get(key, 0) + i.nbytes
    found: dict[tuple[str, frozenset[int]], int] = {}
    for f in flows(made):
        for kind, nbytes, times in f.calls:
            key = kind, frozenset(f.ranks)
            found[key] = found.get(key, 0) + nbytes * times
    # A broadcast's lowest rank need not be its root, but takes part.
    assert found == counted


@pytest.mark.parametrize("exact", [True, False])
def test_a_plan_that_splits_hosts_is_put_right(
    exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensor axes across hosts: their groups are brought together."""
    if not exact:
        monkeypatch.setattr(placement, "MOST_ASSIGNMENTS", 0)
    made = lowered_plan("gpt", "dp2tp2pp2", 8)
    cost = machine((2, 2, 2, 2))
    stages = [
        replace(s, devices=tuple(map(int, np.array(d).reshape(2, 2).T.ravel())))
        for s, d in zip(made.plan.stages, ((0, 2, 4, 6), (1, 3, 5, 7)), strict=True)
    ]
    bad = replace(made.plan, stages=tuple(stages))
    good, found = place_plan(made.step, bad, cost)
    assert found.num_moved and found.gain > 0.05 and found.exact == exact
    assert good == placed(bad, found)
    programs = lower(made.step, good)
    check(programs)
    assert simulate(programs, cost).step_seconds == found.step_after
    assert simulate(lower(made.step, bad), cost).step_seconds == found.step_before
    for s in good.stages:
        for group in DeviceMesh(s.mesh_shape, s.devices).groups((1,)):
            assert len({cost.cluster.host_of(d) for d in group}) == 1
    label, text = placement_row(found.facts)
    assert label == "placement" and f"{found.num_moved} of 8 ranks" in text and "%" in text
    # and there it stays
    again, stays = place_plan(made.step, good, cost)
    assert again == good and not stays.num_moved and stays.gain == 0.0
    assert "devices in their order" in placement_row(stays.facts)[1]


def test_one_host_has_nothing_to_gain() -> None:
    made = lowered_plan("mlp", "dp2tp2pp2", 8)
    cost = machine((8,))
    plan, found = place_plan(made.step, made.plan, cost)
    assert plan is made.plan and found.exact and found.before == found.after
    assert lowering(made.step, plan).ranks == tuple(range(8))
