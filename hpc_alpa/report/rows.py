"""What tables and pictures are given: plain values, so that reports depend on no planner."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class StageRow:
    """One stage of a plan, as a table or a picture shows it. What is not known is `None`.

    Attributes:
        stage: number of the stage.
        ranks: global ranks of its submesh; several stages may have the same.
        mesh: logical shape of the submesh.
        layers: names of its layers, in order.
        specs: spec of each main weight by its name, such as {"ffn/w1": "RS1"}.
        collectives: how many of each kind one step runs on each rank.
        predicted_seconds, measured_seconds: time of one step in which its ranks are busy.
        predicted_bytes, measured_bytes: peak memory per rank.
    """

    stage: int
    ranks: tuple[int, ...]
    mesh: tuple[int, ...]
    layers: tuple[str, ...]
    specs: Mapping[str, str] = field(default_factory=dict, hash=False)
    collectives: Mapping[str, int] = field(default_factory=dict, hash=False)
    predicted_seconds: float | None = None
    measured_seconds: float | None = None
    predicted_bytes: float | None = None
    measured_bytes: float | None = None


@dataclass(frozen=True)
class FrontierPoint:
    """The fastest plan found under one limit on memory.

    Attributes:
        limit, peak_bytes: of one device: what it may hold, and what it holds at most.
        seconds: of one step.
        meshes: logical shape of each stage.
        collectives: how many of each kind one step runs, on the rank with the most.
        inputs, strategies: how many of the step's inputs and equations lie otherwise than at the
            point before.
        plan: digest of the plan.
        recompute: numbers of the layers that backward makes again.
    """

    limit: float
    seconds: float
    peak_bytes: float
    num_microbatches: int
    meshes: tuple[str, ...]
    collectives: Mapping[str, int] = field(hash=False)
    inputs: int
    strategies: int
    plan: str
    recompute: tuple[int, ...] = ()
