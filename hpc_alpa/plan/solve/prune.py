"""The first road without memory rows: bound by messages, drop what is above, eliminate the rest.

    messages      a lower bound, and for each choice that of every assignment with it
    rounding      passes give assignments; descent improves one where nothing moves any more
    pruning       choices whose bound is above the best objective are dropped
    elimination   exact, as soon as what is left is narrow enough
    parts         where that does not end, the same for assignments in the lowest part of the gap
                  alone: far fewer choices are left, and finding none raises the bound by the part

All are exact, so that where the elimination ends, or the bound meets the objective, the optimum is
proven; else the bound, the best assignment, and the choices that a better one may have.
"""

import math
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpc_alpa.plan.solve.chains import Chains
from hpc_alpa.plan.solve.contract import Factor, contract, order, trace_back
from hpc_alpa.plan.solve.descend import descend
from hpc_alpa.plan.solve.messages import Messages
from hpc_alpa.plan.solve.pairwise import pairwise
from hpc_alpa.plan.solve.problem import Assignment, IntArray, Problem, complete, evaluate

_PASSES = (4, 8, 16)  # there and back, in the first rounds, and in each after them
_ENTRIES = 2**24  # of all tables together, up to which elimination is faster than more messages
_SHRUNK = 0.75  # of the choices, from which on the program is written anew
_STALLED, _PATIENCE = 0.02, 4  # rounds that close less of the gap than this end the search
_FIRST_PART, _LEAST_PART = 0.25, 0.02  # of the gap that is left, to look into alone
_PROBES = 20  # of parts, that do not halve the gap: more of them are slower than HiGHS
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class Pruned:
    """What the search ended with.

    Args:
        best: the best assignment found; None where none was.
        bound: no assignment has a smaller objective; that of `best` where it is proven. Infinite
            where there is no assignment.
        alive: per node, the choices that a better assignment may have, and those of `best`.
    """

    best: Assignment | None
    bound: float
    alive: tuple[NDArray[np.bool_], ...]


def search(problem: Problem, relative_gap: float, seconds: float) -> Pruned:
    """The best assignment of a problem without ties and rows, and its bound, within the time."""
    end = time.perf_counter() + seconds
    state = _State(problem, relative_gap, Chains(pairwise(problem, stars=True)))
    state.run(end)
    part, before, idle = _FIRST_PART, state.missing, 0
    while not state.proven and part > _LEAST_PART and time.perf_counter() < end:
        part = min(2 * part, 1.0) if state.probe(part, end) else part / 4
        idle += 1
        if state.missing <= before / 2:
            before, idle = state.missing, 0
        elif idle == _PROBES:
            break
    return state.result()


class _State:
    """What is left of the program, the best assignment and the bound, so far.

    Args:
        chains: the program, which is changed.
        target: only assignments of fewer seconds are looked for.
    """

    def __init__(
        self, problem: Problem, relative_gap: float, chains: Chains, target: float = math.inf
    ) -> None:
        self._problem, self._gap = problem, max(relative_gap, _ROUNDING)
        self._chains = chains
        self._chains.reduce()
        self._new_messages()
        self._best: Assignment | None = None
        self._last: list[int] | None = None  # choices found last, better or not
        self._objective = target
        self._bound = -math.inf
        self._rounds = self._idle = 0

    def run(self, end: float) -> None:
        """Rounds, until the gap is closed, or nothing moves, or the time is over."""
        descended = False
        while True:
            self.round(end)
            if self.proven or (self._rounds > 1 and self.eliminate()):
                return
            late = time.perf_counter() > end
            if self.stalled and not descended and not late:
                descended = True
                if self.descend():
                    self._idle = 0
            last = late or self.stalled
            self.prune(1.0 if last else _SHRUNK)
            if last:
                return

    def probe(self, part: float, end: float) -> bool:
        """Look for an assignment in the lowest part of the gap alone. Whether that was decided.

        What is above the part is dropped, so that what is left is narrow. Where it has nothing, the
        bound rises by the part; else its best is the optimum.
        """
        target = self._bound + part * (self._objective - self._bound)
        if not math.isfinite(target):
            return False
        self._messages.apply()
        below = _State(self._problem, self._gap, self._chains.copy(), target)
        below.run(end)
        if below._best is not None:
            self._best, self._objective = below._best, below._objective
        self._bound = max(self._bound, min(below._bound, below._objective))
        return below.proven

    def _new_messages(self) -> None:
        self._messages = Messages(self._chains.program, self._chains.left)
        self._wide = True  # not known yet whether elimination is possible

    @property
    def proven(self) -> bool:
        """Whether nothing is better than the best assignment, or than the target."""
        if self._objective == math.inf:
            return self._bound == math.inf
        return self._objective - self._bound <= self._gap * abs(self._objective)

    @property
    def missing(self) -> float:
        """Seconds between the bound and the best objective, or the target."""
        return self._objective - self._bound

    @property
    def stalled(self) -> bool:
        return self._idle >= _PATIENCE

    def round(self, end: float) -> None:
        """Some passes, a bound, an assignment."""
        messages = self._messages
        candidates: list[tuple[float, tuple[int, ...]]] = []
        for _ in range(_PASSES[min(self._rounds, len(_PASSES) - 1)]):
            messages.run(forward=True, choose=False)
            messages.run(forward=False)
            candidates.append((messages.objective(), tuple(messages.choices.tolist())))
            if time.perf_counter() > end:
                break
        self._rounds += 1
        bound, above = messages.bound()
        if bound == math.inf:  # nothing better than what was pruned away
            self._bound = self._objective
            return
        before = self._objective - self._bound
        self._bound = max(self._bound, bound)
        least, choices = min(candidates)
        if least < self._objective or not math.isfinite(least):
            self._offer(self._chains.expand(choices))
        after = self._objective - self._bound
        self._idle = 0 if after < (1 - _STALLED) * before else self._idle + 1
        self._dead = bound + above > self._objective * (1 + _ROUNDING)

    def prune(self, shrunk: float) -> None:
        """Drop what was above the best objective in the last round.

        Args:
            shrunk: part of the choices; where fewer are left, the program is written anew.
        """
        messages = self._messages
        messages.drop(self._dead)
        if messages.alive.mean() < shrunk:
            messages.apply()
            self._chains.restrict(np.split(messages.alive, messages.start[1:-1]))
            self._chains.reduce()
            self._new_messages()

    def eliminate(self) -> bool:
        """Solve what is left, if its tables are small."""
        if not self._wide:
            return False
        self._wide = False
        program, left = self._chains.program, self._chains.left
        place = {v: i for i, v in enumerate(left)}
        sizes = [len(program.node[v]) for v in left]
        pairs = [(v, a) for v in left for a in program.pair[v] if place[v] < place[a]]
        scopes: list[tuple[int, ...]] = [(place[v], place[a]) for v, a in pairs]
        scopes += [tuple(place[v] for v in star.nodes) for star in program.stars]
        steps = order(sizes, scopes)
        entries = sum(math.prod(sizes[v] for v in (node, *around)) for node, around in steps)
        if entries > _ENTRIES:
            return False
        factors = [Factor((place[v],), program.node[v]) for v in left]
        factors += [Factor((place[v], place[a]), program.pair[v][a]) for v, a in pairs]
        for star in program.stars:
            whole = star.factor()
            factors.append(Factor(tuple(place[v] for v in whole.scope), whole.seconds))
        minimum, buckets = contract(sizes, factors, steps, ())
        least = float(minimum) + program.constant
        if math.isfinite(least):
            choice = trace_back(steps, buckets, {})
            self._offer(self._chains.expand([choice[v] for v in range(len(left))]))
        self._bound = max(self._bound, min(least, self._objective))
        return True

    def descend(self) -> bool:
        """Improve the last assignment node by node. Whether there is a better one than before."""
        before = self._objective
        if self._last is not None:
            self._keep(descend(self._problem, self._last))
        return self._objective < before

    def _offer(self, choices: IntArray) -> None:
        self._last = choices[: len(self._problem.costs)].tolist()
        self._keep(complete(self._problem, self._last))

    def _keep(self, candidate: Assignment) -> None:
        objective = evaluate(self._problem, candidate).objective
        if objective < self._objective:
            self._objective, self._best = objective, candidate

    def result(self) -> Pruned:
        """What is known now."""
        alive = [self._chains.alive(v) for v in range(len(self._problem.costs))]
        if self._best is not None:
            for mask, choice in zip(alive, self._best.choices, strict=True):
                mask[choice] = True
        return Pruned(self._best, min(self._bound, self._objective), tuple(alive))
