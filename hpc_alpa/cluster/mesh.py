"""Devices as a grid: groups along mesh axes, logical views, submeshes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np

from hpc_alpa.cluster.cluster import Cluster
from hpc_alpa.cluster.device import Link
from hpc_alpa.errors import ClusterError


@dataclass(frozen=True)
class DeviceMesh:
    """Devices in a grid of one, two or three axes, row-major.

    DeviceMesh((2, 4), (0, 1, 2, 3, 4, 5, 6, 7))      axis 1 ->
        0 1 2 3                                     axis 0
        4 5 6 7                                        |
    """

    shape: tuple[int, ...]
    devices: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.shape or any(n < 1 for n in self.shape):
            raise ClusterError(
                f"mesh shape {self.shape} is not valid; every axis has at least one device."
            )
        if math.prod(self.shape) != len(self.devices):
            raise ClusterError(
                f"mesh shape {self.shape} holds {math.prod(self.shape)} devices, but "
                f"{len(self.devices)} are given. Choose a shape whose product is the number."
            )
        if len(set(self.devices)) != len(self.devices):
            raise ClusterError(f"mesh devices {self.devices} hold a device twice; list each once.")

    @property
    def num_devices(self) -> int:
        return len(self.devices)

    @property
    def num_axes(self) -> int:
        return len(self.shape)

    @cached_property
    def grid(self) -> np.ndarray:
        """The devices as an integer array of shape `shape`. Read-only."""
        grid = np.array(self.devices, dtype=np.int64).reshape(self.shape)
        grid.flags.writeable = False
        return grid

    def coords(self, device: int) -> tuple[int, ...]:
        """Position of `device`, one number per mesh axis."""
        if device not in self._coords:
            raise ClusterError(f"device {device} is not in {self}.")
        return self._coords[device]

    @cached_property
    def _coords(self) -> dict[int, tuple[int, ...]]:
        return dict(zip(self.devices, product(*map(range, self.shape))))

    def group(self, device: int, axes: Sequence[int]) -> tuple[int, ...]:
        """Devices that differ from `device` only along `axes`, row-major in the order of `axes`.

        The position in this tuple is the device's index along the axes taken together: with axes
        (0, 1) it is i0 * n1 + i1, with axes (1, 0) it is i1 * n0 + i0.
        """
        self._check_axes(axes)
        index: list[int | slice] = list(self.coords(device))
        for axis in axes:
            index[axis] = slice(None)
        block = self.grid[tuple(index)]
        in_order = sorted(axes)
        block = block.transpose([in_order.index(axis) for axis in axes])
        return tuple(int(d) for d in block.ravel())

    def groups(self, axes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """All groups along `axes`: they are disjoint and cover the mesh."""
        found: dict[tuple[int, ...], None] = {}
        for device in self.devices:
            found[self.group(device, axes)] = None
        return tuple(found)

    def axis_link(self, cluster: Cluster, axes: Sequence[int]) -> Link:
        """The slowest link that any group along `axes` crosses."""
        links = [cluster.link(group) for group in self.groups(axes)]
        return max(links, key=lambda link: (link.beta, link.alpha))

    def view(self, shape: Sequence[int]) -> "DeviceMesh":
        """A logical view: the same devices, row-major, in another shape."""
        return DeviceMesh(tuple(shape), self.devices)

    def submesh(self, start: Sequence[int], shape: Sequence[int]) -> "DeviceMesh":
        """The block of `shape` that begins at coordinates `start`."""
        fits = len(start) == len(shape) == self.num_axes and all(
            0 <= s and n >= 1 and s + n <= total
            for s, n, total in zip(start, shape, self.shape, strict=True)
        )
        if not fits:
            raise ClusterError(
                f"submesh {tuple(shape)} at {tuple(start)} does not lie inside {self}. "
                "Choose a smaller shape or another start."
            )
        block = self.grid[tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))]
        return DeviceMesh(tuple(shape), tuple(int(d) for d in block.ravel()))

    def _check_axes(self, axes: Sequence[int]) -> None:
        if len(set(axes)) != len(axes) or any(not 0 <= a < self.num_axes for a in axes):
            raise ClusterError(
                f"mesh axes {tuple(axes)} do not exist in {self}, which has axes 0 to "
                f"{self.num_axes - 1}; name each at most once."
            )

    def __str__(self) -> str:
        return f"mesh {self.shape} of devices {list(self.devices)}"


def physical_mesh(cluster: Cluster) -> DeviceMesh:
    """The mesh (hosts, devices per host) of a cluster whose hosts hold equally many devices."""
    counts = [host.devices for host in cluster.hosts]
    if len(set(counts)) != 1:
        raise ClusterError(
            f"the hosts of cluster {cluster.name!r} hold {counts} devices; a mesh needs equally "
            "many on each. Describe the cluster with as many devices per host as the smallest has."
        )
    return DeviceMesh((len(counts), counts[0]), tuple(range(cluster.num_devices)))
