"""Mixed precision: what is 16-bit and what is not, in graphs, on the wire and in numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpc_alpa import nn
from hpc_alpa.arrays.host import HostArrays
from hpc_alpa.errors import DataError
from hpc_alpa.ir import TABLE, evaluate
from hpc_alpa.ir.evaluate import whole_call
from hpc_alpa.ir.graph import Eqn, Graph
from hpc_alpa.ir.types import numpy_dtype
from hpc_alpa.lower.program import KIND, Program
from hpc_alpa.models import AdamW, GPTConfig, WideResNetConfig, adamw, gpt
from hpc_alpa.models.precision import cast
from hpc_alpa.pytree import flatten
from hpc_alpa.sharding import strategies
from hpc_alpa.sharding.phases import Exchange, phases, runs_in_phases
from hpc_alpa.step import APPLY, LOOP, PREPARE, StepGraph, split_batch
from hpc_alpa.trace import trace
from hpc_alpa.transform.expand import expanded
from tests.helpers import toys
from tests.helpers.random_equations import random_equation
from tests.helpers.toys import SIZES, TOYS, one_rank, require_equal, text, train

SCRIPT = Path(toys.__file__)
NARROW = ["bfloat16", "float16"]
ROUNDING = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
KERNELS = sorted(name for name, row in TABLE.items() if row.wide)
FUSED = sorted(name for name, row in TABLE.items() if row.expand)


# -------------------------------------------------------------------------------------- operators
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("name", [*KERNELS, "conv", "dot_general", "gather"])
def test_what_sums_or_exponentiates_rounds_once(name: str, dtype: str) -> None:
    """Reference and kernel of 16-bit operands are those of the same numbers in float64, rounded."""
    arrays = HostArrays()
    for seed in range(10):
        drawn = random_equation(name, seed, dtype)
        (e,) = drawn.graph.eqns
        call = whole_call(e)
        wide = [x.astype("float64") if x.dtype.itemsize == 2 else x for x in drawn.arrays]
        want = np.asarray(TABLE[name].reference(whole_call(widened(e)), *wide), "float64")
        runs: list[Callable[..., Any]] = [partial(e.op.reference, call)]
        if e.op.kernel is not None:
            runs.append(partial(e.op.kernel, arrays, call))
        for run in runs:
            found = run(*drawn.arrays)
            assert found.dtype.name == e.output.type.dtype
            # A float32 sum of terms that cancel, and the rounding of the result.
            np.testing.assert_allclose(
                found.astype("float64"), want, rtol=1.01 * ROUNDING[dtype], atol=1e-5,
                err_msg=f"{e}",
            )  # fmt: skip


def widened(e: Eqn) -> Eqn:
    """The equation on float64 operands."""

    def wide(v: Any) -> Any:
        narrow = v.type.dtype in (*NARROW, "float32")
        return replace(v, type=v.type.with_dtype("float64")) if narrow else v

    return replace(e, inputs=tuple(map(wide, e.inputs)), output=wide(e.output))


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("name", FUSED)
def test_phases_of_16_bit_operands_exchange_float32(name: str, dtype: str) -> None:
    split = 0
    for seed in range(6):
        drawn = random_equation(name, seed, dtype)
        (e,) = drawn.graph.eqns
        (found,) = evaluate(expanded(e), drawn.arrays)
        (want,) = evaluate(drawn.graph, drawn.arrays)
        assert found.dtype == want.dtype
        np.testing.assert_allclose(
            found.astype("float64"), want.astype("float64"), rtol=2 * ROUNDING[dtype], atol=1e-4
        )
        for s in strategies(e, (2, 2)):
            if runs_in_phases(e, s):
                split += 1
                moved = [p.value.type for p in phases(e, s, (2, 2)) if isinstance(p, Exchange)]
                assert all(t.dtype == "float32" for t in moved)
    assert split


def test_a_cross_entropy_of_16_bit_logits_is_float32() -> None:
    logits = (np.random.default_rng(0).normal(size=(7, 11)) * 4).astype("float16")
    labels = np.arange(7)
    found = nn.cross_entropy(logits, labels)
    assert found.dtype == "float32"
    np.testing.assert_allclose(
        found, nn.cross_entropy(logits.astype("float64"), labels), rtol=1e-6, atol=1e-6
    )


# ------------------------------------------------------------------------------------------ graphs
def split_step(precision: str | None, **options: Any) -> StepGraph:
    config = GPTConfig(**SIZES, precision=precision)
    optimizer = adamw(AdamW())
    example = gpt.init(config, optimizer)(0), text(0)
    made = trace(gpt.train_step(config, optimizer, **options), example, ("state", "batch"))
    leaves = len([x for x in made.inputs if x.argument == 0])
    return split_batch(made.graph, made.graph.inputs[leaves:], 2)


def dtypes(graph: Graph, name: str, phase_of: tuple[str, ...]) -> set[str]:
    return {e.output.type.dtype for e in graph.eqns if e.op.name == name and e.phase in phase_of}


@pytest.mark.parametrize(
    ("precision", "options", "summed"),
    [
        ("float16", {}, "float16"),
        ("float16", {"gradients": "float32"}, "float32"),
        ("bfloat16", {}, "float32"),
        ("bfloat16", {"gradients": "bfloat16"}, "bfloat16"),
    ],
)
def test_what_is_16_bit_in_a_step(precision: str, options: dict[str, str], summed: str) -> None:
    graph = split_step(precision, **options).graph
    for name in ("dot_general", "layer_norm", "softmax", "gelu", "gather"):
        assert dtypes(graph, name, LOOP) == {precision}, name
    assert dtypes(graph, "cross_entropy", LOOP) == {"float32"}
    # Copies are made of the weights once a step, before what gathers them.
    copies = [e for e in graph.eqns if e.op.name == "cast" and e.output.type.dtype == precision]
    of_weights = [e for e in copies if e.inputs[0] in graph.inputs]
    config = GPTConfig(**SIZES)
    assert sum(e.output.type.size for e in of_weights) == config.num_parameters
    assert {e.phase for e in of_weights} == {PREPARE}
    sums = [e for e in graph.eqns if e.op.name == "accumulate" and e.output.type.shape]
    assert {e.output.type.dtype for e in sums} == {summed}
    assert sum(e.output.type.size for e in sums) == config.num_parameters
    # The update is that of the weights.
    moved = {e.output.type.dtype for e in graph.eqns if e.phase == APPLY and e.op.name == "sqrt"}
    assert moved == {"float32"}


def test_without_a_precision_nothing_is_cast() -> None:
    assert not [
        e for e in split_step(None).graph.eqns if e.op.name == "cast" and e.output.type.shape
    ]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"precision": "float8"}, "precision is 'float8', not bfloat16, float16, float32, float64"),
        (
            {"precision": "float64"},
            "precision float64 needs weights in float64, and dtype is float32",
        ),
    ],
)
def test_a_precision_that_weights_do_not_have(config: dict[str, str], says: str) -> None:
    with pytest.raises(DataError, match=says):
        GPTConfig(**SIZES, **config)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=says):
        WideResNetConfig((1,), 4, 2, 4, **config)  # type: ignore[arg-type]


def test_cast_leaves_integers_and_numbers() -> None:
    tree = {"w": np.ones(3, "float32"), "n": np.int32(3), "k": 5}
    found = cast(tree, "bfloat16")
    assert found["w"].dtype == numpy_dtype("bfloat16")
    assert (found["n"], found["k"]) == (tree["n"], tree["k"]) and type(found["k"]) is int
    assert cast(tree, None) is tree


# -------------------------------------------------------------------------------- plans and numbers
def moved_bytes(program: Program) -> dict[str, int]:
    """Bytes of a step's collectives, by kind."""
    found: dict[str, int] = {}
    for i in program.instructions:
        if kind := KIND.get(type(i)):
            found[kind] = found.get(kind, 0) + getattr(i, "nbytes", 0)
    return found


@pytest.mark.parametrize(
    ("name", "method", "slots"),
    [
        ("gpt-float16", "dp2tp2", 2), ("gpt-bfloat16", "tp2pp2", 2),
        ("gpt-float16-tied", "dp2pp2", 2),
        pytest.param("gpt-float16", "zero3", 1, marks=pytest.mark.slow),
        pytest.param("gpt-bfloat16", "dp2", 2, marks=pytest.mark.slow),
        pytest.param("gpt-float16", "pp2", 4, marks=pytest.mark.slow),
        pytest.param("gpt-bfloat16", "auto", 2, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_training_is_that_of_one_rank(name: str, method: str, slots: int) -> None:
    """The first step of float16 overflows; the scale falls, on every rank, until one does not."""
    precision = name.split("-")[1]
    want, found = one_rank(name, slots, 4), train(name, method, slots, steps=4)
    require_equal(found, want, rtol=8 * ROUNDING[precision], atol=4 * ROUNDING[precision])
    if precision == "float16":
        scales = [m["scale"] for m in found.metrics]
        assert scales[0] == 2.0**20 > scales[1] and scales[-1] >= 2.0**14
        skipped = sum(not np.isfinite(m["norm"]) for m in found.metrics)
        assert 1 <= skipped < 4 and int(found.states[-1]["state/step"]) == 4 - skipped
    elif "tied" not in name:
        losses = [m["loss"] for m in found.metrics]
        plain = [m["loss"] for m in one_rank("gpt-float32", slots, 4).metrics]
        np.testing.assert_allclose(losses, plain, rtol=2e-3)


def test_gradients_travel_in_16_bits_and_bfloat16_ones_in_32() -> None:
    count = GPTConfig(**SIZES).num_parameters
    for name, size in (("gpt-float16", 2), ("gpt-bfloat16", 4)):
        program = train(name, "dp2", 2, steps=1).step.programs[0]
        moved = moved_bytes(program)
        assert moved.keys() == {"all_reduce"}
        assert size * count <= moved["all_reduce"] <= size * count + 32  # and some numbers


def test_what_is_gathered_for_a_loop_is_16_bit() -> None:
    narrow, wide = (train(n, "zero3", 1, steps=1).step for n in ("gpt-float16", "gpt-float32"))
    a, b = (moved_bytes(s.programs[0]) for s in (narrow, wide))
    assert a["all_gather"] == b["all_gather"] / 2
    assert a["reduce_scatter"] == b["reduce_scatter"] / 2


@pytest.mark.parametrize(
    ("name", "method"),
    [("gpt-float16", "dp2"), pytest.param("gpt-bfloat16", "tp2", marks=pytest.mark.slow)],
)
def test_mpi_reduces_16_bit_floats_as_threads_do(
    mpiexec: Any, tmp_path: Path, name: str, method: str
) -> None:
    out = tmp_path / "out.npz"
    mpiexec(2, [str(SCRIPT), name, method, "2", str(out)], timeout=120)
    want, found = train(name, method, 2), dict(np.load(out))
    assert list(found.pop("losses")) == [m["loss"] for m in want.metrics]
    for path, x in want.states[-1].items():
        np.testing.assert_array_equal(found[path], x, err_msg=path)


def test_a_plain_step_is_a_traced_one() -> None:
    for name in ("gpt-float16", "gpt-bfloat16"):
        toy = TOYS[name]()
        state = toy.init(0)
        traced = trace(toy.step, (state, toy.batch(0)), ("state", "batch"))
        with np.errstate(over="ignore", invalid="ignore"):
            made, metrics = traced.evaluate(state, toy.batch(0))
            plain, same = toy.step(state, toy.batch(0))
        assert metrics["loss"] == pytest.approx(float(same["loss"]), rel=1e-6)
        for x, y in zip(flatten(made)[0], flatten(plain)[0], strict=True):
            assert np.asarray(x).dtype == np.asarray(y).dtype
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
