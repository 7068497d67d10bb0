"""Meshes: groups, logical views, submeshes and where they lie."""

import itertools
import math
import random
from typing import Any

import pytest

from hpc_alpa.cluster import (
    Cluster,
    DeviceMesh,
    logical_shapes,
    physical_mesh,
    place_submeshes,
    submesh_shapes,
)
from hpc_alpa.errors import ClusterError


def test_groups_of_the_drawn_mesh():
    mesh = DeviceMesh((2, 4), tuple(range(8)))
    assert mesh.coords(6) == (1, 2)
    assert mesh.group(6, (0,)) == (2, 6)
    assert mesh.group(6, (1,)) == (4, 5, 6, 7)
    assert mesh.group(6, ()) == (6,)
    assert mesh.group(6, (0, 1)) == tuple(range(8))
    assert mesh.group(6, (1, 0)) == (0, 4, 1, 5, 2, 6, 3, 7)
    assert mesh.groups((0,)) == ((0, 4), (1, 5), (2, 6), (3, 7))


def test_groups_against_their_definition():
    rng = random.Random(0)
    for _ in range(100):
        shape = tuple(rng.randint(1, 4) for _ in range(rng.randint(1, 3)))
        devices = rng.sample(range(100), math.prod(shape))
        mesh = DeviceMesh(shape, tuple(devices))
        axes = tuple(rng.sample(range(len(shape)), rng.randint(0, len(shape))))
        seen: list[Any] = []
        for group in mesh.groups(axes):
            assert len(group) == math.prod(shape[a] for a in axes)
            fixed = {tuple(c for a, c in enumerate(mesh.coords(d)) if a not in axes) for d in group}
            assert len(fixed) == 1
            along = [tuple(mesh.coords(d)[a] for a in axes) for d in group]
            assert along == list(itertools.product(*(range(shape[a]) for a in axes)))
            assert all(mesh.group(d, axes) == group for d in group)
            seen += group
        assert sorted(seen) == sorted(devices)


def test_axis_link_is_the_slowest():
    cluster = Cluster.preset("p3.16xlarge:2")
    mesh = physical_mesh(cluster)
    assert mesh.shape == (2, 8)
    assert mesh.axis_link(cluster, (1,)) == cluster.host_link
    assert mesh.axis_link(cluster, (0,)) == mesh.axis_link(cluster, (0, 1)) == cluster.network_link
    # device 7 and 8 are neighbours of a view whose axis 1 crosses hosts in its middle group only
    odd = mesh.submesh((0, 0), (1, 8)).devices[5:] + (8, 9, 10)
    assert DeviceMesh((2, 3), odd).axis_link(cluster, (1,)) == cluster.host_link
    assert DeviceMesh((3, 2), odd).axis_link(cluster, (1,)) == cluster.network_link


def test_views_and_submeshes():
    mesh = DeviceMesh((2, 4), tuple(range(8)))
    assert mesh.view((4, 2)).group(0, (0,)) == (0, 2, 4, 6)
    assert mesh.submesh((1, 2), (1, 2)).devices == (6, 7)
    assert mesh.submesh((0, 1), (2, 2)) == DeviceMesh((2, 2), (1, 2, 5, 6))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda m: DeviceMesh((2, 3), (0, 1)), "holds 6 devices, but 2"),
        (lambda m: DeviceMesh((2,), (1, 1)), "twice"),
        (lambda m: DeviceMesh((), ()), "not valid"),
        (lambda m: m.coords(9), "device 9 is not in mesh"),
        (lambda m: m.group(0, (2,)), r"mesh axes \(2,\) do not exist"),
        (lambda m: m.submesh((1, 0), (2, 2)), "does not lie inside"),
        (lambda m: m.view((3, 2)), "holds 6 devices, but 8"),
    ],
)  # fmt: skip
def test_bad_meshes_are_named(make, said):
    with pytest.raises(ClusterError, match=said):
        make(DeviceMesh((2, 4), tuple(range(8))))


def test_unlike_hosts_have_no_mesh():
    one, two = Cluster.preset("laptop"), Cluster.preset("dgx-a100")
    mixed = Cluster("mixed", one.hosts + two.hosts, one.host_link, one.network_link)
    with pytest.raises(ClusterError, match=r"hold \[4, 8\] devices"):
        physical_mesh(mixed)


def test_submesh_shapes_are_the_papers():  # acceptance D7
    assert submesh_shapes(4, 8) == ((1, 1), (1, 2), (1, 4), (1, 8), (2, 8), (3, 8), (4, 8))
    assert submesh_shapes(1, 1) == ((1, 1),)
    assert submesh_shapes(2, 6) == ((1, 1), (1, 2), (1, 3), (1, 6), (2, 6))


def test_logical_shapes():
    assert logical_shapes(8) == ((1, 8), (2, 4), (4, 2), (8, 1))
    assert logical_shapes(6) == ((1, 6), (2, 3), (3, 2), (6, 1))
    with pytest.raises(ClusterError):
        logical_shapes(0)


def test_every_mix_that_uses_all_devices_is_placed():
    rng = random.Random(1)
    for _ in range(300):
        hosts, width = rng.choice([(1, 1), (1, 8), (2, 4), (4, 8), (3, 2)])
        shapes, left = [], hosts * width
        while left:
            shape = rng.choice([s for s in submesh_shapes(hosts, width) if math.prod(s) <= left])
            shapes.append(shape)
            left -= math.prod(shape)
        rng.shuffle(shapes)
        mesh = DeviceMesh((hosts, width), tuple(range(hosts * width)))
        placed = place_submeshes(mesh, shapes)
        assert [m.shape for m in placed] == shapes
        assert sorted(d for m in placed for d in m.devices) == list(mesh.devices)
        for submesh in placed:
            used = {d // width for d in submesh.devices}
            assert len(used) == submesh.shape[0]


def test_what_does_not_fit_is_named():
    mesh = DeviceMesh((2, 4), tuple(range(8)))
    with pytest.raises(ClusterError, match=r"no room left for \(1, 2\)"):
        place_submeshes(mesh, [(2, 4), (1, 2)])
    with pytest.raises(ClusterError, match=r"neither part of one host nor whole hosts"):
        place_submeshes(mesh, [(2, 2)])
