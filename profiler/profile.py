"""A whole profile: all points of a setting, swept for some seconds into a database file."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpc_alpa.cost import Database
from hpc_alpa.profiler import collectives, copies, matmul, operators, point_to_point
from hpc_alpa.profiler.point import Point
from hpc_alpa.profiler.progress import Progress
from hpc_alpa.profiler.provenance import host_digest, run_facts
from hpc_alpa.profiler.record import Record
from hpc_alpa.profiler.setting import Setting
from hpc_alpa.profiler.sweep import Outcome, ordered, sweep

DTYPES = ("float32", "float64")
MAX_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Profile:
    """What a profile came to. `database` is None on all ranks but 0."""

    path: Path
    outcome: Outcome
    database: Database | None


def all_points(setting: Setting, dtypes: Sequence[str], max_bytes: int) -> list[Point]:
    """Everything worth measuring here, from coarse to fine. The same list on every rank."""
    return ordered(
        [
            *point_to_point.points(setting, max_bytes),
            *collectives.points(setting, max_bytes),
            *matmul.points(setting, dtypes),
            *operators.points(setting, dtypes),
            *copies.points(setting),
        ]
    )


def point_seconds(seconds: float, points: int) -> float:
    """Seconds of one point, so that a sweep of `seconds` comes far; half goes to preparing them."""
    return min(0.05, max(0.003, 0.5 * seconds / points))


def profile(
    setting: Setting,
    path: Path,
    *,
    seconds: float = 40.0,
    dtypes: Sequence[str] = DTYPES,
    max_bytes: int = MAX_BYTES,
    resume: bool = False,
    progress: bool = False,
) -> Profile:
    """Measure for about `seconds` into the database at `path`. Collective over the setting's world.

    Samples are added to those of an existing file; with `resume` what it has is not measured again.

    Raises:
        CostError: the file at `path` cannot be used, or belongs to another machine (on all ranks).
    """
    world = setting.world
    hosts = world.all_gather_objects(host_digest())
    record: Record | None = None
    error: Exception | None = None
    if world.rank == 0:
        try:
            record = Record(path, run_facts(setting, hosts))
        except Exception as problem:  # raised below, by all ranks together
            error = problem
    error = world.broadcast_object(error)
    if error is not None:
        raise error
    points = all_points(setting, dtypes, max_bytes)
    setting = replace(setting, seconds=point_seconds(seconds, len(points)))
    known: Any = record.database.keys if record and resume else ()
    with Progress(len(points), seconds, shown=progress and world.rank == 0) as shown:
        try:
            keep = record.keep if record else lambda sample: None
            outcome = sweep(
                setting, points, seconds=seconds, known=known, keep=keep, report=shown.at
            )
        finally:
            database = record.close() if record else None
    return Profile(path, outcome, database)
