"""[Plan, Request, name] -> why the value of that name lies as it does."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from hpc_alpa.plan.likeness import chosen
from hpc_alpa.plan.plan import Plan
from hpc_alpa.plan.solve.problem import leaders
from hpc_alpa.plan.why import OPTIONS, Why, why
from hpc_alpa.report.why import why_text
from hpc_alpa.search import Request
from hpc_alpa.search.named import require_named
from hpc_alpa.search.scoring import programs_of


@dataclass(frozen=True)
class Answer:
    """Why a value lies as it does on the mesh of a stage."""

    stage: int
    mesh: tuple[int, ...]
    why: Why

    def to_json(self) -> dict[str, Any]:
        return {"stage": self.stage, "mesh": self.mesh, **asdict(self.why)}

    def __str__(self) -> str:
        shape = "x".join(map(str, self.mesh))
        return why_text(self.why, f"stage {self.stage}, mesh {shape}")


def explain_value(
    plan: Plan, request: Request, name: str, seconds: float = OPTIONS.seconds
) -> tuple[Answer, ...]:
    """Why the values that a name means lie as they do; equal choices are explained once.

    Args:
        request: what the plan was made for.
        seconds: to solve alternatives in, for each value.

    Raises:
        PlanError: nothing has the name, or the plan was made by other rules.
    """
    _, programs = programs_of(request, plan)
    problems = [program.problem() for program in programs]
    asked: dict[tuple[int, int], int] = {}
    for stage, node in require_named(programs, name):
        asked.setdefault((stage, int(leaders(problems[stage])[node])), node)
    answers = []
    for (stage, _), node in asked.items():
        made = plan.stages[stage]
        own = chosen(programs[stage], problems[stage], made)
        found = why(programs[stage], own, node, replace(OPTIONS, seconds=seconds))
        answers.append(Answer(stage, made.mesh_shape, found))
    return tuple(answers)
