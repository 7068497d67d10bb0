"""[StepGraph, Cluster] -> stages on submeshes: where the step is cut, and which devices each part gets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hpc_alpa.cluster import DeviceMesh, logical_shapes
from hpc_alpa.plan.intra_op import Restrictions
from hpc_alpa.search.request import Request
from hpc_alpa.step import StepGraph

AXES = ("x", "y", "z")


@dataclass(frozen=True)
class Slices:
    """Stages and their meshes.

    Attributes:
        cuts: where stages start among the forward equations.
    """

    cuts: tuple[int, ...]
    meshes: tuple[DeviceMesh, ...]
    axes: tuple[tuple[str, ...], ...]


def slice_stages(request: Request, step: StepGraph, rules: Restrictions) -> Iterator[Slices]:
    """Ways to slice the step, the one without stages first."""
    devices = tuple(range(request.num_devices))
    if step.num_microbatches == 1 or request.num_microbatches is not None:
        for shape in logical_shapes(request.num_devices):
            yield Slices((), (DeviceMesh(shape, devices),), (AXES[: len(shape)],))
