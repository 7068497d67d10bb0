"""The machines: devices, hosts and links, and how devices form meshes."""

from hpc_alpa.cluster.cluster import PRESETS, Cluster
from hpc_alpa.cluster.detect import detect, memory_bytes, usable_cores
from hpc_alpa.cluster.device import Device, Host, Level, Link
from hpc_alpa.cluster.mesh import DeviceMesh, physical_mesh
from hpc_alpa.cluster.submesh import logical_shapes, place_submeshes, submesh_shapes

__all__ = [
    "PRESETS",
    "Cluster",
    "Device",
    "DeviceMesh",
    "Host",
    "Level",
    "Link",
    "detect",
    "logical_shapes",
    "memory_bytes",
    "physical_mesh",
    "place_submeshes",
    "submesh_shapes",
    "usable_cores",
]
