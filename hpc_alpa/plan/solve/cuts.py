"""What the assignments seen so far say of the Lagrangian dual: Kelley's cutting planes.

Each assignment x bounds the dual from above at all prices mu >= 0:

    dual(mu)  <=  objective(x) + mu @ (memory(x) - limits)

so the dual's maximum is nowhere but where the least of these is highest, which a linear program of
a few columns finds (Kelley, "The cutting-plane method for solving convex programs", 1960).
"""

from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linprog

from hpc_alpa.plan.solve.problem import FloatArray

_FIRST_MOST = 0.01  # of the first objective: the price of a whole limit, before more is tried
_RISE = 5.0
_LEAST = 1e-5  # of the objectives: what costs next to nothing is decided by its bytes


@dataclass
class Cuts:
    """Objectives, and excesses over the limits as parts of them, of what was seen.

    Attributes:
        most: that the price of a whole limit is looked for below, in seconds; it rises.
    """

    objectives: list[float] = field(default_factory=list)
    excesses: list[FloatArray] = field(default_factory=list)
    most: float = 0.0

    def add(self, objective: float, excess: FloatArray) -> None:
        """One more assignment."""
        self.objectives.append(objective)
        self.excesses.append(excess)
        self.most = self.most or _FIRST_MOST * abs(objective)

    def highest(self) -> tuple[FloatArray, float]:
        """The prices of whole limits at which the least of all cuts is highest, and its seconds.

        No price is zero, so that of assignments that cost the same the smallest is found.
        """
        excess = np.array(self.excesses)
        num_rows = excess.shape[1]
        scale = max(map(abs, self.objectives)) or 1.0
        matrix = np.hstack([np.ones((len(excess), 1)), -excess])
        found = linprog(
            np.concatenate([[-1.0], np.zeros(num_rows)]),
            A_ub=matrix,
            b_ub=np.array(self.objectives) / scale,
            bounds=[(None, None), *[(0.0, self.most / scale)] * num_rows],
        )
        prices = scale * np.maximum(found.x[1:], _LEAST)
        if (prices >= self.most * (1 - 1e-9)).any():
            self.most *= _RISE  # what comes next may be dearer
        return prices, scale * float(found.x[0])
