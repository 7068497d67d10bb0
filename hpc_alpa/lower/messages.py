"""Which send goes with which receive: matching in order per (sender, receiver, channel).

MPI takes the channel as a tag. NCCL has none and matches all messages of a pair of ranks in order.
A ticket may name its message: `c0.1.m2.s` and `c0.1.m2.r` are two sides of `c0.1.m2`. Where both
sides have a name, the names must agree, so receives of one size in the wrong order are found too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpc_alpa.errors import ProgramError
from hpc_alpa.lower.program import Program, Recv, Send, Wait

Place = tuple[int, int]  # rank, index of an instruction


@dataclass(frozen=True)
class Messages:
    """The messages of a set of programs, numbered.

    Attributes:
        of: message of every send, receive and wait, by (rank, index).
        sides: (place of the send, place of the receive) of every message.
    """

    of: Mapping[Place, int]
    sides: tuple[tuple[Place, Place], ...]


def piece_of(ticket: str) -> tuple[int, str]:
    """The piece and the microbatch, "" where there is none, of the message of a ticket."""
    _, piece, *microbatch, _ = ticket.split(".")
    return int(piece), "".join(microbatch)


def where(program: Program, index: int) -> str:
    """`rank 1, instruction 7 'wait c0.1.m2.r'`."""
    return f"rank {program.rank}, {instruction(program, index)}"


def instruction(program: Program, index: int) -> str:
    """`instruction 7 'wait c0.1.m2.r'`."""
    return f"instruction {index} '{program.instructions[index]}'"


def match(programs: Mapping[int, Program], in_order: bool = False) -> Messages:
    """Pair sends and receives, and every wait with its start.

    Args:
        in_order: messages of one pair of ranks match in order over all channels.

    Raises:
        ProgramError: a ticket started twice, never, or not waited for; a message with one side;
            two sides of unlike sizes or names.
    """
    starts = {p.rank: _starts(p) for p in programs.values()}
    sent: dict[tuple[int, int, int], list[Place]] = {}
    received: dict[tuple[int, int, int], list[Place]] = {}
    for p in programs.values():
        for index, i in enumerate(p.instructions):
            if isinstance(i, Send):
                key = (p.rank, i.peer, 0 if in_order else i.channel)
                sent.setdefault(key, []).append((p.rank, index))
            elif isinstance(i, Recv):
                key = (i.peer, p.rank, 0 if in_order else i.channel)
                received.setdefault(key, []).append((p.rank, index))
    of: dict[Place, int] = {}
    sides: list[tuple[Place, Place]] = []
    for key in sorted(sent.keys() | received.keys()):
        ours, theirs = sent.get(key, []), received.get(key, [])
        for a, b in zip(ours, theirs, strict=False):
            _fit(programs, a, b)
            of[a] = of[b] = len(sides)
            sides.append((a, b))
        if len(ours) != len(theirs):
            raise _one_sided(programs, key, ours, theirs, in_order)
    for rank, by_wait in starts.items():
        for wait, start in by_wait.items():
            of[rank, wait] = of[rank, start]
    return Messages(of, tuple(sides))


def _starts(program: Program) -> dict[int, int]:
    """Index of the start of every wait."""
    pending: dict[str, int] = {}
    done: dict[str, int] = {}
    starts: dict[int, int] = {}
    for index, i in enumerate(program.instructions):
        if isinstance(i, (Send, Recv)):
            if i.ticket in pending:
                raise ProgramError(
                    f"{where(program, index)} starts a ticket that is in use by "
                    f"{instruction(program, pending[i.ticket])}; give it a ticket of its own"
                )
            pending[i.ticket] = index
        elif isinstance(i, Wait):
            if i.ticket not in pending:
                before = done.get(i.ticket)
                why = (
                    "which nothing has started"
                    if before is None
                    else f"which {instruction(program, before)} has finished already"
                )
                raise ProgramError(
                    f"{where(program, index)} waits for ticket {i.ticket}, {why}; each send and "
                    "receive has exactly one wait, after its start"
                )
            starts[index] = pending.pop(i.ticket)
            done[i.ticket] = index
    if pending:
        ticket, index = next(iter(pending.items()))
        others = f" ({len(pending) - 1} more tickets like it)" if len(pending) > 1 else ""
        raise ProgramError(
            f"{where(program, index)} is never waited for{others}; add 'wait {ticket}' before the "
            "program ends"
        )
    return starts


def _fit(programs: Mapping[int, Program], a: Place, b: Place) -> None:
    send, recv = (programs[r].instructions[k] for r, k in (a, b))
    assert isinstance(send, Send) and isinstance(recv, Recv)
    names = [i.ticket.rpartition(".")[0] for i in (send, recv)]
    if send.channel != recv.channel:
        differ = f"the channels differ: {send.channel} is sent, {recv.channel} expected"
    elif send.nbytes != recv.nbytes:
        differ = f"the sizes differ: {send.nbytes} bytes are sent, {recv.nbytes} received"
    elif all(names) and names[0] != names[1]:
        differ = f"the messages differ: {names[0]} is sent, {names[1]} expected"
    else:
        return
    raise ProgramError(
        f"{where(programs[b[0]], b[1])} matches {where(programs[a[0]], a[1])}, but {differ}. "
        "Messages match in order: start the receives in the order of the sends"
    )


def _one_sided(
    programs: Mapping[int, Program],
    key: tuple[int, int, int],
    sent: Sequence[Place],
    received: Sequence[Place],
    in_order: bool,
) -> ProgramError:
    source, target, channel = key
    on = "all channels" if in_order else f"channel {channel}"
    few = min(len(sent), len(received))
    (rank, index), missing, at = (
        (sent[few], "receive", target)
        if len(sent) > len(received)
        else (received[few], "send", source)
    )
    return ProgramError(
        f"{where(programs[rank], index)} has no {missing} at rank {at}: from rank {source} to rank "
        f"{target} on {on} there are {len(sent)} sends and {len(received)} receives; "
        f"add the {missing} or remove its other side"
    )
