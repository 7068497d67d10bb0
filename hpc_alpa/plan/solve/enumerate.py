"""Brute force over a choice program: every choice, every set of held copies. The tests' oracle."""

import itertools
from collections.abc import Iterator

from hpc_alpa.plan.solve.problem import (
    Assignment,
    Problem,
    complete,
    evaluate,
    holdable_copies,
    leaders,
)

_ROUNDING = 1e-9


def assignments(problem: Problem) -> Iterator[Assignment]:
    """Every assignment; copies whose holding costs no memory are always held."""
    leader = leaders(problem).tolist()
    free = sorted(set(leader))
    for picked in itertools.product(*(range(len(problem.costs[node])) for node in free)):
        choice = dict(zip(free, picked, strict=True))
        choices = tuple(choice[node] for node in leader)
        priced = [
            (k, t) for k, t, term in holdable_copies(problem, choices) if problem.priced[term]
        ]
        for size in range(len(priced) + 1):
            for held in itertools.combinations(priced, size):
                yield complete(problem, choices, held)


def best(problem: Problem) -> tuple[float, Assignment] | None:
    """Objective and assignment of the optimum; None if no assignment is finite and fits."""
    found: tuple[float, Assignment] | None = None
    for assignment in assignments(problem):
        result = evaluate(problem, assignment)
        fits = (result.memory <= problem.limits * (1 + _ROUNDING)).all()
        if fits and result.objective < (found[0] if found else float("inf")):
            found = result.objective, assignment
    return found
