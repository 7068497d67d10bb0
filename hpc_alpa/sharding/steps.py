"""The steps in which an equation runs that needs other devices in between."""

from __future__ import annotations

from dataclasses import dataclass

from hpc_alpa.ir.graph import Eqn, Var
from hpc_alpa.sharding.conversions import Move
from hpc_alpa.sharding.strategies import Strategy


@dataclass(frozen=True, slots=True)
class Interior:
    """Run one equation of the interior under a strategy, on every device."""

    eqn: Eqn
    strategy: Strategy


@dataclass(frozen=True, slots=True)
class Exchange:
    """Convert a value of the interior in place.

    All_reduce, or to_partial_sum, which is free, of statistics; all_gather of the edges of tiles.
    """

    value: Var
    move: Move


Phase = Interior | Exchange
