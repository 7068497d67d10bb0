"""Buckets: collectives of one kind over the same axes that can start together share one message.

    [Item] -> [Item], for the phases that run once a step

Items are taken in waves: everything that can run before the next collective, then all collectives
that are ready, fused by kind, axes, reduction and dtype. So the gradients of a step are reduced in
one call, and what ZeRO gathers is gathered in one.
"""

from __future__ import annotations

from collections.abc import Sequence

from hpc_alpa.ir.types import numpy_dtype
from hpc_alpa.lower.spmd import Convert, Exchange, Item, reads, writes
from hpc_alpa.plan.paths import BUCKET_BYTES, FUSED
from hpc_alpa.sharding.conversions import FREE


def is_collective(item: Item) -> bool:
    """Whether an item needs other devices of its mesh."""
    return isinstance(item, Convert) and item.moves[0].kind not in FREE


def bucket(items: Sequence[Item], limit: int = BUCKET_BYTES) -> list[Item]:
    """Reorder the items of a phase that runs once, and fuse its collectives.

    Args:
        limit: most bytes that one bucket holds; a larger value is alone in its bucket.
    """
    waiting = list(items)
    made_here = {w for item in waiting for w in writes(item)}
    done: set[str] = set()
    result: list[Item] = []

    def ready(item: Item) -> bool:
        return all(r in done or r not in made_here for r in reads(item))

    while waiting:
        rest: list[Item] = []
        for item in waiting:
            # Messages keep their place: the other stage's order of messages fits only this one.
            if isinstance(item, Exchange) and rest:
                rest.append(item)
            elif ready(item) and not is_collective(item):
                result.append(item)
                done.update(writes(item))
            else:
                rest.append(item)
        start = [i for i in rest if ready(i) and is_collective(i)]
        if not start and len(rest) == len(waiting):
            raise AssertionError("items of a phase depend on each other in a circle")
        for fused in _fuse([i for i in start if isinstance(i, Convert)], limit):
            result.append(fused)
            done.update(fused.outputs)
        begun = {id(i) for i in start}
        waiting = [i for i in rest if id(i) not in begun]
    return result


def _fuse(items: Sequence[Convert], limit: int) -> list[Convert]:
    groups: dict[object, list[Convert]] = {}
    result: list[Convert] = []
    for item in items:
        move, type = item.moves[0], item.types[0]
        if move.kind not in FUSED:
            result.append(item)
            continue
        group = (move.kind, move.axes, move.source.kind, numpy_dtype(type.dtype).name)
        groups.setdefault(group, []).append(item)
    for members in groups.values():
        part: list[Convert] = []
        size = 0
        for item in members:
            nbytes = item.types[0].nbytes
            if part and size + nbytes > limit:
                result.append(_join(part))
                part, size = [], 0
            part.append(item)
            size += nbytes
        result.append(_join(part))
    return result


def _join(items: Sequence[Convert]) -> Convert:
    return Convert(
        tuple(m for i in items for m in i.moves),
        tuple(t for i in items for t in i.types),
        tuple(n for i in items for n in i.inputs),
        tuple(n for i in items for n in i.outputs),
        tuple(n for i in items for n in i.runs),
    )
