"""[Plan] -> text for people: what runs where, what it says to whom, what is expected and proven."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from hpc_alpa.lower.program import Program
from hpc_alpa.plan.plan import Plan
from hpc_alpa.report.placement import placement_row
from hpc_alpa.report.plan_rows import Names, stage_rows, stored_rows
from hpc_alpa.report.rows import StageRow
from hpc_alpa.report.units import nbytes_text, ranks_text, seconds_text

WIDTH = 14  # of the column of names
KEPT_NAMES = ("names", "stages")  # what a plan's predictions keep for texts


def explain(
    plan: Plan, programs: Sequence[Program] | None = None, names: Names | None = None
) -> str:
    """The plan as a text.

    Args:
        programs: of all ranks: collectives are counted from them. Without them the text says what
            the plan kept of them.
        names: of weights and layers, where the plan did not keep them.
    """
    rows = rows_of(plan, programs, names)
    parts = [_head(plan)]
    for index in range(len(plan.stages)):
        parts.append(_stage(plan, index, [r for r in rows if r.stage == index]))
    parts.append(_foot(plan))
    return "\n".join(parts)


def rows_of(
    plan: Plan, programs: Sequence[Program] | None = None, names: Names | None = None
) -> tuple[StageRow, ...]:
    """The rows of the plan's table, from the best source that there is."""
    if programs is None or (names is None and "stages" in plan.predicted):
        return stored_rows(plan)
    return stage_rows(plan, programs, names)


def facts(plan: Plan, rows: Sequence[StageRow]) -> dict[str, Any]:
    """The same as JSON values."""
    return {
        "plan_digest": plan.digest,
        "method": plan.method,
        "schedule": plan.schedule,
        "num_microbatches": plan.num_microbatches,
        "num_devices": plan.num_devices,
        "recompute": list(plan.recompute),
        "resharding": plan.resharding,
        "graph": plan.graph,
        "cluster": plan.cluster,
        "costs": list(plan.costs),
        "stages": [
            {
                "stage": row.stage,
                "ranks": list(row.ranks),
                "mesh": list(row.mesh),
                "axes": list(plan.stages[row.stage].axes),
                "layers": list(row.layers),
                "specs": dict(row.specs),
                "collectives": dict(row.collectives),
                "predicted_seconds": row.predicted_seconds,
                "predicted_bytes": row.predicted_bytes,
            }
            for row in rows
        ],
        "predicted": {k: v for k, v in plan.predicted.items() if k not in KEPT_NAMES},
        "solver": dict(plan.solver),
    }


def _count(number: int, one: str, several: str = "") -> str:
    return f"{number} {one}" if number == 1 else f"{number} {several or one + 's'}"


def _line(name: str, text: str) -> str:
    return f"  {name:{WIDTH}}{text}".rstrip()


def _head(plan: Plan) -> str:
    stages = _count(len(plan.stages), "stage")
    order = f", schedule {plan.schedule}" if len(plan.stages) > 1 else ""
    crossing = f", resharding by {plan.resharding}" if len(plan.stages) > 1 else ""
    lines = [
        f"plan {plan.digest[:12]}: method {plan.method}, {_count(plan.num_devices, 'device')}, "
        f"{stages}, {_count(plan.num_microbatches, 'microbatch', 'microbatches')}"
        f"{order}{crossing}",
        _line("made for", f"graph {plan.graph[:12] or '-'}, cluster {plan.cluster[:12] or '-'}"),
        _line("costs", " ".join(filter(None, (plan.costs[0], plan.costs[1][:12]))) or "-"),
    ]
    if plan.recompute:
        layers = ", ".join(_runs([f"layer {k}" for k in plan.recompute]))
        lines.append(_line("recomputed", f"{layers} in backward"))
    return "\n".join(lines)


def _stage(plan: Plan, index: int, rows: Sequence[StageRow]) -> str:
    stage = plan.stages[index]
    mesh = " x ".join(f"{n} ({a})" for n, a in zip(stage.mesh_shape, stage.axes, strict=False))
    lines = ["", f"stage {index}: ranks {ranks_text(stage.devices)}, mesh {mesh}"]
    first = rows[0]
    if first.layers:
        lines.append(_line("layers", ", ".join(_runs(first.layers))))
    width = max(map(len, first.specs), default=0)
    for k, (name, spec) in enumerate(first.specs.items()):
        lines.append(_line("" if k else "weights", f"{name:{width}}  {spec}"))
    for row in rows:
        some = f"rank{'s' * (len(row.ranks) > 1)} {ranks_text(row.ranks)}"
        whom = "each rank" if len(rows) == 1 else some
        done = ", ".join(f"{n} {kind}" for kind, n in row.collectives.items())
        stored = plan.predicted.get("stages") or [{}]
        known = row.collectives or "collectives" in stored[0]
        lines.append(_line("per step", f"{whom}: {done or ('no communication' if known else '-')}"))
    busy = max((r.predicted_seconds or 0.0 for r in rows), default=0.0) or None
    nbytes = max((r.predicted_bytes or 0.0 for r in rows), default=0.0) or None
    lines.append(
        _line("predicted", f"busy {seconds_text(busy)}, memory {nbytes_text(nbytes)} per rank")
    )
    return "\n".join(lines)


def _runs(layers: Iterable[str]) -> list[str]:
    """`layer 0, layer 1, layer 2` as `layer 0-2`."""
    found: list[tuple[str, int | None, int | None]] = []
    for name in layers:
        word, _, number = name.rpartition(" ")
        k = int(number) if number.isdigit() else None
        if k is not None and found and found[-1][0] == word and found[-1][2] == k - 1:
            found[-1] = (word, found[-1][1], k)
        else:
            found.append((word, k, k) if k is not None else (name, None, None))
    return [w if a is None else f"{w} {a}" if a == b else f"{w} {a}-{b}" for w, a, b in found]


def _foot(plan: Plan) -> str:
    p, s = plan.predicted, plan.solver
    lines = ["", "whole step"]
    peaks = p.get("peak_bytes") or [None]
    memory = " to ".join(dict.fromkeys(nbytes_text(f(peaks)) for f in (min, max)))
    text = f"{seconds_text(p.get('step_seconds'))} a step, memory {memory} per rank"
    lines.append(_line("predicted", text))
    if "placement" in p:
        lines.append(_line(*placement_row(p["placement"])))
    if s:
        lines.append(
            _line(
                "solver",
                f"objective {seconds_text(s.get('objective'))}, bound "
                f"{seconds_text(s.get('bound'))}, gap {100 * s.get('gap', 0.0):.2g} %, "
                f"{s.get('status', '-')}",
            )
        )
        tried = f"{_count(s['candidates'], 'candidate')} in " if "candidates" in s else ""
        lines.append(_line("search", f"{tried}{seconds_text(s.get('planning_seconds'))}"))
    return "\n".join(lines)
