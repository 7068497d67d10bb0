"""[Plan, Programs] -> [StageRow]: what a plan's table says, counted from the programs that run."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hpc_alpa.ir.graph import Eqn, Var
from hpc_alpa.lower.program import KIND, Program, Send
from hpc_alpa.plan.plan import Plan
from hpc_alpa.report.rows import StageRow
from hpc_alpa.step import FORWARD, StepGraph, anchors, split_stages

MOST_WEIGHTS = 6  # that a stage shows, the largest first
# What brings a weight into the loop without computing with it.
MOVES = ("cast", "enter", "reshape", "transpose")


@dataclass(frozen=True)
class Names:
    """What people call the parts of a step.

    Attributes:
        weights: position among the step's inputs -> (path, elements), of the state that the loop
            reads; optimizer state is not among them.
        layers: names of the layers of each stage, in order; a layer that is cut is in two.
        inputs, operators: of each stage's graph: a name for every input, the operator of every
            equation.
    """

    weights: Mapping[int, tuple[str, int]]
    layers: tuple[tuple[str, ...], ...]
    inputs: tuple[tuple[str, ...], ...] = ()
    operators: tuple[tuple[str, ...], ...] = ()


# ---------------------------------------------------------------------------------------- names
def names_of(step: StepGraph, cuts: Sequence[int], num_state_leaves: int) -> Names:
    """Names of a step's weights and of the layers of its stages.

    Args:
        cuts: where stages start among the forward equations (`step.anchors`).
        num_state_leaves: how many of the step's first inputs are its state.
    """
    state = {v: k for k, v in enumerate(step.graph.inputs[:num_state_leaves]) if v.type.shape}
    carried: dict[Var, Var] = {v: v for v in state}
    read: list[Var] = []
    for e in step.graph.eqns:
        if e.op.name in MOVES and e.inputs[0] in carried:
            carried[e.output] = carried[e.inputs[0]]
        elif e.phase == FORWARD:
            read += [carried[v] for v in e.inputs if v in carried]
    name_of = step.graph.name_of
    ordered = sorted(dict.fromkeys(read), key=lambda v: state[v])
    paths = _short([name_of.get(v.id, str(v)) for v in ordered])
    short = dict(zip(ordered, paths, strict=True))
    weights = {state[v]: (short[v], v.type.size) for v in ordered}
    stages = [stage.graph for stage in split_stages(step, cuts)]
    return Names(
        weights,
        _layers(step, cuts, carried, short),
        tuple(tuple(name_of.get(v.id, str(v)) for v in g.inputs) for g in stages),
        tuple(tuple(e.op.name for e in g.eqns) for g in stages),
    )


def _layers(
    step: StepGraph, cuts: Sequence[int], carried: Mapping[Var, Var], short: Mapping[Var, str]
) -> tuple[tuple[str, ...], ...]:
    """Labels of the forward equations of each stage, each once."""
    found: list[dict[str, None]] = [{} for _ in range(len(cuts) + 1)]
    label = ""
    for k, e in enumerate(anchors(step)):
        if e.op.name in MOVES and e.inputs[0] in carried:
            continue
        label = _label(e, [short[carried[v]] for v in e.inputs if v in carried]) or label
        if label:
            found[sum(k >= c for c in cuts)][label] = None
    return tuple(tuple(labels) for labels in found)


def _label(e: Eqn, weights: Sequence[str]) -> str:
    """The user's marker; else the part of the model that the weight's path names."""
    if e.layer is not None:
        return f"layer {e.layer}"
    for path in weights:
        parts = path.split("/")
        if len(parts) > 1 and parts[1].isdigit():
            return " ".join(parts[:2])
        return parts[0]
    return ""


def _short(paths: Sequence[str]) -> list[str]:
    """Paths without the folders that all of them share: `state/params`."""
    parts = [p.split("/") for p in paths]
    shared = os.path.commonprefix([p[:-1] for p in parts]) if parts else []
    while shared and any(p[len(shared)].isdigit() for p in parts):
        shared = shared[:-1]  # a number alone is no name: `layers/0`
    return ["/".join(p[len(shared) :]) for p in parts]


# ----------------------------------------------------------------------------------------- rows
def counts(program: Program) -> dict[str, int]:
    """How many collectives of each kind, and how many sends, one step of a rank has."""
    found = Counter(KIND[type(i)] for i in program.instructions if type(i) in KIND)
    sends = sum(isinstance(i, Send) for i in program.instructions)
    ordered = {kind: found[kind] for kind in KIND.values() if found[kind]}
    return ordered | ({"send": sends} if sends else {})


def stage_rows(
    plan: Plan, programs: Sequence[Program], names: Names | None = None
) -> tuple[StageRow, ...]:
    """A row per stage; ranks of a stage that communicate differently have rows of their own."""
    rows = []
    for index, stage in enumerate(plan.stages):
        alike: dict[tuple[tuple[str, int], ...], list[int]] = {}
        for rank in stage.devices:
            alike.setdefault(tuple(counts(programs[rank]).items()), []).append(rank)
        for found, ranks in alike.items():
            row = StageRow(
                index,
                tuple(ranks),
                stage.mesh_shape,
                names.layers[index] if names is not None else (),
                {} if names is None else main_specs(_specs(programs[ranks[0]]), names),
                dict(found),
            )
            rows.append(_predicted(row, plan))
    return tuple(rows)


def _specs(program: Program) -> dict[int, str]:
    return {p.position: p.spec for p in program.inputs}


def main_specs(specs: Mapping[int, str], names: Names) -> dict[str, str]:
    """Specs of a rank's largest weights; equal ones are one: `layers/*/{down,up}/weight`."""
    held = [(*names.weights[k], specs[k]) for k in names.weights if k in specs]
    by_pattern: dict[str, set[str]] = {}
    for path, _, spec in held:
        by_pattern.setdefault(_pattern(path), set()).add(spec)
    found: dict[str, tuple[int, str]] = {}
    for path, elements, spec in held:
        name = _pattern(path) if len(by_pattern[_pattern(path)]) == 1 else path
        found[name] = elements, spec
    merged = _siblings(found)
    largest = sorted(merged, key=lambda name: -merged[name][0])[:MOST_WEIGHTS]
    return {name: merged[name][1] for name in largest}


def _siblings(found: Mapping[str, tuple[int, str]]) -> dict[str, tuple[int, str]]:
    """Weights that differ in the last folder alone are one line."""
    alike: dict[tuple[Any, ...], list[str]] = {}
    for name, what in found.items():
        *folder, own, leaf = ["", *name.split("/")]
        alike.setdefault((tuple(folder), leaf, what), []).append(own)
    merged = {}
    for (parents, leaf, what), names in alike.items():
        middle = names[0] if len(names) == 1 else f"{{{','.join(names)}}}"
        merged["/".join(filter(None, (*parents, middle, leaf)))] = what
    return merged


def _pattern(path: str) -> str:
    return "/".join("*" if part.isdigit() else part for part in path.split("/"))


def _predicted(row: StageRow, plan: Plan) -> StageRow:
    return replace(
        row,
        predicted_seconds=_largest(plan.predicted.get("busy_seconds"), row.ranks),
        predicted_bytes=_largest(plan.predicted.get("peak_bytes"), row.ranks),
    )


def with_measured(
    rows: Iterable[StageRow], seconds: Sequence[float] | None, nbytes: Sequence[float] | None
) -> tuple[StageRow, ...]:
    """The rows with what was measured on each rank: of a row's ranks, the most."""
    return tuple(
        replace(
            row,
            measured_seconds=_largest(seconds, row.ranks),
            measured_bytes=_largest(nbytes, row.ranks),
        )
        for row in rows
    )


def _largest(values: Sequence[float] | None, ranks: Sequence[int]) -> float | None:
    return max(values[r] for r in ranks) if values else None


# ------------------------------------------------------------------------------- kept in a plan
KEPT = ("stage", "ranks", "mesh", "layers", "specs", "collectives")


def described(plan: Plan, programs: Sequence[Program], names: Names) -> Plan:
    """The plan with its rows and names beside its predictions, so that its file explains itself.

    They are no part of what is decided, and of the digest.
    """
    rows = [_to_json(row) for row in stage_rows(plan, programs, names)]
    kept = {"inputs": list(map(list, names.inputs)), "operators": list(map(list, names.operators))}
    return replace(plan, predicted={**plan.predicted, "stages": rows, "names": kept})


def outlined(plan: Plan, specs: Sequence[Mapping[int, str]], names: Names) -> Plan:
    """`described` without programs: what each rank communicates is left out.

    Args:
        specs: of each stage, position among the step's inputs -> spec.
    """
    rows = []
    for k, stage in enumerate(plan.stages):
        main = main_specs(specs[k], names)
        rows.append(StageRow(k, stage.devices, stage.mesh_shape, names.layers[k], main))
    kept = [{k: v for k, v in _to_json(row).items() if k != "collectives"} for row in rows]
    return replace(plan, predicted={**plan.predicted, "stages": kept})


def stored_rows(plan: Plan) -> tuple[StageRow, ...]:
    """The rows that `described` kept; without any, what the plan itself says of its stages."""
    kept = plan.predicted.get("stages")
    if kept is None:
        return tuple(
            _predicted(StageRow(k, s.devices, s.mesh_shape, ()), plan)
            for k, s in enumerate(plan.stages)
        )
    return tuple(_predicted(_from_json(row), plan) for row in kept)


def _to_json(row: StageRow) -> dict[str, Any]:
    values = {key: getattr(row, key) for key in KEPT}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def _from_json(row: Mapping[str, Any]) -> StageRow:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
    return StageRow(**values)
