"""Of two assignments, the parts that can be exchanged one by one.

Nodes in which two assignments differ fall into components: those that share a value are in one.
Seconds and bytes of the components add up, so that an assignment that fits takes over from one that
is cheaper but does not fit what fits, the most seconds for its bytes first.
"""

from collections.abc import Iterator

import numpy as np

from hpc_alpa.plan.solve.problem import Assignment, FloatArray, Problem, complete, evaluate

_ROUNDING = 1e-9


def join(problem: Problem, fits: Assignment, other: Assignment) -> Assignment:
    """`fits` with components of `other` that make it cheaper, and still fit.

    Args:
        problem: without ties.
    """
    limits = np.maximum(problem.limits, 1.0)
    base = evaluate(problem, fits)
    saves: list[tuple[float, list[int], FloatArray]] = []
    for component in _components(problem, fits, other):
        result = evaluate(problem, _mixed(problem, fits, other, component))
        saved = base.objective - result.objective
        more = result.memory - base.memory
        if saved > 0:
            share = max(float((more / limits).max(initial=0.0)), _ROUNDING)
            saves.append((saved / share, component, more))
    taken: list[int] = []
    room = problem.limits * (1 + _ROUNDING) - base.memory
    for _, component, more in sorted(saves, key=lambda s: (-s[0], s[1])):
        if (more <= room).all():
            room = room - more
            taken += component
    return _mixed(problem, fits, other, taken)


def _mixed(
    problem: Problem, fits: Assignment, other: Assignment, component: list[int]
) -> Assignment:
    choices = list(fits.choices)
    for v in component:
        choices[v] = other.choices[v]
    return complete(problem, choices, fits.held | other.held)


def _components(problem: Problem, a: Assignment, b: Assignment) -> Iterator[list[int]]:
    """Nodes in which two assignments differ, together where they share a value."""
    differ = {v for v, (x, y) in enumerate(zip(a.choices, b.choices, strict=True)) if x != y}
    around: dict[int, set[int]] = {v: set() for v in differ}
    for value in problem.values:
        nodes = differ.intersection([value.producer, *(r.node for r in value.readers)])
        for v in nodes:
            around[v] |= nodes
    while differ:
        found: set[int] = set()
        reached = {min(differ)}
        while reached:
            found |= reached
            reached = {u for v in reached for u in around[v]} - found
        differ -= found
        yield sorted(found)
