"""Solutions on disk, by what the problem is: its arrays, and none of its names.

    stored.solve(problem, options, folder=folder)

A solution is used again where its gap is small enough, or where more time was given to it than is
now: one that time ended is solved again with more. It is evaluated anew on the problem, so that a
file that is not what it should be is never believed: it is ignored with a warning, and written
again.
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
from hpc_alpa.plan.solve.limits import Limits
from hpc_alpa.plan.solve.options import Options
from hpc_alpa.plan.solve.problem import Assignment, Problem, evaluate
from hpc_alpa.plan.solve.solution import Solution

_FORMAT = "hpc_alpa solution 3"  # changes with whatever a stored number means
_ROUNDING = 1e-9


def solve(
    problem: Problem,
    options: Options | None = None,
    limits: Limits | None = None,
    *,
    folder: str | Path | None = None,
) -> Solution:
    """`solver.solve`, from the folder if it is known there; without a folder nothing is stored."""
    options = options or Options()
    if folder is None:
        return solver.solve(problem, options, limits)
    begin = time.perf_counter()
    path = Path(folder) / f"{digest(problem, limits)}.json"
    found = _read(path, problem, options, limits)
    if found is not None:
        return replace(found, seconds=time.perf_counter() - begin)
    solution = solver.solve(problem, options, limits)
    _write(path, solution, options)
    return solution


def digest(problem: Problem, limits: Limits | None = None) -> str:
    """A name for what the problem is, and what limits it."""
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
    of: dict[int, bytes] = {}  # equal tables are mostly one object
    for value in problem.values:
        known = of.setdefault(id(value.conversion), b"")
        if not known:
            known = of[id(value.conversion)] = hashlib.sha256(value.conversion.tobytes()).digest()
        code.update(known)
    for row in problem.rows:
        add(row.limit, row.terms, row.nbytes)
    if problem.live is not None:
        live = problem.live
        add(live.limit, live.start, live.stop, live.term, live.nbytes)
    if limits is not None:
        add(*limits.content())
    return code.hexdigest()


def _read(path: Path, problem: Problem, options: Options, limits: Limits | None) -> Solution | None:
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
        blocks = bool(stored["in_blocks"])
        if blocks and (limits is None or limits.apart is None):
            raise ValueError("its layers are in blocks")
        space = limits.apart().problem if blocks and limits and limits.apart else problem
        result = evaluate(space, assignment)
        if not (result.memory <= problem.limits * (1 + _ROUNDING)).all() or (
            limits is not None and limits.rows_of(assignment)
        ):
            raise ValueError("it needs more memory than there is")
        bound = float(stored["bound"])
        asked = Options(float(stored["relative_gap"]), seconds=float(stored["seconds"]))
        if not abs(result.objective - stored["objective"]) <= _ROUNDING * abs(result.objective):
            raise ValueError("its objective is another")
        limited = bool(stored["limited"])
    except (ValueError, KeyError, TypeError, IndexError, OSError, PlanError) as error:
        warnings.warn(
            f"{path}: not a solution of this problem ({error}): solved again", stacklevel=3
        )
        return None
    gap = max(options.relative_gap, _ROUNDING)
    phases = {"stored": 0.0}
    found = Solution.of(result.objective, bound, assignment, gap, phases, options.absolute_gap)
    enough = found.status == "optimal" or (
        options.relative_gap >= asked.relative_gap and options.seconds <= asked.seconds
    )
    return replace(found, limited=limited, in_blocks=blocks) if enough else None


def _write(path: Path, solution: Solution, options: Options) -> None:
    """Beside its place first, so that nobody reads half of it; a folder that fails only warns."""
    content = {
        "format": _FORMAT,
        "objective": solution.objective,
        "bound": solution.bound,
        "relative_gap": options.relative_gap,
        "seconds": options.seconds,
        "limited": solution.limited,
        "in_blocks": solution.in_blocks,
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
