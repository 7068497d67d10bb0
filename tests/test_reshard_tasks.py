"""Resharding between meshes: planned, lowered to messages, run on threads; tiles bit for bit."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from hpc_alpa.cluster import DeviceMesh
from hpc_alpa.errors import ShardingError
from hpc_alpa.ir import Graph, TensorType, Var
from hpc_alpa.lower import Program
from hpc_alpa.lower.check import check
from hpc_alpa.lower.lower import lower_stages
from hpc_alpa.lower.program import Send
from hpc_alpa.plan.choices import specs_of
from hpc_alpa.plan.plan import Plan, StagePlan
from hpc_alpa.reshard import STRATEGIES, reshard
from hpc_alpa.reshard.task import tiles
from hpc_alpa.sharding import ShardingSpec, num_tiles
from hpc_alpa.step import PREPARE, StageGraph, StepGraph, Transfer
from tests.helpers.random_plans import MeshShape, require_outputs, run

MESHES: list[MeshShape] = [(1,), (2,), (3,), (4,), (2, 2), (1, 2), (2, 3)]


def meshes_of(source: MeshShape, target: MeshShape) -> tuple[DeviceMesh, DeviceMesh]:
    """Two meshes one after the other."""
    n, m = math.prod(source), math.prod(target)
    return DeviceMesh(source, tuple(range(n))), DeviceMesh(target, tuple(range(n, n + m)))


def programs_of(
    type: TensorType, source: str, first: DeviceMesh, target: str, second: DeviceMesh, strategy: str
) -> tuple[StepGraph, tuple[Program, ...]]:
    """Two stages: the first sends its input, the second gives what it receives."""
    x = Var(0, type)
    graph = Graph((x,), (), (x,))
    step = StepGraph(graph, 1, frozenset(), {})
    crossing = (Transfer(x, 0, 1, PREPARE),)
    stages = [
        StageGraph(0, graph, (), (), crossing),
        StageGraph(1, graph, ((0, x),), crossing, ()),
    ]
    plans = tuple(
        StagePlan(mesh.shape, mesh.devices, tuple("xyz"[: mesh.num_axes]), (), (spec,), (spec,))
        for spec, mesh in ((source, first), (target, second))
    )
    made = lower_stages(step, stages, Plan("", "1f1b", 1, (0,), plans, "", "", ("", ""), strategy))
    check(made)
    return step, made


def require_moved(
    shape: Sequence[int],
    source: str,
    first: DeviceMesh,
    target: str,
    second: DeviceMesh,
    strategy: str,
) -> tuple[Program, ...]:
    value = np.arange(math.prod(shape), dtype="int32").reshape(shape)
    type = TensorType.of(value)
    step, programs = programs_of(type, source, first, target, second, strategy)
    engine, outputs, _ = run(programs, step.graph, [value])
    require_outputs(engine, outputs, [value], 0)
    return programs


def sent_bytes(programs: Sequence[Program]) -> Counter[int]:
    found: Counter[int] = Counter()
    for p in programs:
        found[p.rank] += sum(i.nbytes for i in p.instructions if isinstance(i, Send))
    return found


def crossing_bytes(programs: Sequence[Program], first: DeviceMesh) -> int:
    """Bytes from the first mesh to the second; what receivers pass on to each other not."""
    return sum(n for rank, n in sent_bytes(programs).items() if rank in first.devices)


# ------------------------------------------------------------------------------ acceptance page
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("source", "target"), [("RRR", "S1RR"), ("S1RR", "S1RR"), ("RS1R", "S1RR")]
)
def test_r1_to_split(source: str, target: str, strategy: str) -> None:
    first, second = meshes_of((1, 2), (1, 2))
    programs = require_moved((4, 8, 16), source, first, target, second, strategy)
    assert crossing_bytes(programs, first) == 4 * 8 * 16 * 4, "each byte crosses once"


@pytest.mark.parametrize(
    ("shape", "source"),
    [((4, 8, 16), "RRR"), ((4, 8, 16), "S1RR"), ((4, 8, 16), "RS1R"), ((3, 8, 2), "RS1R")],
)
def test_r2_to_replicas(shape: tuple[int, ...], source: str) -> None:
    """A broadcast is a chain that crosses the slow link once; sends cross it once per replica."""
    first, second = meshes_of((1, 2), (1, 2))
    nbytes = 4 * math.prod(shape)
    chain = require_moved(shape, source, first, "RRR", second, "broadcast")
    assert crossing_bytes(chain, first) == nbytes
    assert sum(sent_bytes(chain).values()) == 2 * nbytes
    pairs = require_moved(shape, source, first, "RRR", second, "send_recv")
    assert crossing_bytes(pairs, first) == 2 * nbytes


# --------------------------------------------------------------------------------- random pairs
@pytest.mark.parametrize("seed", range(24))
def test_random_pairs(seed: int) -> None:
    rng = random.Random(seed)
    shape = tuple(rng.choice([2, 4, 6, 12]) for _ in range(rng.randint(1, 3)))
    first, second = meshes_of(rng.choice(MESHES), rng.choice(MESHES))
    type = TensorType(shape, "int32")
    source, target = (str(rng.choice(specs_of(type, m.shape))) for m in (first, second))
    for strategy in STRATEGIES:
        require_moved(shape, source, first, target, second, strategy)


def test_all_pairs_on_two_by_two() -> None:
    """Pieces cover every receiver's tile once, from devices that hold them."""
    shape = (4, 8)
    first, second = meshes_of((2, 2), (2, 2))
    specs = specs_of(TensorType(shape, "float32"), (2, 2))
    for source in specs:
        for target in specs:
            for strategy in STRATEGIES:
                task = reshard(shape, source, first, target, second, strategy)
                cover = {d: np.zeros(shape, int) for d in second.devices}
                held = {d: r for r, ds in tiles(shape, source, first).items() for d in ds}
                for piece in task.pieces:
                    window = tuple(slice(a, b) for a, b in piece.region)
                    limits = held[piece.sender]
                    inside = zip(piece.region, limits, strict=True)
                    assert all(lo >= a and hi <= b for (lo, hi), (a, b) in inside)
                    for d in piece.receivers:
                        cover[d][window] += 1
                for region, devices in tiles(shape, target, second).items():
                    window = tuple(slice(a, b) for a, b in region)
                    for d in devices:
                        assert (cover[d][window] == 1).all()
                        assert cover[d].sum() == cover[d][window].size


def test_senders_share_the_bytes() -> None:
    """Replicas send in turn: no device sends more than a piece above the mean."""
    shape = (8, 24)
    for source in specs_of(TensorType(shape, "int32"), (2, 2)):
        for target_mesh in [(2,), (4,), (2, 2), (2, 3)]:
            first, second = meshes_of((2, 2), target_mesh)
            for target in specs_of(TensorType(shape, "int32"), target_mesh):
                for strategy in STRATEGIES:
                    task = reshard(shape, source, first, target, second, strategy)
                    sent = Counter({d: 0 for d in first.devices})
                    for piece in task.pieces:
                        copies = len(piece.receivers) if strategy == "send_recv" else 1
                        sent[piece.sender] += copies * piece.size
                    largest = max(p.size for p in task.pieces)
                    replicas = 4 // num_tiles(source.split_axes, (2, 2))
                    for devices in tiles(shape, source, first).values():
                        own = [sent[d] for d in devices]
                        assert max(own) - min(own) <= largest
                        assert len(own) == replicas


@pytest.mark.parametrize(("source", "target"), [("RR+P0", "RR"), ("RR", "S0R+P1"), ("RR+M0", "RR")])
def test_partial_values_do_not_cross(source: str, target: str) -> None:
    first, second = meshes_of((2, 2), (2, 2))
    specs = ShardingSpec.parse(source), ShardingSpec.parse(target)
    with pytest.raises(ShardingError, match="partial value cannot cross meshes.*reduce it first"):
        reshard((4, 4), specs[0], first, specs[1], second)
