"""The simulator's oracle: the same rules, written as plainly as can be, in exact fractions.

Every round looks at all ranks, finds the earliest thing that happens, and moves all of them there.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from hpc_alpa.cost import Cost
from hpc_alpa.lower.program import COLLECTIVES, KIND, Program, Recv, Run, Send, Wait

Name = tuple[int, int, int, int]  # sender, receiver, channel, how many before it


class PlainSimulator:
    """Runs checked programs.

    Attributes:
        ended: when each rank has ended.
        busy: seconds in which each rank computes.
    """

    def __init__(self, programs: Sequence[Program], cost: Cost, cores: Sequence[int]) -> None:
        self.programs = {p.rank: p for p in programs}
        self.cost, self.cores = cost, cores
        self.now = Fraction(0)
        self.ended: dict[int, Fraction] = {}
        self.busy = dict.fromkeys(self.programs, Fraction(0))
        self.at = dict.fromkeys(self.programs, 0)
        self.work: dict[int, Fraction] = {}  # seconds left, of ranks that compute
        self.until: dict[int, Fraction] = {}  # ranks whose collective runs
        self.sides: dict[Name, set[str]] = {}
        self.done: dict[Name, Fraction] = {}
        self.tickets: dict[tuple[int, str], Name] = {}
        self.counts: dict[tuple[str, int, int, int], int] = {}
        while len(self.ended) < len(self.programs):
            while any([self.step(r) for r in self.programs]):
                pass
            self.elapse()

    def step(self, rank: int) -> bool:
        """Try to go one instruction further."""
        p = self.programs[rank]
        if rank in self.ended or rank in self.work or rank in self.until:
            return False
        if self.at[rank] == len(p.instructions):
            self.ended[rank] = self.now
            return True
        i = p.instructions[self.at[rank]]
        if isinstance(i, Run):
            kernels = p.bodies[i.body].kernels
            self.work[rank] = sum(
                (Fraction(self.cost.compute(k.work)) for k in kernels), Fraction()
            )
        elif isinstance(i, (Send, Recv)):
            self.start(rank, i)
        elif isinstance(i, Wait):
            if self.done.get(self.tickets[rank, i.ticket], self.now + 1) > self.now:
                return False
        elif isinstance(i, COLLECTIVES):
            for r in i.group:
                at = self.at[r]
                other = self.programs[r].instructions[at : at + 1]
                there = other and getattr(other[0], "group", None) == i.group
                if not there or r in self.work or r in self.until:
                    return False
            seconds = self.cost.collective(KIND[type(i)], i.nbytes, i.group)
            for r in i.group:
                self.until[r] = self.now + Fraction(seconds)
            return True
        if rank not in self.work:
            self.at[rank] += 1
        return True

    def start(self, rank: int, i: Send | Recv) -> None:
        kind = "send" if isinstance(i, Send) else "recv"
        ends = (rank, i.peer) if kind == "send" else (i.peer, rank)
        key = (kind, *ends, i.channel)
        name = (*ends, i.channel, self.counts.get(key, 0))
        self.counts[key] = name[3] + 1
        self.tickets[rank, i.ticket] = name
        self.sides.setdefault(name, set()).add(kind)
        if len(self.sides[name]) == 2:
            self.done[name] = self.now + Fraction(self.cost.point_to_point(i.nbytes, *ends))

    def elapse(self) -> None:
        """Move on to the next end of a computation, a collective or a message."""
        host_of = self.cost.cluster.host_of
        count: dict[int, int] = {}
        for r in self.work:
            count[host_of(r)] = count.get(host_of(r), 0) + 1
        rate = {
            r: min(Fraction(1), Fraction(self.cores[host_of(r)], count[host_of(r)]))
            for r in self.work
        }
        times = [self.now + self.work[r] / rate[r] for r in self.work]
        times += [t for t in (*self.until.values(), *self.done.values()) if t > self.now]
        times += [t for t in self.until.values() if t == self.now]
        if not times:
            return
        then = min(times)
        for r in list(self.work):
            self.busy[r] += then - self.now
            self.work[r] -= (then - self.now) * rate[r]
            if self.work[r] == 0:
                del self.work[r]
                self.at[r] += 1
        self.now = then
        for r in [r for r, t in self.until.items() if t == then]:
            del self.until[r]
            self.at[r] += 1
