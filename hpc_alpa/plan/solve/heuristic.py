"""Assignments without proof: coordinate descent, and a feasible one for when time is over."""

import math
import time
from collections.abc import Sequence

import numpy as np

from hpc_alpa.errors import InfeasibleError
from hpc_alpa.plan.solve import eliminate
from hpc_alpa.plan.solve.contract import WidthError
from hpc_alpa.plan.solve.problem import (
    Assignment,
    FloatArray,
    Problem,
    complete,
    evaluate,
    holdable_copies,
)

_SWEEPS = 20
_ROUNDS = 24
_RISE, _SMALL_RISE = 2.0, 1.3  # of the prices: from nothing, and from good ones
_FIRST_PRICE = 0.05  # of the objective, for the whole of a limit
_ROUNDING = 1e-9


def descend(problem: Problem, choices: Sequence[int], costs: Sequence[FloatArray]) -> Assignment:
    """Change one node at a time to its cheapest choice, until nothing changes. Ignores memory rows.

    Args:
        problem: without ties.
        choices: where to start; may use forbidden conversions, which are left first.
        costs: of the nodes, in place of the problem's, as under prices for memory.
    """
    x = [int(choice) for choice in choices]
    around: list[list[int]] = [[] for _ in problem.costs]
    for k, value in enumerate(problem.values):
        for node in {value.producer, *(reader.node for reader in value.readers)}:
            around[node].append(k)
    for _ in range(_SWEEPS):
        before = list(x)
        for node, cost in enumerate(costs):
            if len(cost) > 1:
                x[node] = _cheapest(problem, x, node, cost, around[node])
        if x == before:
            break
    return complete(problem, x)


def _cheapest(
    problem: Problem, x: Sequence[int], node: int, cost: FloatArray, values: Sequence[int]
) -> int:
    """The node's best choice: fewest forbidden conversions, then least seconds."""
    seconds = cost.copy()
    forbidden = np.zeros(len(cost), np.int64)
    everyone = np.arange(len(cost))
    for k in values:
        value = problem.values[k]
        p = value.produced if value.producer == node else value.produced[x[value.producer]]
        needed = np.zeros((len(cost), 3, value.conversion.shape[1]), np.bool_)
        for reader in value.readers:
            t = reader.needed if reader.node == node else reader.needed[x[reader.node]]
            needed[everyone, reader.window, t] = True
        conversion = np.broadcast_to(value.conversion[p], (len(cost), value.conversion.shape[1]))
        allowed = np.isfinite(conversion)
        windows = needed.sum(axis=1)
        if value.holdable:  # a copy for forward and backward is paid once
            windows = windows - (needed[:, 0] & needed[:, 1])
        seconds += (np.where(allowed, conversion, 0.0) * windows).sum(axis=1)
        forbidden += (windows * ~allowed).sum(axis=1)
    return int(np.lexsort((seconds, forbidden))[0])


def feasible(
    problem: Problem, prices: FloatArray | None = None, seconds: float = math.inf
) -> Assignment | None:
    """An assignment of a problem without ties that meets the memory rows; None if none was found.

    The prices of rows that are over their limit rise until the cheapest assignment fits.

    Args:
        prices: to start from, seconds per byte of each memory row, as a relaxation gives them.
        seconds: after which no other round is started.
    """
    begin = time.perf_counter()
    first = problem.choice_offset[-1]
    nbytes = problem.row_matrix[:, :first]
    price = np.zeros(len(problem.rows)) if prices is None else prices
    rise = _RISE if prices is None else _SMALL_RISE
    x: Sequence[int] = [int(cost.argmin()) for cost in problem.costs]
    for _ in range(_ROUNDS):
        extra = np.split(nbytes.T @ price, problem.choice_offset[1:-1])
        costs = [cost + more for cost, more in zip(problem.costs, extra, strict=True)]
        assignment = _cheap(problem, x, costs)
        result = evaluate(problem, assignment)
        over = result.memory > problem.limits * (1 + _ROUNDING)
        possible = bool(np.isfinite(result.objective))
        if possible and not over.any():
            return _hold(problem, assignment)
        if not problem.rows or time.perf_counter() - begin > seconds:
            return None
        x = assignment.choices
        least = _FIRST_PRICE * (abs(result.objective) if possible else 1.0)
        usual = least / np.maximum(problem.limits, 1.0)
        price = np.where(over, np.maximum(rise * price, usual), price)
    return None


def _hold(problem: Problem, assignment: Assignment) -> Assignment:
    """Hold more copies, those first that save most for the share of the limits that they take."""
    room = problem.limits - evaluate(problem, assignment).memory
    left = [
        (
            problem.term_costs[term],
            (k, t),
            np.asarray(problem.row_matrix[:, [term]].toarray())[:, 0],
        )
        for k, t, term in holdable_copies(problem, assignment.choices)
        if (k, t) not in assignment.held and problem.term_costs[term] < 0
    ]
    share = np.maximum(problem.limits, 1.0)
    held = set(assignment.held)
    for _, copy, nbytes in sorted(left, key=lambda c: c[0] / (c[2] / share).max()):
        if (nbytes <= room).all():
            room = room - nbytes
            held.add(copy)
    return Assignment(assignment.choices, frozenset(held))


def _cheap(problem: Problem, x: Sequence[int], costs: Sequence[FloatArray]) -> Assignment:
    """By elimination where its tables are small, then by descent."""
    bare = Problem(tuple(costs), problem.values)
    try:
        x = eliminate.solve(bare, dense=1, iterations=1).assignment.choices
    except (WidthError, InfeasibleError):
        pass  # descent needs neither width nor a start without forbidden conversions
    return descend(problem, x, costs)
