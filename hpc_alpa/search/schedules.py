"""[Candidate] -> [Candidate]: the same layers on the same submeshes under other schedules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate

from hpc_alpa.errors import ScheduleError
from hpc_alpa.schedule import SCHEDULES
from hpc_alpa.search.candidates import Candidate
from hpc_alpa.search.layers import Layers

TRIED = ("zb_h1", "zb_v", "interleaved_1f1b", "eager_1f1b")  # most gain first


def rescheduled(candidate: Candidate, layers: Layers) -> Iterator[Candidate]:
    """A pipeline under every other schedule that trains.

    Schedules that put several stages on a submesh cut the layers anew, in as many parts of about
    equal seconds; that needs submeshes that are all alike.

    Args:
        candidate: of one stage per submesh.
    """
    meshes = candidate.meshes
    for name in TRIED:
        family = SCHEDULES[name]
        try:
            placement = family.placement(len(meshes))
        except ScheduleError:
            continue
        if len(placement) == len(meshes):
            yield replace(candidate, schedule=name)
        elif len({m.shape for m in meshes}) == 1 and len(layers) >= len(placement):
            yield replace(
                candidate,
                schedule=name,
                cuts=_even(layers, len(placement)),
                meshes=tuple(meshes[k] for k in placement),
                axes=tuple(candidate.axes[k] for k in placement),
            )


def _even(layers: Layers, parts: int) -> tuple[int, ...]:
    """Where the parts but the first start: as near to equal seconds as whole layers allow."""
    ends = list(accumulate(layers.seconds))
    starts, k = [], 0
    for part in range(1, parts):
        share = ends[-1] * part / parts
        # Each part has a layer, and leaves one for each behind it.
        last = len(layers) - (parts - part)
        k += 1
        while k < last and abs(ends[k] - share) <= abs(ends[k - 1] - share):
            k += 1
        starts.append(layers.starts[k])
    return tuple(starts)
