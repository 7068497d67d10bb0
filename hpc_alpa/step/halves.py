"""The two halves of a stage's backward pass (Qi et al. 2023, arXiv 2401.10241, Sec. 2).

    input half     what the values sent to another stage depend on: nobody may wait for more
    weight half    the rest: gradients of weights, and their sums over the microbatches

No equation is in both. What the input half makes and the weight half reads is kept between them.
The first stage sends nothing back, so all of its backward pass is its weight half.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from typing import TypeVar

from hpc_alpa.ir.graph import Var
from hpc_alpa.step.phase import BACKWARD
from hpc_alpa.step.stages import StageGraph

T = TypeVar("T")
Name = TypeVar("Name", bound=Hashable)


def weight_half(stage: StageGraph) -> frozenset[Var]:
    """What the equations of the weight half make."""
    eqns = [e for e in stage.graph.eqns if e.phase == BACKWARD]
    sent = {t.value for t in stage.sent if t.phase == BACKWARD}
    early = needed(eqns, lambda e: e.inputs, lambda e: (e.output,), sent)
    return frozenset(e.output for e, first in zip(eqns, early, strict=True) if not first)


def needed(
    items: Sequence[T],
    reads: Callable[[T], Iterable[Name]],
    writes: Callable[[T], Iterable[Name]],
    wanted: Collection[Name],
) -> list[bool]:
    """For each of some items, in the order in which they run, whether wanted names depend on it."""
    names = set(wanted)
    found = [False] * len(items)
    for k in reversed(range(len(items))):
        if not names.isdisjoint(writes(items[k])):
            found[k] = True
            names.update(reads(items[k]))
    return found
