"""[Plan, Plan] -> what two plans of one graph decide differently, and what they expect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpc_alpa.errors import PlanError
from hpc_alpa.plan.plan import Plan


@dataclass(frozen=True)
class Differs:
    """One thing that both plans say, each in its way; "" where one does not have it."""

    what: str
    before: str
    after: str


@dataclass(frozen=True)
class Moved:
    """Equations of one operator that are split otherwise.

    Attributes:
        before, after: roles of the mesh axes; where the two plans have other equations (stages, or
            microbatches), one of them is "", and the counts of roles alone are compared.
    """

    operator: str
    before: str
    after: str
    count: int


@dataclass(frozen=True)
class Predicted:
    """What both plans expect: seconds, bytes, or how many of something; None where not kept."""

    what: str
    unit: str
    before: float | None
    after: float | None


@dataclass(frozen=True)
class PlanDiff:
    """What two plans decide differently; empty where they decide the same.

    Attributes:
        layout: method, microbatches, recomputed layers, schedule, stages and their meshes.
        inputs: specs of the step's inputs by name, weights and optimizer state among them.
        strategies: by operator.
        conversions: paths of conversions, by stage and key.
        held: copies that stay from forward to backward, by stage and value.
        predicted: always all, for both.
    """

    layout: tuple[Differs, ...]
    inputs: tuple[Differs, ...]
    strategies: tuple[Moved, ...]
    conversions: tuple[Differs, ...]
    held: tuple[Differs, ...]
    predicted: tuple[Predicted, ...]

    @property
    def equal(self) -> bool:
        """Whether the plans decide the same."""
        return not (self.layout or self.inputs or self.strategies or self.conversions or self.held)


def diff(a: Plan, b: Plan) -> PlanDiff:
    """What two plans of one graph decide differently.

    Raises:
        PlanError: they are of two graphs.
    """
    if a.graph != b.graph:
        raise PlanError(
            f"the first plan is of graph {a.graph[:12] or '-'}, the second of "
            f"{b.graph[:12] or '-'}: the models, their sizes or their dtypes differ, and plans of "
            "two graphs have nothing to compare"
        )
    x, y = _Named.both(a, b)
    return PlanDiff(
        tuple(_differs(_layout(a), _layout(b))),
        tuple(_differs(x.specs(), y.specs())),
        tuple(_moved(x, y)),
        tuple(_differs(_conversions(a), _conversions(b))),
        tuple(_differs(_held(a), _held(b))),
        tuple(_predicted(a, b)),
    )


def _differs(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[Differs]:
    for what in dict.fromkeys((*before, *after)):
        x, y = before.get(what, ""), after.get(what, "")
        if x != y:
            yield Differs(what, x, y)


def _layout(plan: Plan) -> dict[str, str]:
    found = {
        "method": plan.method,
        "microbatches": str(plan.num_microbatches),
        "recomputed layers": " ".join(map(str, plan.recompute)),
        "schedule": plan.schedule,
        "resharding": plan.resharding,
        "stages": str(len(plan.stages)),
        "cuts": " ".join(map(str, plan.cuts)),
        "cluster": plan.cluster[:12],
    }
    for k, s in enumerate(plan.stages):
        found[f"stage {k}: mesh"] = "x".join(map(str, s.mesh_shape))
        found[f"stage {k}: axes"] = " ".join(s.axes)
        found[f"stage {k}: ranks"] = " ".join(map(str, s.devices))
    return found


@dataclass(frozen=True)
class _Named:
    """A plan with names of its stages' inputs, and of the operators of their equations."""

    plan: Plan
    inputs: Sequence[Sequence[str]]
    operators: Sequence[Sequence[str]]

    @classmethod
    def both(cls, a: Plan, b: Plan) -> tuple[_Named, _Named]:
        """By the names that plans keep (`report.plan_rows.described`).

        Where one keeps none: by the other's if their stages have the same graphs, else by number.
        """
        kept: list[Any] = [p.predicted.get("names") for p in (a, b)]
        if _same_graphs(a, b):
            kept = [kept[0] or kept[1], kept[1] or kept[0]]
        if None in kept:
            return cls._numbered(a), cls._numbered(b)
        x, y = kept
        return cls(a, x["inputs"], x["operators"]), cls(b, y["inputs"], y["operators"])

    @classmethod
    def _numbered(cls, plan: Plan) -> _Named:
        inputs = [
            [f"stage {k}: input {n}" for n in range(len(s.inputs))]
            for k, s in enumerate(plan.stages)
        ]
        return cls(plan, inputs, [["equation"] * len(s.strategies) for s in plan.stages])

    def specs(self) -> dict[str, str]:
        """Spec of each input."""
        found: dict[str, str] = {}
        for names, s in zip(self.inputs, self.plan.stages, strict=True):
            for name, spec in zip(names, s.inputs, strict=True):
                # A scalar lies in several stages.
                found[name] = spec if found.get(name, spec) == spec else f"{found[name]} {spec}"
        return found

    def strategies(self) -> list[tuple[str, str]]:
        """Operator and roles of each equation, stage by stage."""
        return [
            pair
            for names, s in zip(self.operators, self.plan.stages, strict=True)
            for pair in zip(names, s.strategies, strict=True)
        ]


def _same_graphs(a: Plan, b: Plan) -> bool:
    x, y = ((p.cuts, p.num_microbatches, p.recompute) for p in (a, b))
    return x == y


def _moved(a: _Named, b: _Named) -> Iterator[Moved]:
    x, y = a.strategies(), b.strategies()
    if _same_graphs(a.plan, b.plan):
        pairs = Counter(
            (operator, before, after)
            for (operator, before), (_, after) in zip(x, y, strict=True)
            if before != after
        )
        yield from (Moved(*pair, n) for pair, n in sorted(pairs.items()))
        return
    goes, comes = Counter(x) - Counter(y), Counter(y) - Counter(x)
    yield from (Moved(operator, roles, "", n) for (operator, roles), n in sorted(goes.items()))
    yield from (Moved(operator, "", roles, n) for (operator, roles), n in sorted(comes.items()))


def _conversions(plan: Plan) -> dict[str, str]:
    return {
        f"stage {k}: {key}": " ".join(path)
        for k, s in enumerate(plan.stages)
        for key, path in s.conversions
    }


def _held(plan: Plan) -> dict[str, str]:
    return {
        f"stage {k}: value {node} as {spec}": "held"
        for k, s in enumerate(plan.stages)
        for node, spec in s.held
    }


def _predicted(a: Plan, b: Plan) -> Iterator[Predicted]:
    for what, unit, key, values in (
        ("step", "seconds", "step_seconds", "predicted"),
        ("memory of a device", "bytes", "peak_bytes", "predicted"),
        ("objective", "seconds", "objective", "solver"),
        ("bound", "seconds", "bound", "solver"),
    ):
        yield Predicted(what, unit, _most(getattr(a, values), key), _most(getattr(b, values), key))
    before, after = collectives(a), collectives(b)
    for kind in sorted(before.keys() | after.keys()):
        yield Predicted(f"{kind} per step", "", before.get(kind, 0), after.get(kind, 0))


def _most(values: Mapping[str, Any], key: str) -> float | None:
    found = values.get(key)
    return max(found, default=None) if isinstance(found, Sequence) else found


def collectives(plan: Plan) -> dict[str, int]:
    """How many of each kind one step has, on the rank with the most; of what the plan kept."""
    found: dict[str, int] = {}
    for row in plan.predicted.get("stages", ()):
        for kind, number in row["collectives"].items():
            found[kind] = max(found.get(kind, 0), number)
    return found
