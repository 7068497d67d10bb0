"""What a search is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hpc_alpa.cluster import Cluster
from hpc_alpa.cost import Cost
from hpc_alpa.ir.graph import Graph, Var


@dataclass(frozen=True)
class Request:
    """A traced step and the machine to plan it for.

    Attributes:
        batch: inputs with the batch dim first.
        renewed: position of each output that is the new value of an input -> that input's position.
        num_devices: how many of the cluster's devices to use: its first ones.
        method: `auto`, or a manual method (`plan.methods`).
        num_microbatches: None searches.
        schedule: `auto` or a name in `schedule.SCHEDULES`.
        memory: bytes of one device; None takes the cluster's.
        pins: name of an input or of a line -> spec, or -> {dim: mesh axis} (`search.pins`).
        resharding: strategy of transfers between stages.
        layers: number of layers that stages are made of; None chooses.
        seconds: in which the choice program of a stage is solved.
        recompute: marked layers (`hpc_alpa.layer`) that backward makes again: `none`, `all`, their
            numbers, or `auto`, which looks for them where memory is short, and takes none with a
            manual method.
        num_stages: exactly so many, where stages are searched; None takes as many as pay.
        folder: where plans and solutions are kept for the next time, if anywhere.
    """

    graph: Graph
    batch: frozenset[Var]
    renewed: Mapping[int, int]
    cluster: Cluster
    cost: Cost
    num_devices: int
    method: str = "auto"
    num_microbatches: int | None = None
    schedule: str = "auto"
    memory: float | None = None
    pins: Mapping[str, str | Mapping[int, int]] = field(default_factory=dict)
    resharding: str = "send_recv"
    layers: int | None = None
    seconds: float = 60.0
    recompute: str | tuple[int, ...] = "auto"
    folder: Path | None = None
    num_stages: int | None = None

    @property
    def solutions(self) -> Path | None:
        """Where solutions of choice programs are kept."""
        return None if self.folder is None else self.folder / "solutions"

    @property
    def memory_limit(self) -> float:
        """Bytes of the smallest device in use."""
        if self.memory is not None:
            return float(self.memory)
        hosts = {self.cluster.host_of(d) for d in range(self.num_devices)}
        return min(float(self.cluster.hosts[h].memory_bytes) for h in hosts)
