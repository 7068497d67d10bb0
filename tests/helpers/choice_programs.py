"""Choice programs for the tests of the solvers: random ones, and Alpa's."""

import gzip
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from hpc_alpa.plan.solve.problem import MemoryRow, Problem, Reader, Value, Window

INSTANCES = Path(__file__).parent.parent / "data" / "ilp_instances.json.gz"


def random_problem(
    rng: np.random.Generator, *, rows: bool, most_readers: int = 3, most_nodes: int = 6
) -> Problem:
    """Up to six nodes of four choices: ties, windows, held copies, forbidden conversions."""
    num_nodes = int(rng.integers(2, most_nodes + 1))
    sizes = rng.integers(1, 5, num_nodes)
    ties = list(range(num_nodes))
    if rng.random() < 0.5:
        a, b = sorted(rng.choice(num_nodes, 2, replace=False).tolist())
        ties[b], sizes[b] = a, sizes[a]
    costs = tuple(np.round(10 * rng.random(size), int(rng.integers(0, 4))) for size in sizes)
    values = []
    for producer in range(num_nodes - 1):
        made, wanted = rng.integers(1, 4, 2).tolist()
        conversion = np.round(8 * rng.random((made, wanted)), 1)
        conversion *= rng.random(conversion.shape) < 0.7
        conversion[rng.random(conversion.shape) < 0.08] = np.inf
        readers = []
        for _ in range(int(rng.integers(1, most_readers + 1))):
            node = int(rng.integers(producer + 1, num_nodes))
            needed = rng.integers(0, wanted, sizes[node])
            readers.append(Reader(node, needed, Window(int(rng.integers(0, len(Window))))))
        produced = rng.integers(0, made, sizes[producer])
        holdable = bool(rng.random() < 0.6)
        values.append(Value(producer, produced, tuple(readers), conversion, holdable))
    problem = Problem(costs, tuple(values), ties=tuple(ties))
    return replace(problem, rows=_random_rows(rng, problem)) if rows else problem


def _random_rows(rng: np.random.Generator, problem: Problem) -> tuple[MemoryRow, ...]:
    rows = []
    for number in range(int(rng.integers(1, 4))):
        terms = [problem.choice_terms(v) for v in range(len(problem.costs)) if rng.random() < 0.8]
        for k in range(len(problem.values)):
            terms += [problem.copy_terms(k, w).ravel() for w in Window if rng.random() < 0.3]
            terms += [problem.held_terms(k).ravel() for _ in range(1) if rng.random() < 0.4]
        at = np.concatenate([*terms, np.empty(0, np.int64)]).astype(np.int64)
        nbytes = rng.integers(0, 7, at.size).astype(np.float64)
        rows.append(MemoryRow(f"row {number}", float(rng.integers(6, 40)), at, nbytes))
    return tuple(rows)


def alpa_instances() -> Iterator[tuple[str, float, Problem]]:
    """Name, proven optimum and problem of each instance in `tests/data`."""
    for instance in json.loads(gzip.decompress(INSTANCES.read_bytes()))["instances"]:
        values = [_edge(e["from"], e["to"], np.array(e["cost"])) for e in instance["edges"]]
        for alias in instance["alias"]:
            forbidden = np.array(alias["forbidden"], np.bool_)
            values.append(_edge(alias["a"], alias["b"], np.where(forbidden, np.inf, 0.0)))
        nodes = instance["nodes"]
        follows = [v if n["follows"] is None else n["follows"] for v, n in enumerate(nodes)]
        costs = tuple(np.array(node["cost"]) for node in nodes)
        problem = Problem(costs, tuple(values), ties=tuple(follows))
        yield instance["name"], instance["optimum"], problem


def _edge(producer: int, reader: int, cost: np.ndarray) -> Value:
    made, wanted = (np.arange(size) for size in cost.shape)
    return Value(producer, made, (Reader(reader, wanted),), cost)


def chain(num_nodes: int, rng: np.random.Generator) -> Problem:
    """A long chain of six choices a node, each value read by the next and a later one."""
    num_choices = 6
    values = []
    for v in range(num_nodes - 1):
        conversion = 8e-3 * rng.random((num_choices, num_choices))
        np.fill_diagonal(conversion, 0.0)
        later = min(num_nodes - 1, v + int(rng.integers(2, 4)))
        readers = tuple(
            Reader(node, rng.integers(0, num_choices, num_choices), window)
            for node, window in ((v + 1, Window.FORWARD), (later, Window(int(rng.integers(0, 2)))))
        )
        values.append(Value(v, np.arange(num_choices), readers, conversion, holdable=True))
    return Problem(tuple(5e-3 * rng.random((num_nodes, num_choices))), tuple(values))
