"""Closed forms: Alpa's costs of the acceptance cases, the ring formulas, the roofline."""

import math
import random

import pytest

from hpc_alpa.cluster import Cluster, DeviceMesh, Host, Link
from hpc_alpa.cost import COLLECTIVES, AlphaBetaCost, AnalyticCost, Work
from hpc_alpa.cost.analytic import LAUNCH_SECONDS
from hpc_alpa.errors import CostError

ALL = (0, 1, 2, 3)


def all_reduce(cost, nbytes):
    return cost.collective("all_reduce", nbytes, ALL)


@pytest.mark.parametrize("shape", [(4, 1), (1, 4)])
def test_alpa_objectives_of_the_acceptance_cases(shape):
    cost = AlphaBetaCost.alpa(shape)
    # S1: 6 layers of hidden 32: all_reduce of every gradient, plus the penalty of replicas
    gradients = 6 * (all_reduce(cost, 4 * 32 * 32) + all_reduce(cost, 4 * 32))
    assert gradients + 3 * (12 + 25) == pytest.approx(38139.12, abs=1e-6)
    # S5: 5 all_reduce of batch 32 x hidden 256
    assert 5 * all_reduce(cost, 32 * 256 * 4) == pytest.approx(245765.05, abs=1e-6)
    # S12: 7 all_reduce of 8 x 8 x 128
    assert 7 * all_reduce(cost, 8 * 8 * 128 * 4) == pytest.approx(344071.07, abs=1e-6)


def test_alpa_formulas_and_tie_breakers():
    n, size, alpha, beta = 4, 4096.0, 2.0, 3.0
    closed = {
        "all_gather": (alpha + beta * (n - 1) / n * size, 0.1),
        "all_reduce": (alpha + beta * 2 * (n - 1) / n * size, 0.01),
        "reduce_scatter": (alpha + beta * (n - 1) / n * size, 0.001),
        "all_to_all": (alpha + beta * (n - 1) / n / n * size * (n / 2), 0.001),
    }
    for kind, (seconds, tie) in closed.items():
        for on in (True, False):
            cost = AlphaBetaCost.alpa((4,), (alpha,), (beta,), tie_breakers=on)
            assert cost.collective(kind, size, ALL) == pytest.approx(seconds + tie * on, abs=1e-9)
    assert cost.compute(Work("dot_general", 1e9, 1e9, "float32", (1, 9, 9, 9))) == 0


def test_alpa_prices_each_axis():
    cost = AlphaBetaCost.alpa((2, 2), (1, 1), (1, 0.1), tie_breakers=False)
    assert cost.collective("all_reduce", 1000, (0, 2)) == 1 + 1000
    assert cost.collective("all_reduce", 1000, (0, 1)) == 1 + 100
    # over both axes at once: never cheaper than scatter, reduce, gather axis by axis
    by_axes = 2 * (1 + 0.1 * 500) + (1 + 500)
    assert cost.collective("all_reduce", 1000, ALL) == 1 + 1500 > by_axes
    assert cost.collective("all_reduce", 1000, (3,)) == 0
    assert cost.point_to_point(1000, 0, 1) == 1 + 100 and cost.point_to_point(1000, 1, 1) == 0
    assert cost.cluster.num_devices == 4
    other = AlphaBetaCost(DeviceMesh((2, 2), (4, 5, 6, 7)), (1, 1), (1, 0.1), tie_breakers=False)
    assert other.collective("all_gather", 1000, (4, 6)) == 1 + 500
    assert len({cost.digest, other.digest, AlphaBetaCost.alpa((2, 2)).digest}) == 3


def two_hosts():
    host = Host(2, 2, 4e9, (("float32", 1e11),), 2e10)
    return Cluster("two", (host, host), Link("host", 5e-6, 1e-10), Link("network", 5e-5, 1e-8))


def test_analytic_closed_forms():
    cost = AnalyticCost(two_hosts())
    size = 1e6
    for devices, link in (((0, 1), two_hosts().host_link), (ALL, two_hosts().network_link)):
        n, a, b = len(devices), link.alpha, link.beta
        closed = {
            "all_gather": (n - 1) * a + (n - 1) / n * size * b,
            "reduce_scatter": (n - 1) * a + (n - 1) / n * size * b,
            "all_reduce": 2 * (n - 1) * a + 2 * (n - 1) / n * size * b,
            "all_to_all": (n - 1) * a + (n - 1) / n * size / n * b,
            "broadcast": math.ceil(math.log2(n)) * a + size * b,
        }
        assert set(closed) == set(COLLECTIVES)
        for kind, seconds in closed.items():
            assert cost.collective(kind, size, devices) == pytest.approx(seconds, rel=1e-12)
    assert cost.point_to_point(size, 0, 1) == 5e-6 + 1e-4
    assert cost.point_to_point(size, 1, 2) == 5e-5 + 1e-2
    assert cost.point_to_point(size, 2, 2) == cost.collective("all_reduce", size, (2,)) == 0


def test_analytic_compute_is_a_roofline():
    cost = AnalyticCost(two_hosts())
    bound = Work("dot_general", 1e11, 1e6, "float32", (1, 5000, 1000, 10000))
    assert cost.compute(bound) == pytest.approx(LAUNCH_SECONDS + 1.0)
    assert cost.compute(Work("add", 1e6, 2e10, "float32")) == pytest.approx(LAUNCH_SECONDS + 1.0)
    assert cost.compute(Work("add", 1e11, 1, "float64")) == pytest.approx(LAUNCH_SECONDS + 2.0)
    with pytest.raises(CostError, match=r"add in complex64 .*flops = \{complex64"):
        cost.compute(Work("add", 1, 1, "complex64"))


def test_analytic_grows_with_bytes_and_group():
    rng = random.Random(0)
    for _ in range(200):
        cost = AnalyticCost(Cluster.preset("p3.16xlarge:4"))
        kind = rng.choice(COLLECTIVES)
        a, b = sorted(rng.uniform(0, 1e9) for _ in range(2))
        n = rng.randint(2, 32)
        group = tuple(range(n))
        assert cost.collective(kind, a, group) <= cost.collective(kind, b, group)
        if kind not in ("all_to_all",):  # more ranks hold less of it each
            assert cost.collective(kind, b, group[:-1]) <= cost.collective(kind, b, group)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda c: c.collective("gather", 1, (0, 1)), "unknown collective 'gather'"),
        (lambda c: c.collective("all_reduce", -1, (0, 1)), "must be at least 0"),
        (lambda c: c.collective("all_reduce", 1, (1, 1)), "each device once"),
        (lambda c: c.collective("all_reduce", 1, ()), "at least one"),
        (lambda c: c.compute(Work("add", -1, 1, "float32")), "must be at least 0"),
        (lambda c: c.compute(Work("dot_general", 1, 1, "float32", (1, 2))), "four numbers"),
        (lambda c: AlphaBetaCost.alpa((2, 2), (1,)), "one number per axis"),
    ],
)  # fmt: skip
def test_wrong_questions_are_named(ask, said):
    with pytest.raises(CostError, match=said):
        ask(AnalyticCost(two_hosts()))
