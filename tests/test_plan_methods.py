"""Manual methods are what they say: what their programs exchange, hold, and compute."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from hpc_alpa.cluster import DeviceMesh
from hpc_alpa.cost import AlphaBetaCost, AnalyticCost, Cost
from hpc_alpa.errors import PlanError, ShardingError
from hpc_alpa.ir import evaluate
from hpc_alpa.lower import Program, lower
from hpc_alpa.lower.check import check
from hpc_alpa.lower.program import KIND
from hpc_alpa.models import AdamW, GPTConfig, adamw, gpt
from hpc_alpa.plan.intra_op import IntraOp
from hpc_alpa.plan.methods import Method, parse_method, restrictions, split_products
from hpc_alpa.plan.plan import Plan
from hpc_alpa.plan.pricing import Pricing
from hpc_alpa.plan.solve.options import Options
from hpc_alpa.sharding import ShardingSpec, num_tiles
from hpc_alpa.simulate import simulate
from hpc_alpa.step import split_stages
from hpc_alpa.trace import value_and_grad
from tests.helpers.equality import cluster, train
from tests.helpers.random_losses import Case, traced_case
from tests.helpers.random_plans import require_outputs, run
from tests.models import CASES

EXACT = Options(relative_gap=0, absolute_gap=1e-6)
ROWS, LENGTH, HIDDEN = 8, 4, 16


@dataclass(frozen=True)
class Forced:
    """The cheapest plan that a method leaves of a case, and its programs."""

    case: Case
    method: Method
    specs: dict[str, ShardingSpec]
    programs: tuple[Program, ...]
    peak_bytes: float

    def collectives(self, rank: int = 0) -> Counter[tuple[str, str, tuple[int, ...]]]:
        """(where, kind, group) of what one step of a rank exchanges, but for scalars."""
        return Counter(
            ("loop" if "@" in str(i) else "once", KIND[type(i)], i.group)  # type: ignore[union-attr]
            for i in self.programs[rank].instructions
            if type(i) in KIND and i.nbytes > 8  # type: ignore[union-attr]
        )

    def kinds(self) -> Counter[tuple[str, str]]:
        found: Counter[tuple[str, str]] = Counter()
        for (where, kind, _), n in self.collectives().items():
            found[where, kind] += n
        return found

    def of_state(self, *starts: str) -> dict[str, ShardingSpec]:
        """How the leaves with dims lie whose names begin so."""
        prefixes = tuple(f"state/{s}" for s in starts)
        return {k: s for k, s in self.specs.items() if k.startswith(prefixes) and s.dims}

    @property
    def state_bytes(self) -> float:
        """Of one device, between steps."""
        graph, mesh = self.case.graph, self.method.mesh_shape
        types = {graph.name_of[v.id]: v.type for v in graph.inputs if v.type.shape}
        return sum(
            types[k].nbytes / num_tiles(s.split_axes, mesh) for k, s in self.of_state("").items()
        )

    def require_equal(self, tolerance: float) -> None:
        """One step on threads is that of the reference interpreter, and runs what was planned."""
        graph, values = self.case.graph, self.case.values
        engine, outputs, records = run(self.programs, graph, values)
        require_outputs(engine, outputs, evaluate(graph, values), tolerance)
        for p in self.programs:
            counted = Counter(KIND[type(i)] for i in p.instructions if type(i) in KIND)
            assert records[p.rank].collectives == counted


def forced(case: Case, name: str, devices: int, slots: int = 1, cost: Cost | None = None) -> Forced:
    """Plan one stage under a method, and lower it."""
    step = case.split(slots)
    [stage] = split_stages(step, ())
    method = parse_method(name).over(devices)
    mesh = method.mesh_shape
    priced = cost or AnalyticCost(cluster(devices))
    allowed = restrictions(method, step)
    if not priced.in_seconds:
        allowed = allowed & split_products(mesh)
    pricing = Pricing.on(DeviceMesh(mesh, tuple(range(devices))), priced)
    program = IntraOp(step, stage, pricing, allowed, in_flight=1)
    made = program.decode(program.solve(EXACT), method.axis_names)
    programs = lower(step, Plan(name, "1f1b", slots, (), (made,), "", "", ("", "")))
    check(programs)
    names = [stage.graph.name_of.get(v.id, "") for v in stage.graph.inputs]
    specs = dict(zip(names, map(ShardingSpec.parse, made.inputs), strict=True))
    peak = 0.0 if cost else max(simulate(programs, priced).peak_bytes)
    return Forced(case, method, specs, programs, peak)


@functools.cache
def mlp_case() -> Case:
    return traced_case(*CASES["S1"]())


@functools.cache
def gpt_case(length: int = LENGTH) -> Case:
    """One layer of a GPT with AdamW, in float64; returns the loss too."""
    config = GPTConfig(1, HIDDEN, 4, length, 12, dropout=0.1, dtype="float64")
    optimizer = adamw(AdamW(learning_rate=0.1))
    tokens = np.random.default_rng(0).integers(0, 12, (ROWS, length + 1)).astype("int32")
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}
    step = gpt.train_step(config, optimizer, seed=3)
    return traced_case(step, gpt.init(config, optimizer)(1), batch)


@functools.cache
def gpt_under(name: str, devices: int = 2, slots: int = 2) -> Forced:
    return forced(gpt_case(), name, devices, slots)


def num_parameters() -> int:
    return sum(k.startswith("state/params") for k in gpt_case().graph.name_of.values())


# ---------------------------------------------------------------------------------------- names
@pytest.mark.parametrize(
    ("name", "devices", "axes", "stages"),
    [
        ("dp2", 2, (("dp", 2),), 1),
        ("tp2dp4", 8, (("dp", 4), ("tp", 2)), 1),
        ("dp1tp2pp3", 6, (("tp", 2),), 3),
        ("zero1", 4, (("zero1", 4),), 1),
        ("zero3", 1, (), 1),
        ("dp4zero2", 4, (("zero2", 4),), 1),
        ("zero2tp2", 8, (("zero2", 4), ("tp", 2)), 1),
        ("tp2dp2zero3pp2", 8, (("zero3", 2), ("tp", 2)), 2),
        ("tp4sp", 4, (("tpsp", 4),), 1),
        ("zero1tp2sp", 6, (("zero1", 3), ("tpsp", 2)), 1),
        ("shard_largest", 4, (("largest", 4),), 1),
    ],
)
def test_names(name: str, devices: int, axes: Any, stages: int) -> None:
    found = parse_method(name).over(devices)
    assert (found.axes, found.stages, found.num_devices) == (axes, stages, devices)
    assert len(found.axis_names) == len(found.mesh_shape)


@pytest.mark.parametrize(
    ("name", "devices", "says"),
    [
        ("", 1, "no method ''"),
        ("zero", 2, "no method 'zero'.*zero1, zero2 or zero3"),
        ("zero4", 2, "no method"),
        ("zero24", 4, "no method"),
        ("dp2zero", 2, "no method"),
        ("shard_largest2", 2, "no method"),
        ("zero1zero2", 2, "each of .* once"),
        ("dp0", 2, "at least 1"),
        ("tp0zero1", 2, "at least 1"),
        ("dp2sp", 2, "write tp2sp"),
        ("tp2spsp", 2, "once"),
        ("dp2zero1", 4, "for 2 devices, there are 4"),
        ("zero1tp2", 3, "a multiple of 2 devices, there are 3"),
        ("dp4", 2, "for 4 devices, there are 2"),
    ],
)
def test_names_that_are_none(name: str, devices: int, says: str) -> None:
    with pytest.raises(PlanError, match=says):
        parse_method(name).over(devices)


# ----------------------------------------------------------------------------- acceptance cases
def test_s2_the_weight_update_is_split() -> None:
    """1 reduce_scatter, 1 all_gather, no all_reduce; every optimizer leaf with dims is split."""
    found = forced(mlp_case(), "zero2", 4, cost=AlphaBetaCost.alpa((4,)))
    assert found.kinds() == {("once", "reduce_scatter"): 1, ("once", "all_gather"): 1}
    assert all(s.split_axes for s in found.of_state("optimizer").values())
    assert not any(s.split_axes for s in found.of_state("params").values())
    assert len(found.of_state("optimizer")) == 24 and len(found.of_state("params")) == 12
    found.require_equal(2e-4)


def test_s4_parameters_are_split_too() -> None:
    """No all_reduce; every parameter and optimizer leaf with more than one dim is split."""
    found = forced(mlp_case(), "zero3", 4, cost=AlphaBetaCost.alpa((4,)))
    kinds = {kind for _, kind in found.kinds()}
    assert kinds == {"reduce_scatter", "all_gather"}
    assert all(s.split_axes for s in found.of_state("optimizer", "params").values())
    found.require_equal(2e-4)


# ------------------------------------------------------------------------- what each is, by parts
def test_zero_1_sums_behind_the_loop_and_gathers_once() -> None:
    found = gpt_under("zero1")
    assert found.kinds() == {("once", "reduce_scatter"): 1, ("once", "all_gather"): 1}
    assert not any(s.split_axes for s in found.of_state("params").values())
    assert all(s.split_axes for s in found.of_state("optimizer").values())
    found.require_equal(1e-10)


def test_zero_2_scatters_every_gradient_in_every_microbatch() -> None:
    found = gpt_under("zero2")
    assert found.kinds() == {
        ("loop", "reduce_scatter"): 2 * num_parameters(),
        ("once", "all_gather"): 1,
    }
    assert not any(s.split_axes for s in found.of_state("params").values())
    assert all(s.split_axes for s in found.of_state("optimizer").values())
    found.require_equal(1e-10)


def test_zero_3_gathers_in_the_loop_and_never_keeps_the_whole() -> None:
    found = gpt_under("zero3")
    kinds = found.kinds()
    assert set(kinds) == {("loop", "reduce_scatter"), ("loop", "all_gather")}
    assert kinds["loop", "reduce_scatter"] == 2 * num_parameters()
    # Every parameter forward, and again backward where its value is needed.
    assert 2 * num_parameters() < kinds["loop", "all_gather"] <= 4 * num_parameters()
    assert all(s.split_axes for s in found.of_state("params", "optimizer").values())
    found.require_equal(1e-10)


def test_each_level_of_zero_holds_less() -> None:
    names = ("dp2", "zero1", "zero2", "zero3")
    peaks = [gpt_under(m).peak_bytes for m in names]
    assert sorted(set(peaks), reverse=True) == peaks, peaks
    state = [gpt_under(m).state_bytes for m in names]
    # Parameters and two moments, float64: 3 parts, of which ZeRO-1 and -2 split two.
    assert state[1] == state[2] == pytest.approx(state[0] * (1 + 2 / 2) / 3, rel=1e-3)
    assert state[3] == pytest.approx(state[0] / 2, rel=1e-3)


def test_sequence_parallelism_begins_and_ends_blocks_otherwise() -> None:
    plain = gpt_under("tp2")
    split = gpt_under("tp2sp")
    # Two blocks, each with one sum forward and one backward, and one behind the head; 2 slots.
    assert plain.kinds()["loop", "all_reduce"] == 2 * 5
    assert ("loop", "reduce_scatter") not in plain.kinds()
    inside = {kind: n for (where, kind), n in split.kinds().items() if where == "loop"}
    assert set(inside) == {"reduce_scatter", "all_gather"}
    # Gathered where each of two blocks and the head begin, the logits behind them, and where the
    # gradients of the blocks begin; what a block began with is gathered again there.
    assert inside["reduce_scatter"] == 2 * 5 and inside["all_gather"] == 2 * 9
    assert split.peak_bytes < plain.peak_bytes
    weights = {k: str(s) for k, s in split.of_state("params/layers/0").items() if len(s.dims) > 1}
    for name, spec in weights.items():
        row_split = name.endswith(("attention/out/weight", "feed_forward/down/weight"))
        assert spec == ("S0R" if row_split else "RS0"), name
    for each in (plain, split):
        each.require_equal(1e-10)


def test_shard_largest_splits_each_parameter_along_its_largest_dim() -> None:
    found = gpt_under("shard_largest")
    shapes = {found.case.graph.name_of[v.id]: v.type.shape for v in found.case.graph.inputs}
    for name, spec in found.of_state("params").items():
        largest = shapes[name].index(max(shapes[name]))
        assert [bool(axes) for axes in spec.dims] == [
            d == largest for d in range(len(spec.dims))
        ], name
    found.require_equal(1e-10)


@pytest.mark.parametrize(
    ("name", "devices", "slots"),
    [("dp2tp2zero1", 4, 2), ("dp2tp2zero2", 4, 1), ("dp2tp2zero3", 4, 2), ("zero3tp2sp", 4, 2)],
)
def test_products(name: str, devices: int, slots: int) -> None:
    """Each collective is along the axis whose method asks for it."""
    found = gpt_under(name, devices, slots)
    level, sequence = int(name[name.index("zero") + 4]), name.endswith("sp")
    data, tensor = (0, 2), (0, 1)
    per_group = found.collectives()
    inside = {(kind, group) for where, kind, group in per_group if where == "loop"}
    of_tensor = {"all_gather", "reduce_scatter"} if sequence else {"all_reduce"}
    assert of_tensor <= {kind for kind, group in inside if group == tensor}
    wanted = {1: set(), 2: set(), 3: {"all_gather", "reduce_scatter"}}[level]
    assert {kind for kind, group in inside if group == data} == wanted
    once = {kind for where, kind, group in per_group if where == "once" and group == data}
    assert once == ({"reduce_scatter", "all_gather"} if level < 3 else set())
    assert all(0 in s.split_axes for s in found.of_state("optimizer").values())
    found.require_equal(1e-10)


@pytest.mark.parametrize(
    ("model", "name"),
    [("S17", "zero2"), ("S17", "zero3"), ("S20", "zero3"), ("S20", "shard_largest")],
)
def test_other_models(model: str, name: str) -> None:
    """Experts; convolutions and batch norm, whose statistics are summed whatever the method."""
    found = forced(traced_case(*CASES[model]()), name, 2)
    reduced = sum(n for (_, kind), n in found.kinds().items() if kind == "all_reduce")
    assert reduced == (6 if (model, name) == ("S20", "zero3") else 0)
    found.require_equal(5e-4)


# --------------------------------------------------------------------------- what does not divide
def odd_case() -> Case:
    """Leaves of 3 beside leaves of 4; plain gradient descent."""

    def step(state: Any, batch: Any) -> Any:
        def loss(p: Any, x: Any) -> Any:
            return np.mean((x @ p["even"] @ p["odd"] + p["bias"]) ** 2)

        _, g = value_and_grad(loss)(state, batch)
        return {k: state[k] - 0.1 * g[k] for k in state}

    r = np.random.default_rng(0)
    shapes = {"bias": (3,), "even": (4, 4), "odd": (4, 3)}
    return traced_case(step, {k: r.normal(size=s) for k, s in shapes.items()}, np.ones((8, 4)))


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3", "shard_largest"])
def test_a_leaf_that_does_not_divide_stays_whole(name: str) -> None:
    found = forced(odd_case(), name, 4, slots=2)
    split = {k.removeprefix("state/"): bool(s.split_axes) for k, s in found.of_state("").items()}
    held = name in ("zero3", "shard_largest")
    assert split == {"bias": False, "even": held, "odd": held}
    found.require_equal(1e-10)


@pytest.mark.parametrize(
    ("name", "devices", "says"),
    [
        ("zero1", 5, "zero1 has nothing to split over 5 devices.*of 5.*'state/bias'"),
        ("zero3", 5, "zero3 has nothing to split over 5 devices"),
        ("shard_largest", 5, "shard_largest has nothing to split over 5 devices.*state/bias"),
        ("tp5sp", 5, "nothing to split"),
        ("tp2sp", 2, "sequence parallelism over 2 devices.*no value has rows"),
    ],
)
def test_what_divides_nothing_is_named(name: str, devices: int, says: str) -> None:
    with pytest.raises(ShardingError, match=says):
        forced(odd_case(), name, devices)


def test_positions_that_do_not_divide_are_named() -> None:
    with pytest.raises(ShardingError, match="sequences have 3 positions"):
        forced(gpt_case(3), "tp2sp", 2)


# ------------------------------------------------------------------------------ whole trainings
@functools.cache
def one_rank() -> Any:
    return train("dp1", "float64", devices=cluster(1), steps=3)


@pytest.mark.parametrize(
    ("method", "ranks", "slots"),
    [("zero3", 2, 2), ("tp2sp", 2, 1), ("dp2zero1pp2", 4, 4)],
)
def test_trainings_are_those_of_one_rank(method: str, ranks: int, slots: int) -> None:
    reference = one_rank()
    found = train(method, "float64", devices=cluster(ranks), num_microbatches=slots, steps=3)
    np.testing.assert_allclose(found.losses, reference.losses, rtol=1e-10)
    for name, weight in reference.weights.items():
        np.testing.assert_allclose(found.weights[name], weight, rtol=1e-9, atol=1e-9)
    assert found.step is not None and found.step.plan.num_devices == ranks
