"""Solutions on disk, by what the problem is: its arrays, and none of its names.

    stored.solve(problem, options, folder=stored.default_folder())

A solution is used again where it was asked for at least as small a gap; one that time ended is
solved again. It is evaluated anew on the problem, so that a file that is not what it should be is
never believed: it is ignored with a warning, and written again.
"""

import hashlib
import json
import os
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np

from hpc_alpa.errors import PlanError
from hpc_alpa.plan.solve import solver
from hpc_alpa.plan.solve.options import Options
from hpc_alpa.plan.solve.problem import Assignment, Problem, evaluate
from hpc_alpa.plan.solve.solution import Solution

_FORMAT = "hpc_alpa solution 2"  # changes with whatever a stored number means
_ROUNDING = 1e-9


def default_folder() -> Path:
    """`$HPC_ALPA_SOLUTIONS`, else `~/.cache/hpc_alpa/solutions`."""
    given = os.environ.get("HPC_ALPA_SOLUTIONS")
    return Path(given) if given else Path.home() / ".cache" / "hpc_alpa" / "solutions"


def solve(
    problem: Problem, options: Options | None = None, folder: str | Path | None = None
) -> Solution:
    """`solver.solve`, from the folder if it is known there; without a folder nothing is stored."""
    options = options or Options()
    if folder is None:
        return solver.solve(problem, options)
    begin = time.perf_counter()
    path = Path(folder) / f"{digest(problem)}.json"
    found = _read(path, problem, options)
    if found is not None:
        return replace(found, seconds=time.perf_counter() - begin)
    solution = solver.solve(problem, options)
    _write(path, solution)
    return solution


def digest(problem: Problem) -> str:
    """A name for what the problem is."""
    code = hashlib.sha256(_FORMAT.encode())

    def add(*arrays: object) -> None:
        for array in arrays:
            whole = np.ascontiguousarray(array)
            code.update(f"{whole.dtype.str}{whole.shape}".encode())
            code.update(whole.tobytes())

    reads = problem.reads
    add(problem.choice_offset, np.concatenate([*problem.costs, np.empty(0)]), problem.ties)
    add(reads.value, reads.node, reads.window, reads.needed, reads.producer, reads.produced)
    add(reads.num_produced, reads.num_needed, [value.holdable for value in problem.values])
    add(problem.holds)
    for value in problem.values:
        code.update(value.conversion.tobytes())
    for row in problem.rows:
        add(row.limit, row.terms, row.nbytes)
    if problem.live is not None:
        live = problem.live
        add(live.limit, live.start, live.stop, live.term, live.nbytes)
    return code.hexdigest()


def _read(path: Path, problem: Problem, options: Options) -> Solution | None:
    """The stored solution, where it is one of the problem and good enough."""
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_text())
        choices = tuple(int(choice) for choice in stored["choices"])
        held = frozenset((int(k), int(t)) for k, t in stored["held"])
        assignment = Assignment(choices, held)
        if stored["format"] != _FORMAT or len(choices) != len(problem.costs):
            raise ValueError("another format, or another number of nodes")
        result = evaluate(problem, assignment)
        if not (result.memory <= problem.limits * (1 + _ROUNDING)).all():
            raise ValueError("it needs more memory than there is")
        bound = float(stored["bound"])
        if not abs(result.objective - stored["objective"]) <= _ROUNDING * abs(result.objective):
            raise ValueError("its objective is another")
        phases = {"stored": 0.0}
    except (ValueError, KeyError, TypeError, IndexError, OSError, PlanError) as error:
        warnings.warn(
            f"{path}: not a solution of this problem ({error}): solved again", stacklevel=3
        )
        return None
    gap = max(options.relative_gap, _ROUNDING)
    found = Solution.of(result.objective, bound, assignment, gap, phases, options.absolute_gap)
    return found if found.status == "optimal" else None


def _write(path: Path, solution: Solution) -> None:
    """Beside its place first, so that nobody reads half of it; a folder that fails only warns."""
    content = {
        "format": _FORMAT,
        "objective": solution.objective,
        "bound": solution.bound,
        "choices": solution.assignment.choices,
        "held": sorted(solution.assignment.held),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(dir=path.parent, suffix=".part")
        with os.fdopen(handle, "w") as file:
            json.dump(content, file)
        Path(beside).replace(path)
    except OSError as error:
        warnings.warn(f"{path}: the solution could not be stored: {error}", stacklevel=3)
