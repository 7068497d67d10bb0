"""Prices from samples: which samples price what, and what is said when they are missing."""

import math
import random

import pytest

from hpc_alpa.cluster import Cluster, Host, Link
from hpc_alpa.cost import (
    COLLECTIVES,
    Cost,
    DatabaseCost,
    Load,
    Quantiles,
    Run,
    Sample,
    Spread,
    Work,
    append,
    measured_cluster,
    new,
    parameters,
)
from hpc_alpa.errors import CostError

SIZES = (2**12, 2**16, 2**20, 2**24)


def quantiles(seconds):
    return Quantiles(seconds * 0.9, seconds * 0.95, seconds, seconds * 1.1, seconds * 2, 9)


def operator(name, nbytes, seconds, threads=1, busy=2, **more):
    values = parameters(
        "operators", **{"dtype": "float32", **more}, nbytes=nbytes, threads=threads, busy=busy
    )
    return Sample("operators", name, values, quantiles(seconds))


def product(dims, seconds, variant="nn", **more):
    named = dict(zip(("batch", "m", "n", "k"), dims))
    return operator("dot_general", 0, seconds, variant=variant, **named, **more)


def collective(kind, nbytes, seconds, size=2, hosts=1, groups=1, ranks=2):
    values = parameters(
        "collectives", nbytes=nbytes, size=size, hosts=hosts, groups=groups, ranks=ranks
    )
    return Sample("collectives", kind, values, quantiles(seconds))


def message(nbytes, seconds, hosts=1, ranks=2):
    values = parameters("point_to_point", nbytes=nbytes, hosts=hosts, ranks=ranks)
    return Sample("point_to_point", "send", values, quantiles(seconds))


def cluster(ranks=2, cores=2, hosts=1):
    host = Host(ranks, cores, 1e9, (("float32", 1e9),), 1e9)
    return Cluster("c", (host,) * hosts, Link("host", 0, 0), Link("network", 0, 0))


def priced(samples, machine=None):
    return DatabaseCost(append(new("costs.h5"), Run.of(), samples), machine or cluster())


def work(op, nbytes=2**16, dtype="float32"):
    return Work(op, 1.0, float(nbytes), dtype)


def add_line(alpha, beta, **more):
    return [operator("elementwise", n, alpha + beta * n, **more) for n in SIZES]


def test_operators_are_priced_by_their_class():
    cost: Cost = priced(add_line(1e-6, 1e-10))
    for op in ("add", "mul", "select", "elementwise"):
        assert cost.compute(work(op, 2**18)) == pytest.approx(1e-6 + 1e-10 * 2**18)
    assert cost.compute(work("add", 0)) == pytest.approx(1e-6 + 1e-10 * SIZES[0])
    assert cost.compute(work("add", 2**26)) == pytest.approx(1e-6 + 1e-10 * 2**26)
    with pytest.raises(CostError, match=r"costs\.h5 has no sample of .*'gelu' \(operator 'gelu'\)"):
        cost.compute(work("gelu"))


def test_the_load_follows_ranks_and_cores():
    samples = add_line(1e-6, 0) + add_line(3e-6, 0, threads=2, busy=1)
    assert priced(samples, cluster(1)).compute(work("add")) == pytest.approx(3e-6)
    for ranks in (2, 3, 4, 8):
        assert priced(samples, cluster(ranks)).compute(work("add")) == pytest.approx(1e-6)
    assert Load.of(1, 2) == Load(2, 1) and Load.of(5, 2) == Load(1, 2) == Load.of(2, 2)
    with pytest.raises(CostError, match=r"with 2 ranks at once with 2 threads each.*float32 with"):
        priced(samples, cluster(2, cores=4)).compute(work("add"))
    unlike = Cluster(
        "u", cluster(1).hosts + cluster(2).hosts, Link("host", 0, 0), Link("network", 0, 0)
    )
    assert priced(samples, unlike).compute(work("add")) == pytest.approx(3e-6)


def test_dtypes_are_priced_by_rule_or_refused():
    single = priced(add_line(1e-6, 0))
    for dtype in ("bool", "int32", "uint8", "int64"):
        assert single.compute(work("add", dtype=dtype)) == pytest.approx(1e-6)
    both = priced(add_line(1e-6, 0) + add_line(2e-6, 0, dtype="float64"))
    assert both.compute(work("add", dtype="int64")) == pytest.approx(2e-6)
    assert both.compute(work("add", dtype="int32")) == pytest.approx(1e-6)
    assert single.compute(work("add", dtype="float64")) == pytest.approx(1e-6)
    gelu = priced([operator("gelu", n, 1e-6) for n in SIZES])
    assert gelu.compute(work("gelu", 8, dtype="float64")) == pytest.approx(1e-6)
    with pytest.raises(CostError, match=r"in float64 .*--resume --dtype float64"):
        gelu.compute(work("gelu", dtype="float64"))
    with pytest.raises(CostError, match=r"in bfloat16 with .*; it has float32 with"):
        gelu.compute(work("gelu", dtype="bfloat16"))


def test_variants_are_averaged_and_repetitions_pooled():
    samples = [operator("reduce", n, 1e-6, variant="first") for n in SIZES]
    samples += [operator("reduce", n, 4e-6, variant="last") for n in SIZES]
    assert priced(samples).compute(work("reduce_sum")) == pytest.approx(2e-6)
    thrice = [operator("ema", 2**16, s) for s in (1e-6, 9e-6, 2e-6)]
    assert priced(thrice).compute(work("ema")) == pytest.approx(2e-6)


def test_spreads_come_with_every_number():
    samples = [*add_line(1e-6, 1e-10), collective("all_reduce", 2**10, 1e-5), message(2**10, 2e-6)]
    samples += [product((1, 64, 64, 64), 1e-5), product((1, 512, 512, 512), 5e-3)]
    cost = priced(samples)
    product_work = Work("dot_general", 1.0, 1.0, "float32", (1, 200, 200, 200))
    for spread, median in (
        (cost.compute_spread(work("add", 999_999)), cost.compute(work("add", 999_999))),
        (cost.compute_spread(product_work), cost.compute(product_work)),
        (cost.collective_spread("all_reduce", 1024, (0, 1)), 1e-5),
        (cost.point_to_point_spread(1024, 0, 1), 2e-6),
    ):
        assert isinstance(spread, Spread) and spread.median == pytest.approx(median)
        assert spread.p25 == pytest.approx(0.95 * median, rel=1e-6)
        assert spread.p75 == pytest.approx(1.1 * median, rel=1e-6)


def test_products_are_exact_at_samples_and_averaged_over_layouts():
    rng = random.Random(0)
    samples, truth = [], {}
    for _ in range(30):
        dims = tuple(round(2 ** rng.uniform(0, top)) for top in (6, 9, 9, 9))
        truth[dims] = 1e-6 + 2e-11 * math.prod(dims)
        samples += [product(dims, truth[dims] * f, v) for v, f in (("nn", 1), ("nt", 4), ("tn", 2))]
    cost = priced(samples)
    for dims, seconds in truth.items():
        got = cost.compute(Work("dot_general", 2.0 * math.prod(dims), 0.0, "float32", dims))
        assert got == pytest.approx(2 * seconds)
    with pytest.raises(CostError, match="no dims"):
        cost.compute(Work("dot_general", 1.0, 1.0, "float32"))


def test_collectives_by_kind_size_hosts_and_groups_at_once():
    samples = [collective(k, n, 1e-5 * (i + 1) + 1e-9 * n)
               for i, k in enumerate(COLLECTIVES) for n in SIZES]  # fmt: skip
    cost = priced(samples)
    for i, kind in enumerate(COLLECTIVES):
        for n in (*SIZES, 2**28):
            got = cost.collective(kind, n, (1, 0))
            assert got == pytest.approx(1e-5 * (i + 1) + 1e-9 * n, rel=1e-6)
        assert cost.collective(kind, 2**18, (1,)) == 0
    with pytest.raises(CostError, match=r"all_gather over 2 ranks on 2 host.*\[\(2, 1\)\]"):
        priced(samples, cluster(hosts=2)).collective("all_gather", 1, (0, 2))

    more = [collective("all_reduce", n, 7.0, groups=2, ranks=4) for n in SIZES]
    more += [collective("all_reduce", n, 5.0, groups=1, ranks=4) for n in SIZES]
    both = priced(samples + more, cluster(4))
    assert both.collective("all_reduce", 2**16, (0, 1)) == pytest.approx(7.0)
    two = priced(samples + more, cluster(2))  # samples of a job of two ranks come first
    assert two.collective("all_reduce", 2**16, (0, 1)) == pytest.approx(2e-5 + 1e-9 * 2**16)


def test_messages_within_and_between_hosts():
    samples = [message(n, 1e-6 + 1e-9 * n) for n in SIZES]
    cost = priced(samples, cluster(2, hosts=2))
    assert cost.point_to_point(2**16, 2, 3) == pytest.approx(1e-6 + 1e-9 * 2**16)
    assert cost.point_to_point(2**16, 3, 3) == 0
    with pytest.raises(CostError, match=r"no sample of a message between two hosts.*mpirun -n 4"):
        cost.point_to_point(8, 1, 2)


def test_the_digest_is_of_samples_and_cluster():
    samples = add_line(1e-6, 1e-10)
    assert priced(samples).digest == priced(samples[::-1]).digest
    others = [priced(samples[:-1]), priced(samples, cluster(3)), priced(add_line(1e-6, 2e-10))]
    assert len({priced(samples).digest, *(c.digest for c in others)}) == 4


def test_the_cluster_of_a_measured_machine():
    database = append(new("costs.h5"), Run.of(), add_line(1e-6, 1e-10))
    cores = int(dict(database.machine)["cores"])
    load = Load.of(2, cores)
    samples = [
        product((1, 100, 100, 100), 1e-4, threads=load.threads, busy=load.busy),
        product((1, 1000, 100, 100), 5e-4, threads=load.threads, busy=load.busy),
        *add_line(0, 1.04e-10, threads=load.threads, busy=load.busy),
        *[message(n, 1e-6 + 1e-9 * n) for n in SIZES],
    ]
    database = append(new("costs.h5"), Run.of(), samples)
    found = measured_cluster(database, (2,))
    (host,) = found.hosts
    assert host.flops == (("float32", 4e10),) and host.memory_bandwidth == 9.6e9
    assert host.devices == 2 and host.cores == cores
    assert found.host_link == Link("host", 1e-6, 1e-9) and found.network_link is None
    assert measured_cluster(database, (2,)).digest == found.digest
    cost = DatabaseCost(database, found)
    assert cost.compute(work("add")) > 0 and cost.point_to_point(1, 0, 1) > 0
    with pytest.raises(CostError, match=r"no sample of dot_general .*mpirun -n 1 python -m"):
        measured_cluster(append(new("costs.h5"), Run.of(), samples[4:]), (1,))
