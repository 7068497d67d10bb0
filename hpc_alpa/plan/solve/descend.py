"""Coordinate descent: an assignment without proof, for roundings and where tables are too large."""

from collections.abc import Sequence

import numpy as np

from hpc_alpa.plan.solve.problem import (
    Assignment,
    FloatArray,
    Problem,
    Window,
    complete,
)

_SWEEPS = 20


def descend(problem: Problem, choices: Sequence[int]) -> Assignment:
    """Change one node at a time to its cheapest choice, until nothing changes. Ignores memory rows.

    Args:
        problem: without ties.
        choices: where to start; may use forbidden conversions, which are left first.
    """
    x = [int(choice) for choice in choices]
    around: list[list[int]] = [[] for _ in problem.costs]
    for k, value in enumerate(problem.values):
        for node in {value.producer, *(reader.node for reader in value.readers)}:
            around[node].append(k)
    for _ in range(_SWEEPS):
        before = list(x)
        for node, cost in enumerate(problem.costs):
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
        needed = np.zeros((len(cost), len(Window), value.conversion.shape[1]), np.bool_)
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
