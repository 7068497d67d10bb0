"""What a manual method, or pins, leave of the planner's choices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from hpc_alpa.ir.graph import Eqn, Var
from hpc_alpa.sharding import ShardingSpec, Strategy

F = TypeVar("F", bound=Callable[..., bool])
Allowed = Callable[[Eqn, Strategy], bool]
AllowedInput = Callable[[Var, ShardingSpec], bool]


def everything(e: Eqn, strategy: Strategy) -> bool:
    """Leaves every strategy."""
    return True


def anywhere(v: Var, spec: ShardingSpec) -> bool:
    """Leaves every spec."""
    return True


def any_copy(v: Var) -> bool:
    """Leaves every copy to be held."""
    return True


@dataclass(frozen=True)
class Restrictions:
    """What a manual method, or a user's pins, leave to choose from; `&` keeps what both leave.

    Attributes:
        strategy: whether an equation may use a strategy.
        input: whether an input of the step may lie in a spec.
        hold: whether copies of a value may be held from forward to backward.
    """

    strategy: Allowed = everything
    input: AllowedInput = anywhere
    hold: Callable[[Var], bool] = any_copy

    def __and__(self, other: Restrictions) -> Restrictions:
        return Restrictions(
            _both(self.strategy, other.strategy, everything),
            _both(self.input, other.input, anywhere),
            _both(self.hold, other.hold, any_copy),
        )


def _both(a: F, b: F, neutral: F) -> F:
    """Where both say yes; one alone where the other always does."""
    if a is neutral or b is neutral:
        return b if a is neutral else a
    return lambda *of: a(*of) and b(*of)  # type: ignore[return-value]
