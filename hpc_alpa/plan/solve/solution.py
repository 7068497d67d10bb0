"""What every solver answers: an assignment with its objective, proven bound, gap and seconds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

from hpc_alpa.errors import PlanError
from hpc_alpa.plan.solve.options import Clock, Options
from hpc_alpa.plan.solve.presolve import Reduced
from hpc_alpa.plan.solve.problem import Assignment, Problem, evaluate

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Solution:
    """An assignment and what is proven of it.

    Args:
        status: "optimal": the gap is within what was asked for; "feasible": the time or the
            iterations ended first.
        objective: seconds of the assignment, evaluated, not the solver's number.
        bound: no assignment has a smaller objective.
        gap: (objective - bound) / |objective|.
        seconds: of wall time, in all and per phase.
        limited: whether memory rows that were not listed were needed.
        in_blocks: whether equal layers are alike in blocks only (`limits.Apart`).
    """

    status: Literal["optimal", "feasible"]
    assignment: Assignment
    objective: float
    bound: float
    gap: float
    seconds: float
    phases: Mapping[str, float]
    limited: bool = False
    in_blocks: bool = False

    @classmethod
    def of(
        cls,
        objective: float,
        bound: float,
        assignment: Assignment,
        relative_gap: float,
        phases: Mapping[str, float],
        absolute_gap: float = 0.0,
    ) -> Self:
        """The solution with its gap; optimal if that is within one of the two gaps."""
        bound = min(bound, objective)  # rounding may put it above
        difference = objective - bound
        gap = difference / abs(objective) if difference else 0.0
        done = gap <= relative_gap or difference <= absolute_gap
        status: Literal["optimal", "feasible"] = "optimal" if done else "feasible"
        return cls(status, assignment, objective, bound, gap, sum(phases.values()), phases)

    @classmethod
    def expanded(
        cls,
        reduced: Reduced,
        best: Assignment | None,
        bound: float,
        options: Options,
        clock: Clock,
    ) -> Self:
        """The solution of the original problem. Raises PlanError if there is no assignment."""
        problem = reduced.original
        if best is None:
            raise nothing_found(problem, options)
        assignment = reduced.expand(best)
        objective = evaluate(problem, assignment).objective
        gap = max(options.relative_gap, _ROUNDING)
        clock.lap("expansion")
        return cls.of(objective, bound, assignment, gap, clock.phases, options.absolute_gap)


def nothing_found(problem: Problem, options: Options) -> PlanError:
    """The error where time ended without an assignment and without a proof that there is none."""
    return PlanError(
        f"no assignment of {len(problem.costs)} nodes under {len(problem.rows)} memory rows was "
        f"found in {options.seconds:g} s, nor proven impossible: allow more seconds"
    )
