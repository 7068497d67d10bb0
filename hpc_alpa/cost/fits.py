"""Lines through the samples, for people and for reports: prices interpolate the samples."""

from dataclasses import replace

from hpc_alpa.cost.database import Database
from hpc_alpa.cost.database_cost import pooled
from hpc_alpa.cost.interpolate import fit_line
from hpc_alpa.cost.sample import PARAMETERS, Fit, Sample

VARYING = frozenset({"nbytes", "clock", "batch", "m", "n", "k"})


def fitted(database: Database) -> Database:
    """The database with a line alpha + beta*nbytes for all that was measured at 3 sizes or more.

    Matrix products have no line: their time follows flops.
    """
    found: dict[tuple[str, str, str], list[Sample]] = {}
    for s in database.samples:
        if s.name != "dot_general":
            condition = " ".join(
                f"{p}={s[p]}" for p in PARAMETERS[s.group] if p not in VARYING and s[p] != ""
            )
            found.setdefault((s.group, s.name, condition), []).append(s)
    fits = []
    for label, samples in sorted(found.items()):
        points = [(float(n), q.median) for n, q in pooled(samples, lambda s: s["nbytes"])]
        if len(points) >= 3:
            fits.append(Fit(*label, *fit_line(points), len(points)))
    return replace(database, fits=tuple(fits))
