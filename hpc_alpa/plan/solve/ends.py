"""The least objective for each combination of a few nodes' choices, exact near the optimum.

`eliminate.table` knows every entry, but its tables grow with the choices of all nodes. Here
messages say first how far each choice is above the bound; what is further above than a margin is
dropped, and the rest eliminated. An entry below the margin is then exact, any other is bounded from
below by the margin and by what messages prove. The margin is the widest whose tables are small.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hpc_alpa.errors import InfeasibleError, PlanError
from hpc_alpa.plan.solve.chains import Chains
from hpc_alpa.plan.solve.contract import Factor, contract, order
from hpc_alpa.plan.solve.messages import Messages
from hpc_alpa.plan.solve.pairwise import Pairwise, pairwise
from hpc_alpa.plan.solve.presolve import Reduced, reduce
from hpc_alpa.plan.solve.prices import priced
from hpc_alpa.plan.solve.problem import Assignment, FloatArray, IntArray, Problem, complete

_ROUNDS, _PASSES, _STALLED = 8, 6, 1e-4  # of messages; the least rise of the bound, relative
_MARGINS = (math.inf, 0.3, 0.1, 0.03)  # above the bound, relative
_ENTRIES = 2**20  # of all tables of an elimination together
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class Ends:
    """What `Interior.ends` finds.

    Attributes:
        minimum: one dim per kept node, in the order asked for; infinite where impossible.
        exact: where it is the objective of an assignment, and not only a lower bound.
        best: an assignment near the least entry.
    """

    minimum: FloatArray
    exact: NDArray[np.bool_]
    best: Assignment


@dataclass(frozen=True, eq=False)
class Interior:
    """All nodes of a problem but a few, presolved once for all prices on memory.

    Args:
        kept: the reduced nodes that stay, in the order asked for.
    """

    reduced: Reduced
    kept: tuple[int, ...]

    @classmethod
    def of(cls, problem: Problem, keep: Sequence[int]) -> Self:
        """The interior between some nodes.

        Raises:
            InfeasibleError: forbidden conversions leave a node without a choice.
            PlanError: two of the nodes are tied.
        """
        reduced = reduce(problem, keep)
        kept = tuple(int(reduced.node_of[node]) for node in keep)
        if len(set(kept)) < len(kept):
            raise PlanError("two of the kept nodes are tied, and have one choice: keep one of them")
        return cls(reduced, kept)

    def ends(self, per_byte: FloatArray | None = None, entries: int = _ENTRIES) -> Ends:
        """The least objective over all other nodes, for each combination of the kept ones.

        Args:
            per_byte: price of each memory row, whose limits do not count; none is free.
            entries: of all tables together, up to which what is left is eliminated.

        Raises:
            InfeasibleError: forbidden conversions leave nothing.
        """
        small = self.reduced.problem
        prices = np.zeros(len(small.rows)) if per_byte is None else per_byte
        chains = Chains(pairwise(priced(small, prices), stars=True))
        chains.reduce(self.kept)
        messages, bound, choices = _converged(chains)
        if math.isinf(bound):
            raise InfeasibleError("every combination of choices needs a forbidden conversion")
        best = self.reduced.expand(complete(small, choices[: len(small.costs)].tolist()))
        _, above = messages.bound()
        pieces = np.split(above, messages.start[1:])[:-1]  # none where all was eliminated
        of = dict(zip(chains.left, pieces, strict=True))
        messages.apply()
        sizes = [len(small.costs[v]) for v in self.kept]
        proven = np.full(sizes, bound)
        for dim, v in enumerate(self.kept):
            others = [d for d in range(len(sizes)) if d != dim]
            proven = np.maximum(proven, np.expand_dims(bound + of[v], others))
        for margin in _MARGINS:
            limit = bound + margin * max(abs(bound), _ROUNDING)
            alive = [of[v] <= limit - bound for v in chains.left]
            found = _eliminated(chains, alive, self.kept, sizes, entries)
            if found is not None:
                exact = found <= limit
                return Ends(np.where(exact, found, np.maximum(proven, limit)), exact, best)
        return Ends(proven, np.zeros(sizes, np.bool_), best)


def _converged(chains: Chains) -> tuple[Messages, float, IntArray]:
    """Messages whose bound hardly rises any more, the bound, and the best choices seen."""
    messages = Messages(chains.program, chains.left)
    bound, seen = -math.inf, []
    for _ in range(_ROUNDS):
        for last in range(_PASSES):
            messages.run(forward=True, choose=False)
            messages.run(forward=False, choose=last == _PASSES - 1)
        seen.append((messages.objective(), tuple(messages.choices.tolist())))
        before, (bound, _) = bound, messages.bound()
        if not bound > before + _STALLED * abs(bound):
            break
    return messages, bound, chains.expand(min(seen)[1])


def _eliminated(
    chains: Chains,
    alive: Sequence[NDArray[np.bool_]],
    kept: Sequence[int],
    sizes: Sequence[int],
    entries: int,
) -> FloatArray | None:
    """The table of what is alive, infinite elsewhere; None where its elimination is too large."""
    left = chains.copy()
    if not all(mask.all() for mask in alive):
        left.restrict(alive)
        left.reduce(kept)
    program, nodes = left.program, left.left
    place = {v: i for i, v in enumerate(nodes)}
    extents = [len(program.node[v]) for v in nodes]
    pairs = [(v, a) for v in nodes for a in program.pair[v] if place[v] < place[a]]
    scopes: list[tuple[int, ...]] = [(place[v], place[a]) for v, a in pairs]
    scopes += [tuple(place[v] for v in star.nodes) for star in program.stars]
    ends = [place[v] for v in kept]
    steps = order(extents, scopes, ends)
    if sum(math.prod(extents[v] for v in (node, *around)) for node, around in steps) > entries:
        return None
    minimum, _ = contract(extents, _factors(program, nodes, place, pairs), steps, ends)
    whole = np.full(sizes, np.inf)
    dims = [np.flatnonzero(left.alive(v)) for v in kept]
    whole[np.ix_(*dims)] = minimum + program.constant
    return whole


def _factors(
    program: Pairwise,
    nodes: Sequence[int],
    place: dict[int, int],
    pairs: Sequence[tuple[int, int]],
) -> list[Factor]:
    factors = [Factor((place[v],), program.node[v]) for v in nodes]
    factors += [Factor((place[v], place[a]), program.pair[v][a]) for v, a in pairs]
    for star in program.stars:
        whole = star.factor()
        factors.append(Factor(tuple(place[v] for v in whole.scope), whole.seconds))
    return factors
