"""`Plan`: what the planner decided, as a value that compares, and is stored as JSON."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hpc_alpa.cluster import DeviceMesh
from hpc_alpa.errors import PlanError
from hpc_alpa.ir.graph import Graph, Var
from hpc_alpa.step import StepGraph, recompute, split_batch

FORMAT, VERSION = "hpc_alpa-plan", 1


@dataclass(frozen=True)
class StagePlan:
    """One stage: its mesh and the strategy of each of its equations.

    Attributes:
        axes: a name for each mesh axis.
        strategies: the roles of each equation of the stage's graph, in its order, `a,-`.
        inputs: the spec of each input of the stage's graph.
        outputs: the spec of each output of the stage's graph.
        conversions: (key, specs along the cheapest path) of each conversion; see `plan.paths`.
        held: (number of a value of the stage's graph, spec) of each copy that is made in forward
            and stays for backward; other copies are made in both.
    """

    mesh_shape: tuple[int, ...]
    devices: tuple[int, ...]
    axes: tuple[str, ...]
    strategies: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    conversions: tuple[tuple[str, tuple[str, ...]], ...] = ()
    held: tuple[tuple[int, str], ...] = ()

    @property
    def mesh(self) -> DeviceMesh:
        return DeviceMesh(self.mesh_shape, self.devices)


@dataclass(frozen=True)
class Plan:
    """A whole step: stages on submeshes, the schedule, the microbatches.

    Several stages may have the same submesh, as the schedule wants it; meshes that are not the same
    have no device in common.

    Attributes:
        graph: digest of the traced step; a plan runs only the graph that it was made for.
        cluster: digest of the cluster; `costs`: (name, digest) of the cost model, reported when
            another one is in use, not refused.
        cuts: where stages start among the forward equations (`step.anchors`).
        resharding: strategy of the transfers between stages.
        predicted: seconds and bytes that the planner expects, by name.
        solver: objective, bound, gap and seconds of the search, by name.
        recompute: numbers of the marked layers that backward makes again (`step.recompute`).
    """

    method: str
    schedule: str
    num_microbatches: int
    cuts: tuple[int, ...]
    stages: tuple[StagePlan, ...]
    graph: str
    cluster: str
    costs: tuple[str, str]
    resharding: str = "send_recv"
    predicted: Mapping[str, Any] = field(default_factory=dict)
    solver: Mapping[str, Any] = field(default_factory=dict)
    recompute: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        whose: dict[int, StagePlan] = {}
        for stage in self.stages:
            for d in stage.devices:
                other = whose.setdefault(d, stage)
                grids = [(s.mesh_shape, s.devices) for s in (other, stage)]
                if grids[0] != grids[1] or stage.devices.count(d) > 1:
                    raise PlanError(
                        f"the stages share devices, but not all: device {d} is on meshes "
                        f"{grids[0]} and {grids[1]}; give each stage its own devices, or several "
                        "the same mesh"
                    )
        if len(self.cuts) != len(self.stages) - 1:
            raise PlanError(f"{len(self.stages)} stages have {len(self.cuts)} cuts between them")

    @property
    def num_devices(self) -> int:
        return sum(m.num_devices for m in self.submeshes)

    @cached_property
    def submeshes(self) -> tuple[DeviceMesh, ...]:
        """The meshes of the stages, each once, in the order of the stages."""
        return tuple(dict.fromkeys(s.mesh for s in self.stages))

    @cached_property
    def placement(self) -> tuple[int, ...]:
        """The submesh of each stage; several stages may have the same."""
        return placement(s.mesh for s in self.stages)

    @property
    def digest(self) -> str:
        """sha256 of what is run; predictions and solver times do not count."""
        decided = replace(self, predicted={}, solver={}, costs=("", ""))
        return hashlib.sha256(decided.to_json().encode()).hexdigest()

    def divide(
        self, graph: Graph, batch: Iterable[Var], renewed: Mapping[int, int] | None = None
    ) -> StepGraph:
        """The step over time that the plan lays out: in its microbatches, its layers made again.

        Args:
            graph: the traced step that the plan is for.
            batch, renewed: as `step.split_batch` takes them.

        Raises:
            PlanError: the step has not the layers that the plan recomputes.
            TracingError: the batch does not divide into the plan's microbatches.
        """
        step = split_batch(graph, batch, self.num_microbatches, renewed)
        return recompute(step, self.recompute, self.cuts)

    def to_json(self) -> str:
        """JSON in a stable order."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "plan") -> Plan:
        """Read `to_json`'s form.

        Raises:
            PlanError: not a plan, a newer version, or a field is missing.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise PlanError(f"{where} is not JSON: {error}") from None
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise PlanError(f"{where} is not a plan: its 'format' is not {FORMAT!r}")
        if (version := data.pop("version", None)) != VERSION:
            raise PlanError(f"{where} has version {version}, this library reads {VERSION}")
        try:
            _without_facts(data)
            stages = tuple(StagePlan(**_tuples(s)) for s in data.pop("stages"))
            return cls(stages=stages, **{k: _keep(k, v) for k, v in data.items()})
        except (KeyError, TypeError) as error:
            raise PlanError(f"{where} is not a whole plan: {error}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write beside and rename, so that a killed writer leaves the old file."""
        target = Path(path)
        beside = target.with_name(target.name + ".tmp")
        beside.write_text(self.to_json())
        os.replace(beside, target)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a file that `save` wrote.

        Raises:
            PlanError: the file cannot be read, or `from_json` refuses it.
        """
        try:
            text = Path(path).read_text()
        except OSError as error:
            raise PlanError(f"plan {os.fspath(path)} cannot be read: {error.strerror}") from None
        return cls.from_json(text, os.fspath(path))


def placement(meshes: Iterable[DeviceMesh]) -> tuple[int, ...]:
    """The submesh of each stage: equal meshes are one, numbered as stages first meet them."""
    number: dict[DeviceMesh, int] = {}
    return tuple(number.setdefault(m, len(number)) for m in meshes)


# What `hpc-alpa plan --json` says besides the plan itself.
FACTS = ("bound", "gap", "model", "planning_seconds")
FACTS_OF_STAGE = ("layers", "logical_shape", "submesh")


def _without_facts(data: dict[str, Any]) -> None:
    for name in FACTS:
        data.pop(name, None)
    for stage in data["stages"]:
        for name in FACTS_OF_STAGE:
            stage.pop(name, None)
    predicted = data.get("predicted") or {}
    if "peak_bytes_per_rank" in predicted:
        predicted["peak_bytes"] = predicted.pop("peak_bytes_per_rank")


def _deep(value: Any) -> Any:
    return tuple(_deep(v) for v in value) if isinstance(value, list) else value


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {k: _deep(v) for k, v in fields.items()}


def _keep(name: str, value: Any) -> Any:
    return value if name in ("predicted", "solver") else _deep(value)
