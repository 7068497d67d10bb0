"""Wrong rules on purpose: the fuzz must see each of them."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hpc_alpa.ir import TABLE, Builder, Call, TensorType, environment
from hpc_alpa.ops.elementwise import elementwise_rule
from hpc_alpa.ops.reduction import spread
from hpc_alpa.ops.rule import bind
from hpc_alpa.sharding import Interior, ShardingSpec, local_call, phases
from hpc_alpa.transform import gradient
from tests.helpers import simulated_mesh
from tests.helpers.fuzz import Fuzz, Tie, is_tame
from tests.helpers.random_graphs import random_graph

# The package has functions of the same names, so the modules are taken from the interpreter.
STRATEGIES = sys.modules["hpc_alpa.sharding.strategies"]
PHASES = sys.modules["hpc_alpa.sharding.phases"]

BOTH, ONE, FIRST = ((0, 1),), ((0,), (1,)), ((0,),)
Patch = pytest.MonkeyPatch


def row(name: str, **columns: Any) -> Callable[[Patch], None]:
    """Columns of an operator's row, exchanged."""
    return lambda patch: patch.setitem(TABLE, name, replace(TABLE[name], **columns))


def linear(name: str, sums: Any = (), maxima: Any = ()) -> Callable[[Patch], None]:
    return row(name, rule=elementwise_rule(sums, maxima))


def marked(name: str, old: str, new: str) -> Callable[[Patch], None]:
    """The marks of an operator's rule, changed."""
    original = TABLE[name].rule

    def rule(inputs: Any, output: Any, params: Any) -> Any:
        right = original(inputs, output, params)
        sizes = tuple(right.sizes.items()) if "(" in right.text else ()
        changed = re.sub(rf"(?<=[\w@]){re.escape(old)}", new, right.text)
        return bind(changed, inputs, output, right.sums, right.maxima, sizes)

    return row(name, rule=rule)


def _minor_factors_split(patch: Patch) -> None:
    def spec(dims: Any, partial: Any, axes: Any, rule: Any, mesh: Any) -> ShardingSpec | None:
        split = tuple(tuple(a for f in dim for a in axes[f]) for dim in dims)
        kinds = set(partial.values())
        if len(kinds) > 1:
            return None
        return ShardingSpec(split, tuple(sorted(partial)), kinds.pop() if kinds else "")

    patch.setattr(STRATEGIES, "_spec", spec)


def _sums_and_maxima_mix(patch: Patch) -> None:
    original = STRATEGIES._spec

    def spec(dims: Any, partial: Any, axes: Any, rule: Any, mesh: Any) -> ShardingSpec | None:
        first = dict.fromkeys(partial, next(iter(partial.values()), ""))
        return original(dims, first, axes, rule, mesh)

    patch.setattr(STRATEGIES, "_spec", spec)


def _calls_without(**fields: Any) -> Callable[[Patch], None]:
    """Kernels are not told where their tile lies."""

    def call(e: Any, strategy: Any, mesh: Any, coords: Any) -> Call:
        right = local_call(e, strategy, mesh, coords)
        if "offsets" in fields:
            return replace(right, offsets=dict.fromkeys(right.offsets, 0))
        return replace(right, starts=(0,) * len(right.starts))

    return lambda patch: patch.setattr(simulated_mesh, "local_call", call)


def _every_copy_kept(patch: Patch) -> None:
    original = simulated_mesh.SimulatedMesh.move

    def move(self: Any, held: Any, m: Any) -> Any:
        if m.kind == "to_partial_sum":
            return replace(held, spec=m.target)
        return original(self, held, m)

    patch.setattr(simulated_mesh.SimulatedMesh, "move", move)


def _no_exchange(patch: Patch) -> None:
    def without(e: Any, strategy: Any, mesh: Any) -> Any:
        return [s for s in phases(e, strategy, mesh) if isinstance(s, Interior)]

    patch.setattr(simulated_mesh, "phases", without)


def _max_vjp_by_comparison(b: Any, e: Any, ct: Any) -> Any:
    (x,), dims = e.inputs, e.params_dict["dims"]
    mask = b.compare(x, spread(b, e.output, x, dims), direction="ge")
    return (b.select(mask, spread(b, ct, x, dims), 0.0),)


# name: (what is wrong, an operator that a graph must have to be worth running)
MUTATIONS: dict[str, tuple[Callable[[Patch], None], str]] = {
    "tanh passes sums": (linear("tanh", FIRST, FIRST), "tanh"),
    "log passes maxima": (linear("log", (), FIRST), "log"),
    "neg passes maxima": (linear("neg", FIRST, FIRST), "neg"),
    "max passes sums": (linear("max", BOTH, BOTH), "max"),
    "mul of two partial sums": (linear("mul", BOTH), "mul"),
    "div by a partial sum": (linear("div", ONE), "div"),
    "add of a partial and a whole sum": (linear("add", ONE, ONE), "add"),
    "add of two partial maxima": (linear("add", BOTH, BOTH), "add"),
    "sub passes maxima of the second": (linear("sub", BOTH, ONE), "sub"),
    "select by a partial sum's branch only": (linear("select", ((1,),)), "select"),
    "reduce_max splits into sums": (marked("reduce_max", ">", "+"), "reduce_max"),
    "reduce_min splits into maxima": (marked("reduce_min", "^", ">"), "reduce_min"),
    "cumsum splits along its dim": (marked("cumsum", "^", ""), "cumsum"),
    "max_mask splits along its dims": (marked("max_mask", "^", ""), "max_mask"),
    "pick takes the maximum of the tiles": (marked("pick", "+", ">"), "pick"),
    "minor factors of a group split": (_minor_factors_split, "reshape"),
    "sums and maxima mix in one value": (_sums_and_maxima_mix, "reduce_max"),
    "replicated to partial keeps every copy": (_every_copy_kept, "add"),
    "indices ignore the tile's offset": (_calls_without(offsets=0), "gather"),
    "counters ignore the tile's start": (_calls_without(starts=0), "iota"),
    "statistics are not exchanged": (_no_exchange, "softmax"),
}


@pytest.fixture
def fresh_caches() -> Iterator[None]:
    """Strategies are cached by operator; a patched function must not leave its answers behind."""

    def clear() -> None:
        for module in (STRATEGIES, PHASES):
            for value in vars(module).values():
                if hasattr(value, "cache_clear"):
                    value.cache_clear()

    clear()
    yield
    clear()


def outcomes(needed: str, graphs: int) -> Iterator[str]:
    """What became of random cases: `right`, `wrong` or `tie`."""
    fuzz = Fuzz(random.Random(0))
    run = 0
    for seed in range(10_000):
        drawn = random_graph(seed, random.Random(seed).randint(4, 10))
        if needed not in {e.op.name for e in drawn.graph.eqns}:
            continue
        run += 1
        if run > graphs:
            return
        with np.errstate(all="ignore"):
            values = environment(drawn.graph, drawn.arrays)
            if not is_tame(values):
                continue
            for mesh in ((2,), (2, 2)):
                fuzz.rng = random.Random(f"{seed} {mesh}")
                try:
                    fuzz.simulate(drawn.graph, values, mesh)
                    yield "right"
                except Tie:
                    yield "tie"
                except AssertionError:
                    yield "wrong"


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_rule_is_caught(name: str, monkeypatch: Patch, fresh_caches: None) -> None:
    mutate, needed = MUTATIONS[name]
    mutate(monkeypatch)
    assert "wrong" in outcomes(needed, 60), f"no case out of 120 saw that {name}"


def test_right_rules_are_not_caught(fresh_caches: None) -> None:
    assert "wrong" not in set(outcomes("reduce_max", 12))


def maxima_of_partial_sums() -> Iterator[str]:
    """The gradient of row maxima of a value that lies on four devices as terms of a sum."""
    fuzz = Fuzz(random.Random(0))
    fuzz.spec = lambda v, mesh: ShardingSpec.parse("RR+P0")  # type: ignore[method-assign]
    b = Builder()
    x = b.input(TensorType((8, 8), "float64"))
    top = b.reduce_max(x, dims=(1,))
    loss = b.reduce_sum(top, dims=(0,))
    (g,) = gradient(b, tuple(b.eqns), loss, [x])
    graph = b.build((g,))
    values = environment(graph, [np.random.default_rng(0).normal(size=(8, 8))])
    for _ in range(60):
        try:
            fuzz.simulate(graph, values, (4,))
            yield "right"
        except Tie:
            yield "tie"


def test_the_gradient_of_a_maximum_never_hangs_on_the_last_bit(
    monkeypatch: Patch, fresh_caches: None
) -> None:
    """Two conversions of one partial x differ in the last bit, and x == max(x) is nowhere true."""
    assert set(maxima_of_partial_sums()) == {"right"}
    row("reduce_max", vjp=_max_vjp_by_comparison)(monkeypatch)
    assert "tie" in maxima_of_partial_sums()
