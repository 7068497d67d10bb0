"""Instances of the ASPLOS/EuroSys 2025 contest on intra-operator parallelism, by `plan.solve`.

    python benchmarks/iopddl.py FILE [--seconds N]

FILE is .json or .json.gz: nodes with `intervals` [start, end), `costs` and memory `usages` of each
strategy; edges between two nodes with a cost for each pair of strategies, row-major; a
`usage_limit` at every time. A cost of 1e18 is forbidden. Prints one JSON object: `objective`,
`bound` (of every solution), `gap`, `seconds`, `assignment` (a strategy for each node), `status` and
`phases`. The answer is checked by another piece of code than the one that found it.
"""

import argparse
import gzip
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from hpc_alpa.errors import PlanError
from hpc_alpa.plan.solve.liveness import Liveness
from hpc_alpa.plan.solve.options import Options
from hpc_alpa.plan.solve.problem import Problem, Reader, Value
from hpc_alpa.plan.solve.solver import solve

FORBIDDEN = 10**18


def load(path: Path) -> dict[str, Any]:
    """The instance as it lies in the file."""
    text = path.read_bytes()
    instance = json.loads(gzip.decompress(text) if path.suffix == ".gz" else text)
    result: dict[str, Any] = instance.get("problem", instance)
    return result


def problem_of(instance: dict[str, Any]) -> Problem:
    """The instance as a choice program: an edge is a value with one reader, usages are live."""
    nodes, edges = instance["nodes"], instance["edges"]
    costs = [_seconds(cost) for cost in nodes["costs"]]
    choices = [np.arange(len(cost)) for cost in costs]
    values = tuple(
        Value(a, choices[a], (Reader(b, choices[b]),), _seconds(cost).reshape(len(choices[a]), -1))
        for (a, b), cost in zip(edges["nodes"], edges["costs"], strict=True)
    )
    counts = [len(cost) for cost in costs]
    intervals = np.array(nodes["intervals"], np.int64).reshape(-1, 2)
    start, stop = intervals.min(axis=1), intervals[:, 1]
    live = Liveness(
        np.repeat(start, counts),
        np.repeat(stop, counts),
        np.arange(sum(counts)),
        np.array(list(itertools.chain.from_iterable(nodes["usages"])), np.float64),
        instance["usage_limit"],
    )
    return Problem(tuple(costs), values, live=live)


def _seconds(costs: list[int]) -> np.ndarray:
    return np.array([np.inf if cost >= FORBIDDEN else cost for cost in costs], np.float64)


def check(instance: dict[str, Any], assignment: tuple[int, ...]) -> int:
    """The cost of an assignment in whole numbers, by the contest's definition.

    Raises PlanError for a forbidden cost, or usage above the limit at some time.
    """
    nodes, edges = instance["nodes"], instance["edges"]
    total = sum(cost[x] for cost, x in zip(nodes["costs"], assignment, strict=True))
    for (a, b), cost in zip(edges["nodes"], edges["costs"], strict=True):
        total += cost[assignment[a] * len(nodes["costs"][b]) + assignment[b]]
    if total >= FORBIDDEN:
        raise PlanError("the assignment has a forbidden cost")
    changes: dict[int, int] = {}
    for (start, stop), usage, x in zip(
        nodes["intervals"], nodes["usages"], assignment, strict=True
    ):
        if start < stop:
            changes[start] = changes.get(start, 0) + usage[x]
            changes[stop] = changes.get(stop, 0) - usage[x]
    usage = 0
    for when in sorted(changes):
        usage += changes[when]
        if usage > instance["usage_limit"]:
            raise PlanError(
                f"usage {usage} at time {when} is above the limit {instance['usage_limit']}"
            )
    return int(total)


def main(arguments: list[str] | None = None) -> int:
    """Solve one instance and print the answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0, help="in all, reading included")
    given = parser.parse_args(arguments)
    begin = time.perf_counter()
    instance = load(given.file)
    problem = problem_of(instance)
    # what is done with an answer takes as long as reading the instance did
    left = max(0.0, given.seconds - 2 * (time.perf_counter() - begin))
    # costs are whole numbers: a bound above the objective less one proves it
    solution = solve(problem, Options(relative_gap=0.0, absolute_gap=0.999, seconds=left))
    objective = check(instance, solution.assignment.choices)
    answer = {
        "objective": objective,
        "bound": solution.bound,
        "gap": solution.gap,
        "seconds": time.perf_counter() - begin,
        "status": solution.status,
        "phases": {name: round(seconds, 3) for name, seconds in solution.phases.items()},
        "assignment": list(solution.assignment.choices),
    }
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
