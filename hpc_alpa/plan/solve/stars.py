"""Conversions that several nodes share, as one factor each: the producer and its readers, a star.

    seconds of a star  =  sum over the distinct classes t that its readers need of C[made, t]

The readers of a class form a group, so that the least entry of a star under costs r_u[t] of its
readers is one over the partitions of the readers:

    g[S] = min over t of  C[made, t] + sum of r_u[t] over u in S
    F[U] = min over the S in U that have the first reader of U, of  g[S] + F[U - S]

This is exact and needs no table over all nodes (`passes`). Written as pairs, with a node for each
copy (`pairwise`), the same program has a weaker linear relaxation, and messages stop below it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hpc_alpa.plan.solve.contract import Factor
from hpc_alpa.plan.solve.problem import FloatArray, IntArray
from hpc_alpa.plan.solve.shares import Shared

MOST_READERS = 8  # of a star: the least entry takes 3^readers steps


@dataclass(eq=False)
class Star:
    """A conversion that the first node pays once for each class that the others need.

    Args:
        nodes: the producer, and its readers, each once.
        classes: of each node, the class that it makes or needs under each choice.
        conversion: seconds [made, needed], infinite where forbidden.
        charge: of each node, seconds per choice, which messages have moved here from its costs.
    """

    nodes: tuple[int, ...]
    classes: list[IntArray]
    conversion: FloatArray
    charge: list[FloatArray]

    @classmethod
    def of(cls, group: Shared) -> "Star | None":
        """None where a node reads twice or what it makes itself, or where readers are too many."""
        nodes = (group.producer, *(node for node, _ in group.needed))
        once = all(len(several) == 1 for _, several in group.needed)
        if not once or len(set(nodes)) < len(nodes) or len(nodes) > MOST_READERS + 1:
            return None
        classes = [group.produced, *(several[0] for _, several in group.needed)]
        return cls(nodes, classes, group.conversion, [np.zeros(len(c)) for c in classes])

    def restrict(self, node: int, alive: NDArray[np.bool_]) -> None:
        """Drop choices of a node."""
        at = self.nodes.index(node)
        self.classes[at] = self.classes[at][alive]
        self.charge[at] = self.charge[at][alive]

    def seconds(self, choices: Sequence[int]) -> float:
        """Of one choice per node of the program."""
        x = [choices[v] for v in self.nodes]
        made, *needed = (int(c[i]) for c, i in zip(self.classes, x, strict=True))
        charges = sum(float(charge[i]) for charge, i in zip(self.charge, x, strict=True))
        return float(self.conversion[made, sorted(set(needed))].sum()) + charges

    def factor(self) -> Factor:
        """The table over all nodes."""
        needed = tuple((v, (c,)) for v, c in zip(self.nodes[1:], self.classes[1:], strict=True))
        dense = Shared(self.nodes[0], self.classes[0], self.conversion, needed).dense()
        seconds = dense.seconds
        for dim, charge in enumerate(self.charge):
            others = [d for d in range(len(self.nodes)) if d != dim]
            seconds = seconds + np.expand_dims(charge, others)
        return Factor(dense.scope, seconds)

    def parts(self) -> "Parts":
        """The same seconds as costs, pairs and smaller stars.

        A reader that always needs one class leaves it to the others for free; readers that have no
        class in common that costs anything share nothing; one reader alone is the end of a pair.
        """
        parts = Parts([(self.nodes[0], self.charge[0])])
        made, conversion = self.classes[0], self.conversion.copy()
        several = []
        for at in range(1, len(self.nodes)):
            t = int(self.classes[at][0])
            if (self.classes[at] != t).any():
                several.append(at)
                continue
            paid = conversion[:, t].copy()
            parts.costs += [(self.nodes[0], paid[made]), (self.nodes[at], self.charge[at])]
            conversion[:, t] = np.where(np.isfinite(paid), 0.0, np.inf)
        for readers in self._groups(several, conversion):
            charges = [self.charge[at] for at in readers]
            if len(readers) == 1:
                table = conversion[np.ix_(made, self.classes[readers[0]])] + charges[0]
                parts.pairs.append((self.nodes[0], self.nodes[readers[0]], table))
                continue
            nodes = (self.nodes[0], *(self.nodes[at] for at in readers))
            classes = [made, *(self.classes[at] for at in readers)]
            parts.stars.append(Star(nodes, classes, conversion, [np.zeros(len(made)), *charges]))
        return parts

    def _groups(self, readers: Sequence[int], conversion: FloatArray) -> list[list[int]]:
        """The readers that share some class which costs something, directly or by others."""
        rows = conversion[np.unique(self.classes[0])]
        costly: NDArray[np.bool_] = np.any((rows > 0) & np.isfinite(rows), axis=0)
        groups: list[tuple[NDArray[np.bool_], list[int]]] = []
        for at in readers:
            needs = np.zeros(len(costly), np.bool_)
            needs[self.classes[at]] = True
            needs &= costly
            joined, apart = [at], []
            for classes, others in groups:
                if (classes & needs).any():
                    needs, joined = needs | classes, others + joined
                else:
                    apart.append((classes, others))
            groups = [*apart, (needs, joined)]
        return [sorted(group) for _, group in groups]


@dataclass(eq=False)
class Parts:
    """Costs of nodes, seconds of pairs, and stars: they add up."""

    costs: list[tuple[int, FloatArray]]
    pairs: list[tuple[int, int, FloatArray]] = field(default_factory=list)
    stars: list[Star] = field(default_factory=list)
