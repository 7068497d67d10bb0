"""Stored solutions: used again, never believed, written again when they are broken."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpc_alpa.plan.solve import solver, stored
from hpc_alpa.plan.solve.limits import Limits
from hpc_alpa.plan.solve.options import Options
from hpc_alpa.plan.solve.problem import Assignment, MemoryRow, Problem, evaluate
from hpc_alpa.plan.solve.solution import Solution
from tests.helpers.choice_programs import random_problem


def a_problem(seed: int = 3) -> Problem:
    return random_problem(np.random.default_rng(seed), rows=True)


@pytest.fixture
def solves(monkeypatch: pytest.MonkeyPatch) -> list[Problem]:
    """The problems that were really solved."""
    seen: list[Problem] = []
    solve = solver.solve

    def counted(
        problem: Problem, options: Options | None = None, limits: Limits | None = None
    ) -> Solution:
        seen.append(problem)
        return solve(problem, options, limits)

    monkeypatch.setattr(solver, "solve", counted)
    return seen


def test_a_problem_is_solved_once_whatever_its_names(tmp_path: Path, solves: list[Problem]) -> None:
    problem = a_problem()
    first = stored.solve(problem, folder=tmp_path / "new")
    renamed = replace(problem, names=tuple(f"other {v}" for v in range(len(problem.costs))))
    second = stored.solve(renamed, folder=tmp_path / "new")
    assert len(solves) == 1
    assert (first.assignment, first.objective, first.bound) == (
        second.assignment,
        second.objective,
        second.bound,
    )
    assert second.status == "optimal" and "stored" in second.phases
    assert [path.suffix for path in (tmp_path / "new").iterdir()] == [".json"]
    stored.solve(problem)
    assert len(solves) == 2


def test_every_array_counts(tmp_path: Path) -> None:
    problem = a_problem()
    value, row = problem.values[0], problem.rows[0]
    others = [
        replace(problem, costs=(problem.costs[0] + 1, *problem.costs[1:])),
        replace(problem, rows=(replace(row, limit=row.limit + 1), *problem.rows[1:])),
        replace(problem, rows=problem.rows[1:]),
        replace(problem, values=(replace(value, holdable=not value.holdable), *problem.values[1:])),
        replace(
            problem,
            values=(replace(value, conversion=value.conversion + 1.0), *problem.values[1:]),
        ),
    ]
    names = {stored.digest(p) for p in (problem, *others)}
    assert len(names) == 1 + len(others)
    assert stored.digest(a_problem()) == stored.digest(problem)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content.pop("choices"),
        lambda content: content.update(format="another"),
        lambda content: content.update(objective=content["objective"] - 1.0),
        lambda content: content.update(choices=[99, *content["choices"][1:]]),
        lambda content: content.update(held=[[0, 77]]),
    ],
)
def test_what_is_broken_is_solved_and_written_again(
    tmp_path: Path, solves: list[Problem], spoil: Callable[[dict[str, object]], object]
) -> None:
    problem = a_problem()
    good = stored.solve(problem, folder=tmp_path)
    [path] = tmp_path.iterdir()
    content = json.loads(path.read_text())
    spoil(content)
    path.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="not a solution of this problem"):
        again = stored.solve(problem, folder=tmp_path)
    assert again.objective == good.objective and len(solves) == 2
    stored.solve(problem, folder=tmp_path)
    assert len(solves) == 2
    path.write_text("half a fi")
    with pytest.warns(UserWarning, match="not a solution"):
        stored.solve(problem, folder=tmp_path)


def test_a_larger_gap_than_asked_for_is_solved_again(tmp_path: Path, solves: list[Problem]) -> None:
    problem = a_problem()
    stored.solve(problem, folder=tmp_path)
    [path] = tmp_path.iterdir()
    content = json.loads(path.read_text())
    content["bound"] = 0.9 * content["objective"]
    path.write_text(json.dumps(content))
    stored.solve(problem, Options(relative_gap=0.2), folder=tmp_path)
    assert len(solves) == 1
    stored.solve(problem, Options(relative_gap=1e-9), folder=tmp_path)
    assert len(solves) == 2


def test_a_folder_that_cannot_be_written_only_warns(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="could not be stored"):
        solution = stored.solve(a_problem(), folder=tmp_path / "file")
    assert solution.status == "optimal"


def test_time_that_was_not_enough_is_not_spent_again(tmp_path: Path, solves: list[Problem]) -> None:
    problem = a_problem()
    stored.solve(problem, Options(seconds=10.0), folder=tmp_path)
    [path] = tmp_path.iterdir()
    content = json.loads(path.read_text())
    content["bound"] = 0.9 * content["objective"]
    path.write_text(json.dumps(content))
    assert stored.solve(problem, Options(seconds=10.0), folder=tmp_path).status == "feasible"
    assert len(solves) == 1
    stored.solve(problem, Options(seconds=20.0), folder=tmp_path)
    assert len(solves) == 2


def test_limits_that_are_made_when_missed_count(tmp_path: Path, solves: list[Problem]) -> None:
    bare = replace(a_problem(), rows=())
    loose = solver.solve(bare)
    [row] = a_problem().rows[:1]
    tight = replace(row, limit=0.9 * float(evaluate(a_problem(), loose.assignment).memory[0]))

    def limits(row: MemoryRow) -> Limits:
        def missed(assignment: Assignment) -> list[MemoryRow]:
            memory = evaluate(replace(bare, rows=(row,)), assignment).memory
            return [row] if memory[0] > row.limit * (1 + 1e-9) else []

        return Limits(missed, lambda: (row.limit, row.terms, row.nbytes))

    solves.clear()
    first = stored.solve(bare, limits=limits(tight), folder=tmp_path)
    assert first.limited and first.objective >= loose.objective
    again = stored.solve(bare, limits=limits(tight), folder=tmp_path)
    assert again.limited and again.assignment == first.assignment and len(solves) == 1
    assert not stored.solve(bare, folder=tmp_path).limited
    stored.solve(bare, limits=limits(replace(tight, limit=tight.limit * 1.01)), folder=tmp_path)
    assert len(solves) == 3
    [path] = [tmp_path / f"{stored.digest(bare, limits(tight))}.json"]
    content = json.loads(path.read_text())
    content["choices"], content["held"] = loose.assignment.choices, sorted(loose.assignment.held)
    path.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="more memory than there is"):
        stored.solve(bare, limits=limits(tight), folder=tmp_path)
