"""What a database says of its machine, in a few numbers: for people, and as JSON."""

from typing import Any

from hpc_alpa.cost import Database, Sample
from hpc_alpa.profiler.profile import Profile


def summary(result: Profile, seconds: float) -> dict[str, Any]:
    """Counts and headline rates of a profile on rank 0; times in seconds, rates per second."""
    database = result.database
    assert database is not None, "only rank 0 has the database"
    return {
        "path": str(result.path),
        "machine_digest": database.machine_digest,
        "machine": dict(database.machine),
        "seconds": round(seconds, 2),
        "samples": len(database.samples),
        "measured": result.outcome.measured,
        "known": result.outcome.known,
        "left": result.outcome.left,
        "ranks": int(database.runs[-1]["ranks"]),
        "flops": _best(database, "dot_general", _flops),
        "memory_bandwidth": _best(database, "elementwise", _stream),
        "links": {
            f"{fit.name} {fit.condition}": {"alpha": fit.alpha, "beta": fit.beta}
            for fit in database.fits
            if fit.group in ("collectives", "point_to_point")
        },
    }


def _best(database: Database, name: str, rate: Any) -> dict[str, float]:
    """The best rate of an operator, by dtype and load."""
    found: dict[str, float] = {}
    for s in database.samples:
        if s.group == "operators" and s.name == name:
            key = f"{s['dtype']} threads={s['threads']} busy={s['busy']}"
            found[key] = max(found.get(key, 0.0), rate(s))
    return found


def _flops(s: Sample) -> float:
    return float(2.0 * s["batch"] * s["m"] * s["n"] * s["k"] / s.seconds.median)


def _stream(s: Sample) -> float:
    """Bytes per second beyond the caches; small operands count nothing."""
    return float(s["nbytes"] / s.seconds.median) if s["nbytes"] >= 2**23 else 0.0


def lines(facts: dict[str, Any]) -> list[str]:
    """The summary as text."""
    text = [
        f"{facts['path']}: {facts['samples']} samples, {facts['measured']} measured in "
        f"{facts['seconds']:.0f} s by {facts['ranks']} rank(s), {facts['known']} known before, "
        f"{facts['left']} left" + (" (--resume measures them)" if facts["left"] else ""),
        f"machine {facts['machine_digest']}: "
        + ", ".join(f"{key} {value}" for key, value in facts["machine"].items()),
    ]
    for key, rate in facts["flops"].items():
        text.append(f"  matrix product    {key:40} {rate / 1e9:8.1f} GFLOP/s")
    for key, rate in facts["memory_bandwidth"].items():
        text.append(f"  elementwise       {key:40} {rate / 1e9:8.1f} GB/s")
    for key, link in facts["links"].items():
        rate = f"{1e-9 / link['beta']:8.2f} GB/s" if link["beta"] else ""
        text.append(f"  {key:58} {link['alpha'] * 1e6:8.1f} us {rate}")
    return text
