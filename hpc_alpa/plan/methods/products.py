"""What every plan of a communication-only cost model must do."""

from __future__ import annotations

from hpc_alpa.ir.graph import Eqn
from hpc_alpa.plan.restrictions import Restrictions
from hpc_alpa.sharding import Strategy

PRODUCTS = ("conv", "conv_grad_input", "conv_grad_weight", "dot_general")  # alphabetical


def split_products(mesh: tuple[int, ...]) -> Restrictions:
    """Products of matrices are split over every mesh axis, never repeated (Alpa, Sec. 4.1).

    Convolutions are such products too. For cost models that price communication alone, under which
    repeating everything would be free.
    """

    def strategy(e: Eqn, s: Strategy) -> bool:
        if e.op.name not in PRODUCTS:
            return True
        pairs = zip(mesh, s.roles, strict=True)
        return all(n == 1 or r[0] not in "+>-" for n, r in pairs)

    return Restrictions(strategy)
