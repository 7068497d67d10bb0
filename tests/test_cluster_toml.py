"""Cluster files: the form, its round trip, its digest and what is said about a bad one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_alpa.cluster import (
    PRESETS,
    Cluster,
    Host,
    Level,
    Link,
    detect,
    memory_bytes,
    usable_cores,
)
from hpc_alpa.cluster.device import NO_LINK
from hpc_alpa.errors import ClusterError

TWO_HOSTS = """
name = "two hosts"
[[host]]
count = 2
devices = 2
cores = 2                    # ranks may outnumber them
memory_bytes = 4e9           # per device
flops = {float32 = 1e11}     # per device, attainable
memory_bandwidth = 2e10      # bytes/s per device
[link.host]                  # seconds, seconds/byte
alpha = 5e-6
beta = 1e-10
[link.network]
alpha = 5e-5
beta = 1e-8
"""


def test_reads_the_documented_form():
    cluster = Cluster.from_toml(TWO_HOSTS)
    assert cluster.name == "two hosts"
    assert cluster.num_devices == 4 and cluster.num_hosts == 2
    assert [cluster.host_of(d) for d in range(4)] == [0, 0, 1, 1]
    assert cluster.hosts[0] == Host(2, 2, 4e9, (("float32", 1e11),), 2e10)
    assert cluster.link((0, 1)) == Link("host", 5e-6, 1e-10)
    assert cluster.link((0, 2)) == cluster.link((0, 1, 2, 3)) == Link("network", 5e-5, 1e-8)
    assert cluster.link((3,)).seconds(1e9) == 0


def test_reads_a_path(tmp_path):
    path = tmp_path / "two.toml"
    path.write_text(TWO_HOSTS)
    assert Cluster.from_toml(path) == Cluster.from_toml(str(path)) == Cluster.from_toml(TWO_HOSTS)


positive = st.floats(min_value=1e-300, max_value=1e300)
links = st.builds(Link, st.just("x"), st.floats(0, 1e300), st.floats(0, 1e300))
hosts = st.builds(
    Host,
    devices=st.integers(1, 9),
    cores=st.integers(1, 99),
    memory_bytes=positive,
    flops=st.dictionaries(st.text(min_size=1, max_size=9), positive, min_size=1, max_size=3).map(
        lambda d: tuple(d.items())
    ),
    memory_bandwidth=positive,
    name=st.text(max_size=9),
)


factors = st.lists(st.tuples(st.integers(2, 5), st.text(max_size=9), links), max_size=3)


@given(st.text(), st.lists(hosts, min_size=1, max_size=4), links, links, factors)
def test_round_trip_of_any_cluster(name, hosts, host_link, network_link, factors):
    twice = tuple(h for h in hosts for _ in range(2))
    levels, size = [], 1
    for factor, label, link in factors:
        size *= factor
        levels.append(Level(size, Link(label, link.alpha, link.beta)))
    cluster = Cluster(
        name, twice, Link("host", host_link.alpha, host_link.beta),
        Link("network", network_link.alpha, network_link.beta), tuple(levels),
    )  # fmt: skip
    again = Cluster.from_toml(cluster.to_toml())
    assert again == cluster and again.digest == cluster.digest


def test_digest_is_of_the_content():
    cluster = Cluster.from_toml(TWO_HOSTS)
    apart = TWO_HOSTS.replace("count = 2", "count = 1")
    host = apart[apart.index("[[host]]") : apart.index("[link.host]")]
    spelled = apart.replace("[link.host]", host + "[link.host]")
    assert Cluster.from_toml(spelled) == cluster
    assert Cluster.from_toml(spelled.replace("two hosts", "pair")).digest == cluster.digest
    slower = Cluster.from_toml(TWO_HOSTS.replace("beta = 1e-8", "beta = 2e-8"))
    assert slower.digest != cluster.digest


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("devices = 2", "devices = 0", r"host\[0\]\.devices is 0; .* at least 1"),
        ("devices = 2", "devices = 2.5", r"host\[0\]\.devices is 2\.5"),
        ("cores = 2 ", "", r"host\[0\]\.cores is missing"),
        ("cores = 2 ", "cores = 'two'", r"host\[0\]\.cores is 'two'"),
        ("cores", "kores", r"unknown key host\[0\]\.kores = 2"),
        ("{float32 = 1e11}", "{}", r"host\[0\]\.flops is \{\}"),
        ("{float32 = 1e11}", "1e11", r"host\[0\]\.flops is 100000000000\.0; it must be a table"),
        ("4e9", "-4e9", r"host\[0\]\.memory_bytes is -4000000000\.0"),
        ("4e9", "inf", r"host\[0\]\.memory_bytes is inf"),
        ("beta = 1e-8", "beta = true", r"link\.network\.beta is True"),
        ("[link.network]", "[link.ethernet]", r"unknown key link\.ethernet"),
        ("[link.network]\nalpha = 5e-5\nbeta = 1e-8", "", r"2 hosts and no \[link\.network\]"),
        ("[link.host] ", "[link.network] #", r"is not TOML"),
        ("[[host]]", "[host]", r"host is \{.*; it must be one or more \[\[host\]\] tables"),
    ],
)  # fmt: skip
def test_a_bad_file_is_named_with_key_and_value(tmp_path, old, new, said):
    assert old in TWO_HOSTS
    path = tmp_path / "bad.toml"
    path.write_text(TWO_HOSTS.replace(old, new, 1))
    with pytest.raises(ClusterError, match=said) as error:
        Cluster.from_toml(path)
    assert "bad.toml" in str(error.value) or "cluster" in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ClusterError, match=r"none\.toml cannot be read"):
        Cluster.from_toml(tmp_path / "none.toml")


ISLANDS = """
[[level]]
name = "switch"
hosts = 2
alpha = 6e-5
beta = 2e-8
[[level]]
name = "island"
hosts = 6
alpha = 9e-5
beta = 1e-8                  # wider than a switch's, so a group that crosses both has the switch's
"""


def test_levels_above_the_host():
    """The slowest link that is crossed: of 8 hosts, two at a switch, six on an island."""
    text = TWO_HOSTS.replace("count = 2", "count = 8") + ISLANDS
    cluster = Cluster.from_toml(text)
    network, switch, island = (
        cluster.network_link,
        Link("switch", 6e-5, 2e-8),
        Link("island", 9e-5, 1e-8),
    )
    assert cluster.levels == (Level(2, switch), Level(6, island))
    for first in range(16):
        for last in range(16):
            a, b = first // 2, last // 2
            expected = (
                NO_LINK if first == last
                else cluster.host_link if a == b
                else network if a // 2 == b // 2
                else switch
            )  # fmt: skip
            assert cluster.link((first, last)) == expected
    only = Cluster(cluster.name, cluster.hosts, cluster.host_link, network, cluster.levels[1:])
    assert only.link((0, 11)) == network and only.link((0, 12)) == island
    assert only.link((3, 10, 12)) == island and only.link((12, 15)) == network
    assert len({cluster.digest, only.digest, Cluster.from_toml(text[: -len(ISLANDS)]).digest}) == 3


def test_a_cluster_without_levels_has_the_digest_that_it_had():
    """Plans and databases name it."""
    assert Cluster.preset("p3.16xlarge:8").digest[:12] == "79ff5472d92f"
    assert Cluster.preset("dgx-a100").digest[:12] == "26d07adef61e"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("hosts = 2", "hosts = 0", r"level\[0\]\.hosts is 0"),
        ("hosts = 2", "hosts = 4", r"hold \[4, 6\] hosts; each must hold several whole runs"),
        ("hosts = 6", "hosts = 2", r"hold \[2, 2\] hosts"),
        ("hosts = 2", "hosts = 1", r"hold \[1, 6\] hosts"),
        ("alpha = 6e-5", "", r"level\[0\]\.alpha is missing"),
        ('name = "switch"', "", r"level\[0\]\.name is missing"),
        ("alpha = 6e-5", "alpha = 6e-5\nwidth = 2", r"unknown key level\[0\]\.width"),
    ],
)  # fmt: skip
def test_bad_levels_are_named(old, new, said):
    with pytest.raises(ClusterError, match=said):
        Cluster.from_toml(TWO_HOSTS + ISLANDS.replace(old, new, 1))


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name):
    one, eight = Cluster.preset(name), Cluster.preset(f"{name}:8")
    assert eight.num_hosts == 8 * one.num_hosts and eight.hosts[0] == one.hosts[0]
    assert Cluster.from_toml(eight.to_toml()) == eight


@pytest.mark.parametrize("name", ["p4d", "laptop:0", "laptop:x", "laptop:"])
def test_unknown_presets(name):
    with pytest.raises(ClusterError, match="preset"):
        Cluster.preset(name)


def test_devices_outside_are_named():
    with pytest.raises(ClusterError, match=r"device 4 is not in cluster 'two hosts'.*0 to 3"):
        Cluster.from_toml(TWO_HOSTS).host_of(4)


def test_rates_follow_the_rules():
    host = Host(1, 1, 1e9, (("float32", 1e11),), 1e10)
    assert host.rate("float32") == host.rate("bfloat16") == host.rate("int32") == 1e11
    assert host.rate("float64") == 5e10
    with pytest.raises(ClusterError, match=r"no rate for complex64.*flops = \{complex64"):
        host.rate("complex64")


def test_detect_describes_this_machine():
    link = Link("host", 1e-6, 1e-10)
    cluster = detect((3,), flops={"float32": 1e10}, memory_bandwidth=1e10, host_link=link)
    (host,) = cluster.hosts
    assert host.devices == 3 and host.cores == usable_cores() >= 1
    assert 0.98 * memory_bytes() / 3 < host.memory_bytes <= memory_bytes() / 3
    with pytest.raises(ClusterError, match=r"\[link\.network\]"):
        detect((1, 1), flops={"float32": 1e10}, memory_bandwidth=1e10)
