"""Which submeshes and logical shapes the planner may choose, and where submeshes lie."""

import math
from collections.abc import Sequence

from hpc_alpa.cluster.mesh import DeviceMesh
from hpc_alpa.errors import ClusterError

Shape = tuple[int, int]


def submesh_shapes(num_hosts: int, devices_per_host: int) -> tuple[Shape, ...]:
    """Submesh shapes (hosts, devices) in the order of their size.

    Part of one host, or whole hosts: any mix of them that uses every device can be placed (Alpa,
    Sec. 5.2 and Appendix A). Within a host the sizes are powers of two as in Alpa; where the number
    of devices is not one, they are its divisors, which Alpa does not support.
    """
    if num_hosts < 1 or devices_per_host < 1:
        raise ClusterError(
            f"a cluster of {num_hosts} hosts with {devices_per_host} devices has no submesh; both "
            "must be at least 1."
        )
    sizes = [n for n in range(1, devices_per_host + 1) if devices_per_host % n == 0]
    within = [(1, n) for n in sizes]
    return tuple(within + [(hosts, devices_per_host) for hosts in range(2, num_hosts + 1)])


def logical_shapes(num_devices: int) -> tuple[Shape, ...]:
    """All two-axis shapes of a number of devices: (1, n), ..., (n, 1)."""
    if num_devices < 1:
        raise ClusterError(f"{num_devices} devices have no mesh shape; at least 1 is needed.")
    return tuple((a, num_devices // a) for a in range(1, num_devices + 1) if num_devices % a == 0)


def place_submeshes(mesh: DeviceMesh, shapes: Sequence[Shape]) -> tuple[DeviceMesh, ...]:
    """Disjoint submeshes of a physical mesh (hosts, devices per host), in the order of `shapes`.

    Whole hosts are placed first, then parts of hosts by size, largest first, each on the first host
    with room (Alpa, Appendix A: with powers of two this always succeeds).

    Raises:
        ClusterError: the shapes do not fit, or are neither whole hosts nor part of one host.
    """
    if mesh.num_axes != 2:
        raise ClusterError(f"submeshes are placed on a mesh (hosts, devices); got {mesh}.")
    hosts, width = mesh.shape
    for h, d in shapes:
        if h > 1 and d != width:
            raise ClusterError(
                f"submesh {(h, d)} is neither part of one host nor whole hosts of {width} devices."
            )
    free = [width] * hosts
    order = sorted(range(len(shapes)), key=lambda i: (-math.prod(shapes[i]), i))
    placed: dict[int, DeviceMesh] = {}
    for i in order:
        h, d = shapes[i]
        runs = (s for s in range(hosts - h + 1) if all(free[s + j] >= d for j in range(h)))
        start = next(runs, None)
        if start is None:
            raise ClusterError(
                f"submeshes {list(shapes)} do not fit on {mesh}: no room left for {(h, d)}."
            )
        placed[i] = mesh.submesh((start, width - free[start]), (h, d))
        for j in range(h):
            free[start + j] -= d
    return tuple(placed[i] for i in range(len(shapes)))
