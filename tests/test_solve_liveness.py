"""Memory that follows time: the same as one row for each point, whatever the road."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import iopddl
from hpc_alpa.errors import InfeasibleError, PlanError
from hpc_alpa.plan.solve import enumerate as brute_force
from hpc_alpa.plan.solve import solver
from hpc_alpa.plan.solve.anytime import Anytime
from hpc_alpa.plan.solve.forced import Forced
from hpc_alpa.plan.solve.liveness import Liveness
from hpc_alpa.plan.solve.options import Options
from hpc_alpa.plan.solve.presolve import reduce
from hpc_alpa.plan.solve.problem import LOOP, MemoryRow, Problem, Reader, Value, complete, evaluate
from tests.helpers.choice_programs import random_problem

EXACT = Options(relative_gap=0.0, absolute_gap=1e-6)


def live_problem(seed: int, num_nodes: int = 6, tightness: float = 0.6) -> Problem:
    """A random problem whose choices, and sometimes copies, are live for a while."""
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, rows=False, most_nodes=num_nodes)
    terms = [problem.choice_terms(v) for v in range(len(problem.costs))]
    if seed % 3 == 0:
        terms += [problem.copy_terms(k, window).ravel() for k in range(1) for window in LOOP]
    start, stop, nbytes = [], [], []
    for part in terms:
        first, last = np.sort(rng.integers(0, 12, 2))
        start.append(np.full(part.size, first))
        stop.append(np.full(part.size, last))
        nbytes.append(rng.integers(0, 9, part.size))
    begin, end, term, held = (np.concatenate(part) for part in (start, stop, terms, nbytes))
    limit = float(rng.integers(4, 4 + int(tightness * 30)))
    return replace(problem, live=Liveness(begin, end, term, held, limit))


def with_rows(problem: Problem) -> Problem:
    """The same with a memory row per point, by the definition."""
    live = problem.live
    assert live is not None
    rows = []
    for t in range(live.num_points):
        now = (live.start <= t) & (t < live.stop)
        rows.append(MemoryRow(f"{t}", live.limit, live.term[now], live.nbytes[now]))
    return replace(problem, rows=tuple(rows), live=None)


def test_liveness_is_a_row_for_each_point() -> None:
    for seed in range(40):
        problem = live_problem(seed)
        rows = with_rows(problem)
        explicit = problem.explicit(10**6)
        assert explicit is not None and problem.explicit(0) is None
        for choices in list(np.ndindex(*(len(c) for c in problem.costs)))[:20]:
            if (np.array(choices) != np.array(choices)[list(problem.ties)]).any():
                continue
            assignment = complete(problem, choices)
            memory = evaluate(rows, assignment).memory
            assert evaluate(problem, assignment).memory == pytest.approx(memory.max(initial=0.0))
            assert np.allclose(evaluate(explicit, assignment).memory, memory)


def test_presolve_keeps_the_points_that_can_bind() -> None:
    dropped = kept = 0
    for seed in range(60):
        problem = live_problem(seed)
        try:
            small = reduce(problem).problem
        except InfeasibleError:
            continue
        for choices in np.ndindex(*(len(c) for c in small.costs)):
            expanded = reduce(problem).expand(complete(small, choices))
            before = evaluate(problem, expanded).memory <= problem.limits
            after = evaluate(small, complete(small, choices)).memory <= small.limits
            assert before.all() == after.all()
            if kept > 400:
                break
            kept += 1
        assert problem.live is not None
        dropped += problem.live.num_points - (small.live.num_points if small.live else 0)
    assert dropped > 200


@pytest.mark.parametrize("road", ["solver", "anytime"])
def test_equals_enumeration(road: str) -> None:
    solved = infeasible = proven = 0
    for seed in range(70 if road == "solver" else 150):
        problem = live_problem(seed)
        best = brute_force.best(with_rows(problem))
        if road == "solver":
            if best is None:
                infeasible += 1
                with pytest.raises(InfeasibleError):
                    solver.solve(problem, EXACT)
                continue
            solution = solver.solve(problem, EXACT)
            assert solution.status == "optimal", seed
            assert solution.objective == pytest.approx(best[0], abs=2e-6), seed
            assert (evaluate(problem, solution.assignment).memory <= problem.limits).all()
            solved += 1
            continue
        if best is None:
            continue
        small = reduce(problem).problem
        search = Anytime(small)
        if not small.limited or not search.possible:
            continue
        for found in (search.start(0.0, 1.0), search.improve(0.01) if search.found else None):
            if found is None or found.best is None:
                continue
            result = evaluate(small, found.best)
            assert found.bound <= best[0] + 1e-6
            assert result.objective >= best[0] - 1e-6
            assert (result.memory <= small.limits * (1 + 1e-9)).all()
            proven += result.objective <= best[0] + 1e-6
        solved += 1
    assert solved > (20 if road == "anytime" else 30)
    assert proven > 30 if road == "anytime" else infeasible > 8


def test_forced_nodes_are_tied_and_come_back() -> None:
    """A chain of permutations is one node; the rows and the answer speak of the original."""
    rng = np.random.default_rng(0)
    num_nodes, size = 6, 4
    values = []
    for v in range(num_nodes - 1):
        table = np.full((size, size), np.inf)
        table[np.arange(size), rng.permutation(size)] = rng.random(size)
        values.append(Value(v, np.arange(size), (Reader(v + 1, np.arange(size)),), table))
    costs = tuple(rng.random((num_nodes, size)))
    problem = Problem(costs, tuple(values))
    nbytes = rng.integers(1, 9, num_nodes * size).astype(float)
    row = MemoryRow("m", 32.0, np.arange(num_nodes * size), nbytes)
    problem = replace(problem, rows=(row,))
    assert len(set(Forced.of(problem).problem.ties)) == 1
    assert len(reduce(problem).problem.costs) == 1
    best = brute_force.best(problem)
    assert best is not None
    solution = solver.solve(problem, EXACT)
    assert solution.objective == pytest.approx(best[0])
    assert solution.assignment.choices == best[1].choices


def test_liveness_refuses_what_makes_no_sense() -> None:
    with pytest.raises(PlanError, match="liveness of 1 terms"):
        Liveness(np.array([3]), np.array([2]), np.array([0]), np.array([1.0]), 5.0)


def contest_instance(rng: np.random.Generator, num_nodes: int, choices: int) -> dict[str, Any]:
    """A random instance in the contest's format, with a solution."""
    sizes = rng.integers(1, choices + 1, num_nodes).tolist()
    pairs = [(a, b) for a in range(num_nodes) for b in range(a + 1, min(a + 4, num_nodes))]
    pairs = [pair for pair in pairs if rng.random() < 0.6]
    costs = []
    for a, b in pairs:
        cost = rng.integers(0, 50, sizes[a] * sizes[b])
        costs.append([int(c) if rng.random() < 0.95 else 10**18 for c in cost])
    spans = np.sort(rng.integers(0, 3 * num_nodes, (num_nodes, 2)), axis=1)
    usages = [rng.integers(0, 20, size).tolist() for size in sizes]
    return {
        "name": "random",
        "nodes": {
            "costs": [rng.integers(0, 60, size).tolist() for size in sizes],
            "intervals": spans.tolist(),
            "usages": usages,
        },
        "edges": {"nodes": [list(pair) for pair in pairs], "costs": costs},
        "usage_limit": int(rng.integers(30, 60)),
    }


def test_contest_instances(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The printed answer is the optimum of enumeration, and the check refuses others."""
    solved = 0
    for seed in range(30):
        instance = contest_instance(np.random.default_rng(seed), 6, 4)
        best = None
        for assignment in np.ndindex(*(len(c) for c in instance["nodes"]["costs"])):
            try:
                cost = iopddl.check(instance, assignment)
            except PlanError:
                continue
            best = cost if best is None else min(best, cost)
        if best is None:
            continue
        path = tmp_path / f"{seed}.json"
        path.write_text(json.dumps({"problem": instance}))
        assert iopddl.main([str(path), "--seconds", "20"]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["objective"] == best, seed
        assert answer["status"] == "optimal"
        assert answer["bound"] <= best and answer["bound"] > best - 1
        assert iopddl.check(instance, answer["assignment"]) == best
        solved += 1
    assert solved > 15


def test_large_instances_give_the_best_found_in_time() -> None:
    """Too large for the integer program: neighbourhoods improve, the bound holds."""
    instance = contest_instance(np.random.default_rng(7), 300, 9)
    instance["usage_limit"] = 1500
    problem = iopddl.problem_of(instance)
    small = reduce(problem).problem
    search = Anytime(small)
    first = search.start(0.0, 2.0)
    assert first.best is not None
    second = search.improve(2.0)
    assert second.best is not None
    objectives = [evaluate(small, found.best).objective for found in (first, second) if found.best]
    assert first.bound <= objectives[1] <= objectives[0]
    assert (evaluate(small, second.best).memory <= small.limits).all()
