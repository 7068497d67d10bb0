"""The static check of all ranks' programs, before a device is touched.

    names        groups, peers and bodies exist                              here
    messages     every send has its receive, every start its wait            messages
    buffers      written before they are read, freed once, none left         buffers
    progress     run together without buffering, all ranks come to the end   deadlock

Programs that pass run to their end at any speed of the ranks and of the network: a message is taken
to be done only when both sides have started (MPI and NCCL may do better, and need not), messages of
one channel match in order, and collectives on groups that overlap come in one order.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

from hpc_alpa.errors import ProgramError
from hpc_alpa.lower import deadlock
from hpc_alpa.lower.buffers import check_buffers
from hpc_alpa.lower.messages import match, where
from hpc_alpa.lower.program import COLLECTIVES, Broadcast, Program, Recv, Run, Send


def check(programs: Sequence[Program], *, in_order: bool = False) -> None:
    """Check that the ranks' programs fit together and that each treats its buffers well.

    Args:
        in_order: messages between two ranks match in order over all channels, as on NCCL, which
            knows no tags; else in order per channel, as on MPI.

    Raises:
        ProgramError: names the rank, the instruction, the other side and what to do.
    """
    by_rank = {p.rank: p for p in programs}
    if len(by_rank) != len(programs):
        ranks = [p.rank for p in programs]
        raise ProgramError(
            f"two programs are for one rank: the ranks are {ranks}; give one to each"
        )
    for p in programs:
        _check_names(p, by_rank.keys())
    messages = match(by_rank, in_order)
    for p in programs:
        check_buffers(p)
    deadlock.run(by_rank, messages)


def _check_names(program: Program, ranks: Set[int]) -> None:
    known: set[object] = set()  # groups and bodies seen before
    for index, i in enumerate(program.instructions):
        problem = ""
        if isinstance(i, Run):
            if i.body not in program.bodies:
                problem = f"the program has no body {i.body}; its bodies are {[*program.bodies]}"
        elif isinstance(i, (Send, Recv)):
            if i.peer not in ranks or i.peer == program.rank:
                problem = f"rank {i.peer} is not another rank; there are {sorted(ranks)}"
        elif isinstance(i, COLLECTIVES):
            if i.group not in known:
                problem = _problem(i.group, program.rank, ranks)
                known.add(i.group)
            if isinstance(i, Broadcast) and not problem:
                problem = _broadcast_problem(i, program.rank)
        if problem:
            raise ProgramError(f"{where(program, index)}: {problem}")


def _problem(group: tuple[int, ...], rank: int, ranks: Set[int]) -> str:
    unknown = [r for r in group if r not in ranks]
    if unknown:
        return f"ranks {unknown} of the group have no program; there are {sorted(ranks)}"
    if len(set(group)) < len(group):
        return f"the group {group} names a rank twice; name each once"
    if rank not in group:
        return f"rank {rank} is not in the group {group}; leave the instruction out of its program"
    return ""


def _broadcast_problem(i: Broadcast, rank: int) -> str:
    if i.root not in i.group:
        return f"the root {i.root} is not in the group {i.group}"
    if bool(i.source) != (rank == i.root) or bool(i.target) == (rank == i.root):
        return (
            f"the root {i.root} has a source and the others a target; rank {rank} has source "
            f"{i.source!r} and target {i.target!r}"
        )
    return ""
