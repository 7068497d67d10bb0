"""The cost database: measured samples with their provenance, one HDF5 file per machine.

    attributes            format="hpc_alpa-costs", schema_version, machine_digest, machine, created
    /operators/<class>    one row per sample: parameters (PARAMETERS of cost/sample.py), run,
    /collectives/<kind>   seconds_min, seconds_p25, seconds_median, seconds_p75, seconds_max, count
    /point_to_point/..    (seconds of one call; count calls)
    /copies/..
    /fits                 one row per fitted line: group, name, condition, alpha (s), beta (s/byte),
                          residual (median relative error of the line at the samples), count
    /runs/<number>        attributes: hardware, libraries, date, command

A file is written beside its place, synced and renamed: a killed writer leaves the last whole one.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpc_alpa.cost.machine import machine_digest, machine_facts
from hpc_alpa.cost.sample import GROUPS, PARAMETERS, TEXT, Fit, Quantiles, Run, Sample
from hpc_alpa.errors import CostError

FORMAT = "hpc_alpa-costs"
SCHEMA_VERSION = 1
PROFILER = "python -m hpc_alpa.profiler"
SECONDS = ("min", "p25", "median", "p75", "max")
FIT_TYPE = np.dtype(
    [("group", "S24"), ("name", "S40"), ("condition", "S80")]
    + [(name, "f8") for name in ("alpha", "beta", "residual")]
    + [("count", "i8")]
)


@dataclass(frozen=True)
class Database:
    """Samples of one machine and the runs that they come from. Frozen: `append` makes another."""

    machine: tuple[tuple[str, str], ...]
    created: str
    samples: tuple[Sample, ...] = ()
    runs: tuple[Run, ...] = ()
    fits: tuple[Fit, ...] = ()
    path: str = ""

    @property
    def machine_digest(self) -> str:
        return machine_digest(dict(self.machine))

    @property
    def keys(self) -> frozenset[Any]:
        """What has been measured already."""
        return frozenset(sample.key for sample in self.samples)


def new(path: str | Path = "") -> Database:
    """An empty database of this machine."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Database(tuple(sorted(machine_facts().items())), now, path=str(path))


def default_path() -> Path:
    """`$HPC_ALPA_DB`, else `~/.cache/hpc_alpa/<machine_digest>.h5`."""
    given = os.environ.get("HPC_ALPA_DB")
    return Path(given) if given else Path.home() / ".cache" / "hpc_alpa" / f"{machine_digest()}.h5"


def append(database: Database, run: Run, samples: Iterable[Sample]) -> Database:
    """The database with one more run and its samples."""
    number = len(database.runs)
    more = tuple(replace(sample, run=number) for sample in samples)
    runs = (*database.runs, run)
    return replace(database, samples=database.samples + more, runs=runs, fits=())


def merge(a: Database, b: Database) -> Database:
    """All samples of two databases of one machine. What both measured is pooled when it is used."""
    _same_machine(b, dict(a.machine), f"the database {a.path or 'that it is merged with'}")
    index = {run: i for i, run in enumerate(a.runs)}
    for run in b.runs:  # a run that both files hold, one perhaps with more samples, stays one run
        index.setdefault(run, len(index))
    have = {(s.key, s.run, s.seconds) for s in a.samples}
    moved = (replace(s, run=index[b.runs[s.run]]) for s in b.samples)
    more = tuple(s for s in moved if (s.key, s.run, s.seconds) not in have)
    return replace(
        a,
        samples=a.samples + more,
        runs=tuple(index),
        created=min(a.created, b.created),
        fits=(),
    )


def save(database: Database, path: str | Path) -> None:
    """Write the file beside its place, sync it and rename it: whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    with h5py.File(beside, "w") as file:
        _write(file, database)
    with open(beside, "rb") as written:
        os.fsync(written.fileno())
    os.replace(beside, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load(path: str | Path) -> Database:
    """Read a database of this machine.

    Raises:
        CostError: as `read`, or the database belongs to another machine.
    """
    database = read(path)
    _same_machine(database, machine_facts(), "this machine")
    return database


def read(path: str | Path) -> Database:
    """Read a database of any machine.

    Raises:
        CostError: no such file; not HDF5; truncated; not a cost database; a newer schema.
    """
    path = Path(path)
    advice = f"Measure this machine with: {PROFILER} --out {path}"
    if not path.is_file():
        raise CostError(f"there is no cost database at {path}. {advice}")
    if not h5py.is_hdf5(path):
        head = path.open("rb").read(8)
        raise CostError(
            f"cost database {path} is not HDF5: it begins with {head!r}, not with "
            f"b'\\x89HDF\\r\\n\\x1a\\n'. Give another file, or: {advice}"
        )
    try:
        with h5py.File(path, "r") as file:
            _check_format(file, path, advice)
            return _read(file, path)
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise CostError(
            f"cost database {path} is truncated or damaged: {error}. It has "
            f"{path.stat().st_size} bytes. Restore a copy, or: {advice}"
        ) from error


def _check_format(file: Any, path: Path, advice: str) -> None:
    found = file.attrs.get("format")
    if found != FORMAT:
        raise CostError(
            f"{path} is HDF5 but not a cost database: its attribute format is {found!r}, not "
            f"{FORMAT!r}. Give another file, or: {advice}"
        )
    version = int(file.attrs["schema_version"])
    if version > SCHEMA_VERSION:
        raise CostError(
            f"cost database {path} has schema_version {version}; this version of hpc_alpa reads up "
            f"to {SCHEMA_VERSION}. Install the hpc_alpa that wrote it, or: {advice}"
        )


def _same_machine(database: Database, here: dict[str, str], whose: str) -> None:
    there = dict(database.machine)
    if there == here:
        return
    differ = "; ".join(
        f"{key} is {there.get(key)!r} in the database and {here.get(key)!r} on {whose}"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    )
    raise CostError(
        f"cost database {database.path} was measured on another machine: machine_digest "
        f"{machine_digest(there)}, but {whose} has {machine_digest(here)}. {differ}. "
        f"Measure here with: {PROFILER} --out another-file.h5"
    )


def _row_type(group: str) -> np.dtype[Any]:
    columns = [(name, "S24" if name in TEXT else "i8") for name in PARAMETERS[group]]
    seconds = [(f"seconds_{name}", "f8") for name in SECONDS]
    return np.dtype([*columns, ("run", "i8"), *seconds, ("count", "i8")])


def _write(file: Any, database: Database) -> None:
    file.attrs["format"] = FORMAT
    file.attrs["schema_version"] = SCHEMA_VERSION
    file.attrs["machine_digest"] = database.machine_digest
    file.attrs["machine"] = json.dumps(dict(database.machine), sort_keys=True)
    file.attrs["created"] = database.created
    tables: dict[tuple[str, str], list[tuple[Any, ...]]] = {}
    for s in database.samples:
        q = s.seconds
        values = [v.encode() if isinstance(v, str) else v for v in s.parameters]
        row = (*values, s.run, q.min, q.p25, q.median, q.p75, q.max, q.count)
        tables.setdefault((s.group, s.name), []).append(row)
    for group in GROUPS:
        file.create_group(group)
    for (group, name), rows in tables.items():
        file[group].create_dataset(name, data=np.array(rows, dtype=_row_type(group)))
    fits = [
        (*(t.encode() for t in f.label), f.alpha, f.beta, f.residual, f.count)
        for f in database.fits
    ]
    file.create_dataset("fits", data=np.array(fits, dtype=FIT_TYPE))
    for number, run in enumerate(database.runs):
        attributes = file.create_group(f"runs/{number}").attrs
        for key, value in run.facts:
            attributes[key] = value


def _read(file: Any, path: Path) -> Database:
    samples: list[Sample] = []
    for group in GROUPS:
        for name, table in file[group].items():
            rows = table[()]
            if rows.dtype != _row_type(group):
                raise ValueError(f"/{group}/{name} has columns {rows.dtype.names}")
            samples += [_sample(group, name, row) for row in rows]
    runs = file.get("runs", {})
    machine = json.loads(file.attrs["machine"])
    database = Database(
        tuple(sorted(machine.items())),
        str(file.attrs["created"]),
        tuple(samples),
        tuple(Run.of(**dict(runs[str(i)].attrs)) for i in range(len(runs))),
        tuple(_fit(row) for row in file["fits"][()]),
        str(path),
    )
    if any(sample.run >= len(database.runs) for sample in samples):
        raise ValueError(f"samples name runs beyond the {len(database.runs)} in /runs")
    if database.machine_digest != file.attrs["machine_digest"]:
        raise ValueError("machine_digest does not belong to the machine's facts")
    return database


def _sample(group: str, name: str, row: Any) -> Sample:
    values = tuple(row[p].decode() if p in TEXT else int(row[p]) for p in PARAMETERS[group])
    low, p25, mid, p75, high = (float(row[f"seconds_{q}"]) for q in SECONDS)
    seconds = Quantiles(low, p25, mid, p75, high, int(row["count"]))
    return Sample(group, name, values, seconds, int(row["run"]))


def _fit(row: Any) -> Fit:
    group, name, condition = (row[n].decode() for n in ("group", "name", "condition"))
    alpha, beta, residual = (float(row[n]) for n in ("alpha", "beta", "residual"))
    return Fit(group, name, condition, alpha, beta, residual, int(row["count"]))
