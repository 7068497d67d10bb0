"""[Submesh] -> [Traffic]: the transfers between submeshes with their tiles and their order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hpc_alpa.lower.spmd import Exchange
from hpc_alpa.lower.submesh import Submesh
from hpc_alpa.reshard import ReshardTask, reshard
from hpc_alpa.reshard.task import Piece
from hpc_alpa.schedule import Action, Pass, Replay, Schedule, replay
from hpc_alpa.step import APPLY, BACKWARD, FORWARD, PREPARE, WEIGHT, Transfer

PHASE_OF = {Pass.FORWARD: FORWARD, Pass.BACKWARD: BACKWARD, Pass.WEIGHT: WEIGHT}
PASS_OF = {phase: kind for kind, phase in PHASE_OF.items()}
Message = tuple[Transfer, int | None]  # of a microbatch, or of a phase that runs once


@dataclass(frozen=True)
class Channel:
    """A transfer between stages with its tiles.

    Attributes:
        number: the messages' tag.
        source, target: the submeshes.
        source_name, target_name: the buffers at both ends, `@` behind those of one microbatch.
    """

    number: int
    transfer: Transfer
    task: ReshardTask
    source: int
    target: int
    source_name: str
    target_name: str

    def nbytes(self, piece: Piece) -> int:
        """Bytes of a piece."""
        type = self.transfer.value.type
        return piece.size * (type.nbytes // max(type.size, 1))


@dataclass(frozen=True)
class Traffic:
    """All transfers between submeshes.

    Attributes:
        order: (submesh, submesh) -> its messages to the other, in the order of its sends.
        clock: when the actions run, one tick each: an order in which nobody waits for later ones.
    """

    channels: Mapping[Transfer, Channel]
    order: Mapping[tuple[int, int], tuple[Message, ...]]
    clock: Replay

    def received_at(self, message: Message) -> float:
        """The tick in which the receiver takes a message: before the loop, in it, or after it."""
        transfer, microbatch = message
        if transfer.phase == PREPARE:
            return -1.0
        if microbatch is None:
            return math.inf
        kind = PASS_OF[transfer.phase]
        return self.clock.starts[Action(transfer.target, kind, microbatch)]


def traffic(submeshes: Sequence[Submesh], schedule: Schedule, strategy: str) -> Traffic:
    """The transfers between submeshes.

    Args:
        strategy: of resharding.
    """
    ends: dict[Transfer, list[tuple[Submesh, Exchange] | None]] = {}
    for submesh in submeshes:
        for item in submesh.exchanges:
            ends.setdefault(item.transfer, [None, None])[not item.sends] = submesh, item
    channels = {}
    for number, (transfer, (sender, receiver)) in enumerate(
        sorted(ends.items(), key=lambda x: (x[0].source, x[0].target, x[0].value.id))
    ):
        assert sender is not None and receiver is not None, transfer
        (a, source), (b, target) = sender, receiver
        shape = transfer.value.type.shape
        task = reshard(shape, source.spec, a.mesh, target.spec, b.mesh, strategy)
        channels[transfer] = Channel(
            number, transfer, task, a.index, b.index, source.name, target.name
        )
    order: dict[tuple[int, int], list[Message]] = {}
    for submesh, row in zip(submeshes, schedule, strict=True):
        for message in _sends(submesh, row):
            key = submesh.index, channels[message[0]].target
            order.setdefault(key, []).append(message)
    return Traffic(channels, {k: tuple(m) for k, m in order.items()}, replay(schedule))


def _sends(submesh: Submesh, row: Sequence[Action]) -> Iterator[Message]:
    """A submesh's messages in the order in which it sends them."""
    sent = {
        key: [i.transfer for i in items if isinstance(i, Exchange) and i.sends]
        for key, items in submesh.looped.items()
    }
    for phase in (PREPARE, None, APPLY):
        if phase is None:
            for a in row:
                for transfer in sent[a.stage, PHASE_OF[a.kind]]:
                    yield transfer, a.microbatch
        else:
            for item in submesh.once[phase]:
                if isinstance(item, Exchange) and item.sends:
                    yield item.transfer, None
