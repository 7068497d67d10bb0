"""One rank for all that do the same: the numbers are those of all ranks, to the last bit."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from hpc_alpa.cluster import Cluster, Host, Level, Link
from hpc_alpa.cost import AnalyticCost
from hpc_alpa.lower import Lowering
from hpc_alpa.lower.lower import lowering_of
from hpc_alpa.plan.plan import Plan
from hpc_alpa.simulate import Simulation, simulate, simulate_plan
from hpc_alpa.simulate.classes import classes
from hpc_alpa.simulate.steps import Prices
from hpc_alpa.step import anchors, split_stages
from tests.helpers.lowered import lowered_plan
from tests.helpers.random_losses import random_case
from tests.helpers.random_plans import Scramble

NUM_RANDOM = 12
MESHES = [(2,), (4,), (2, 2), (2, 4), (2, 2, 2)]


def machine(rng: random.Random, num_devices: int, shared: bool = False) -> AnalyticCost:
    """Hosts of one width, or of random ones, with links of random prices."""
    even, some = rng.random() < 0.5, [1, 2, 3, 4, 8]
    widths = [rng.choice(some)]
    while sum(widths) < num_devices:
        widths.append(widths[0] if even else rng.choice(some))
    hosts = tuple(Host(n, 1 if shared else n, 1e9, (("float64", 1e9),), 1e9) for n in widths)
    inner, outer, far = (
        Link(name, rng.choice([0.0, 1e-6]), rng.choice([0.0, 1e-9])) for name in "abc"
    )
    levels = rng.choice([(), (Level(2, far),)])
    return AnalyticCost(Cluster("random", hosts, inner, outer, levels))


def random_lowering(rng: random.Random, seed: int) -> Lowering:
    """A random step under random strategies, on up to four stages, on devices in any order."""
    case = random_case(seed)
    step = case.split(rng.choice([1, 2, 4]))
    starts = range(1, len(anchors(step)))
    cuts = tuple(sorted(rng.sample(starts, min(len(starts), rng.randrange(4)))))
    stages = split_stages(step, cuts)
    mesh = MESHES[seed % len(MESHES)]
    size = math.prod(mesh)
    ranks = list(range(size * len(stages)))
    if rng.random() < 0.3:
        rng.shuffle(ranks)
    places = [ranks[k * size : (k + 1) * size] for k in range(len(stages))]
    plans = tuple(Scramble(rng, step, mesh).plan(s, p) for s, p in zip(stages, places, strict=True))
    schedule = rng.choice(["1f1b", "eager_1f1b", "gpipe", "zb_h1"])
    strategy = rng.choice(["broadcast", "send_recv"])
    plan = Plan(
        "random", schedule, step.num_microbatches, cuts, plans, "", "", ("", ""), strategy
    )  # fmt: skip
    return lowering_of(step, stages, plan)


def require_equal(got: Simulation, want: Simulation) -> None:
    """All but the timeline and the classes, with no tolerance."""
    assert replace(got, timeline=want.timeline, classes=want.classes) == want
    members = [r for there in got.classes for r in there]
    assert sorted(members) == list(range(len(want.peak_bytes)))


def test_random_plans_on_random_clusters() -> None:
    spared = 0
    for seed in range(NUM_RANDOM):
        rng = random.Random(f"classes {seed}")
        made = random_lowering(rng, seed)
        cost = machine(rng, len(made.ranks))
        got = simulate_plan(made, cost)
        require_equal(got, simulate(made.programs(), cost))
        spared += len(made.ranks) - len(got.classes)
    assert spared > 5, spared  # else nothing was tested


def test_events_of_those_that_stand_for_others() -> None:
    """A class's timeline is that of its first rank among all; of equal pieces it has one."""
    for seed in range(4):
        rng = random.Random(f"events {seed}")
        made = random_lowering(rng, seed)
        cost = machine(rng, len(made.ranks))
        got, want = simulate_plan(made, cost), simulate(made.programs(), cost)
        leaders = {there[0] for there in got.classes}
        assert got.timeline.ranks == tuple(sorted(leaders))
        mine, theirs = (
            {
                (e.rank, e.start, e.stream, e.name, e.duration, e.args["bytes"], e.args["action"])
                for e in s.timeline.events
                if e.rank in leaders
            }
            for s in (got, want)
        )
        assert mine == theirs
        assert not simulate_plan(made, cost, timeline=False).timeline.events


def test_shared_cores_run_all_ranks() -> None:
    rng = random.Random(0)
    made = random_lowering(rng, 3)
    cost = machine(rng, len(made.ranks), shared=True)
    got = simulate_plan(made, cost)
    assert got == simulate(made.programs(), cost)
    assert len(got.classes) == len(made.ranks)


@pytest.mark.parametrize("resharding", ["send_recv", "broadcast"])
def test_classes_of_an_even_pipeline(resharding: str) -> None:
    """dp2 tp2 pp2 on one host: a stage's devices are alike; over two hosts, as the links are."""
    made = lowered_plan("mlp", "dp2tp2pp2", 8, resharding=resharding)
    link, slow = Link("host", 1e-6, 1e-10), Link("network", 1e-5, 1e-9)
    host = Host(8, 8, 1e9, (("float32", 1e10),), 1e10)
    one = AnalyticCost(Cluster("one", (host,), link))
    two = AnalyticCost(
        Cluster("two", (replace(host, devices=5), replace(host, devices=3)), link, slow)
    )
    counts = []
    for cost in (one, two):
        require_equal(simulate_plan(made, cost), simulate(made.programs(), cost))
        counts.append(len(classes(made, Prices(cost, 0.0)).members))
    if resharding == "send_recv":
        assert counts[0] <= 4 < counts[1]
    assert counts[0] <= counts[1] <= 8


def test_shares_add_up() -> None:
    """Compute, communication and idle time are a step on every rank."""
    made = lowered_plan("gpt", "dp2pp2", 4)
    got = simulate_plan(made, AnalyticCost(Cluster.preset("dgx-a100")))
    step, ranks = got.step_seconds, len(got.compute_seconds)
    computing = sum(got.compute_seconds) / (step * ranks)
    assert got.bubble + got.communication + computing == pytest.approx(1.0)
    waits: dict[int, float] = {}
    for e in got.timeline.events:
        if e.category == "wait":
            waits[e.rank] = waits.get(e.rank, 0.0) + e.duration
    for there in got.classes:
        assert waits.get(there[0], 0.0) == pytest.approx(got.waiting_seconds[there[0]])
