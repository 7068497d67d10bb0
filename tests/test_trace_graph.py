"""What `trace` returns: inputs, weak numbers, static values, constants, layers, lines, digests."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import hpc_alpa.trace as ht
from hpc_alpa.errors import DataError
from hpc_alpa.ir import TensorType, parse, verify
from hpc_alpa.pytree import static_field
from tests.helpers.traced import require_same

RNG = np.random.default_rng(1)


@dataclass(frozen=True)
class State:
    params: dict[str, Any]
    step: int
    lr: float
    mode: str = static_field(default="train")


def state(step: int = 0, lr: Any = 0.1, mode: str = "train") -> State:
    params = {"w": RNG.normal(size=(4, 3)).astype(np.float32), "b": np.zeros(3, np.float32)}
    return State(params, step, lr, mode)


def loss(params: dict[str, Any], x: Any) -> Any:
    return np.mean(np.tanh(x @ params["w"] + params["b"]) ** 2)


def train_step(state: State, batch: Any) -> tuple[State, dict[str, Any]]:
    value, grads = ht.value_and_grad(loss)(state.params, batch)
    rate = state.lr / (1.0 + 0.1 * state.step) ** 0.5
    params = {k: v - rate * grads[k] for k, v in state.params.items()}
    metrics = {"loss": value, "twice": 2 * state.step, "name": state.mode, "one": 1.0}
    return State(params, state.step + 1, state.lr, state.mode), metrics


BATCH = RNG.normal(size=(8, 4)).astype(np.float32)


def traced(s: Any = None, batch: Any = BATCH) -> ht.Traced:
    return ht.trace(train_step, (s or state(), batch), ("state", "batch"))


def test_inputs_outputs_and_marks() -> None:
    t = traced()
    assert [(leaf.path, str(leaf.type), leaf.weak, leaf.argument) for leaf in t.inputs] == [
        ("state/params/b", "float32[3]", False, 0),
        ("state/params/w", "float32[4,3]", False, 0),
        ("state/step", "int64[]", True, 0),
        ("state/lr", "float64[]", True, 0),
        ("batch", "float32[8,4]", False, 1),
    ]
    assert [t.graph.name_of[v.id] for v in t.graph.inputs] == [leaf.path for leaf in t.inputs]
    assert [(leaf.path, str(leaf.type), leaf.weak) for leaf in t.outputs] == [
        ("0/params/b", "float32[3]", False),
        ("0/params/w", "float32[4,3]", False),
        ("0/step", "int64[]", True),
        ("0/lr", "float64[]", True),
        ("1/loss", "float32[]", False),
        ("1/one", "float64[]", True),
        ("1/twice", "int64[]", True),
    ]
    assert t.statics == (("state/mode", "train"),)
    verify(t.graph)
    assert parse(str(t.graph)) == t.graph
    by_id = {v.id: v for v in t.graph.values()}
    assert by_id[t.loss or 0] == t.graph.outputs[4]
    assert [t.graph.name_of[i] for i in t.differentiated] == ["state/params/b", "state/params/w"]
    assert [by_id[i or 0].type for i in t.gradients] == [by_id[i].type for i in t.differentiated]
    phases = {e.phase for e in t.graph.eqns}
    assert phases == {"forward", "backward", "apply"}
    assert all(e.origin is not None for e in t.graph.eqns if e.phase == "backward")


def test_the_same_untraced_traced_and_restored() -> None:
    s = state(step=3)
    require_same(train_step, s, BATCH)
    t = traced(s)
    made, metrics = t.evaluate(s, BATCH)
    assert made.step == 4 and type(made.step) is int and type(made.lr) is float
    assert metrics["name"] == "train" and made.mode == "train"
    # The new state fits the graph of the old one.
    assert t.signature.difference(ht.Signature.of((made, BATCH), t.signature.names)) is None


def test_numbers_do_not_matter_and_all_else_does() -> None:
    first = traced()
    assert first == traced(state(step=7, lr=1e-4)) and hash(first) == hash(traced(state(step=9)))
    names = first.signature.names

    def difference(s: Any, batch: Any = BATCH) -> str | None:
        return first.signature.difference(ht.Signature.of((s, batch), names))

    assert difference(state(step=7, lr=1e-4)) is None
    assert difference(state(mode="x")) == (
        "state/mode: the static value 'train' became the static value 'x'"
    )
    assert difference(state(lr=1)) == (
        "state/lr: a Python number float64[] became a Python number int64[]"
    )
    assert difference(state(lr=np.float32(1))) == (
        "state/lr: a Python number float64[] became float32[]"
    )
    assert difference(state(), BATCH[:4]) == "batch: float32[8,4] became float32[4,4]"
    assert difference(state(), BATCH.astype("f8")) == "batch: float32[8,4] became float64[8,4]"
    with pytest.raises(DataError, match=r"batch: float32\[8,4\] became float32\[4,4\]"):
        first.evaluate(state(), BATCH[:4])
    assert traced(state(mode="x")) != first


def test_descriptions_of_arrays_as_arguments() -> None:
    described = State(
        {"w": TensorType((4, 3), "float32"), "b": TensorType((3,), "float32")}, 0, 0.1
    )
    assert traced(described, TensorType((8, 4), "float32")) == traced()

    class Weak:
        shape, dtype, weak = (), np.dtype(np.int64), True

    assert traced(State(state().params, Weak(), 0.1)) == traced()  # type: ignore[arg-type]


def test_digests_are_the_same_in_every_process() -> None:
    script = (
        "import sys; sys.path.insert(0, '.')\n"
        "from tests import test_trace_graph as t; print(t.traced().digest, t.traced().graph.digest)"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    assert found == [traced().digest, traced().graph.digest]


def test_constant_results_and_passed_inputs() -> None:
    def function(x: Any, n: Any) -> Any:
        assert copy.deepcopy([x])[0] is copy.copy(x) or not isinstance(x, ht.TracedArray)
        return x, 3, 2.5, np.float32(1), np.zeros((2, 2)), n, None, np.arange(3), True, [x]

    x = np.ones((2, 3), np.float32)
    t = require_same(function, x, 5)
    assert t.graph.outputs[0] is t.graph.outputs[-1] is t.graph.inputs[0]
    assert {e.op.name for e in t.graph.eqns} == {"full"}
    assert [str(leaf.type) for leaf in t.outputs[1:5]] == [
        "int64[]", "float64[]", "float32[]", "float64[2,2]",
    ]  # fmt: skip
    assert [leaf.weak for leaf in t.outputs[1:6]] == [True, True, False, False, True]


def test_weak_numbers_follow_python() -> None:
    for n, r in ((3, 0.5), (-2, 1.5)):
        require_same(lambda n, r: (n + 1, n * n, n / 2, -n, abs(n), r**2, n - r, 2**r), n, r)
        require_same(lambda n, r: (n**-1, n**2, r * 3 + n, np.sqrt(r), np.add(n, 1)), n, r)
    for dtype in ("float16", "float32", "int32", "uint8"):
        x = np.ones(3, dtype)
        require_same(lambda x, n, r: (x * n, n - x, x + n / 2, np.maximum(x, n), r / x), x, 3, 0.5)
        require_same(lambda x, n: np.where(x > 0, x, n), x, 3)
        require_same(lambda x, n, r: n * r + x, x, 3, 0.5)
    b = np.ones(3, ml_dtypes.bfloat16)
    if (b * 2).dtype == b.dtype:  # older ml_dtypes make float32 of it
        require_same(lambda x, n: (x * n, n + x, x * 2), b, 3)


def test_layers_and_lines() -> None:
    def function(x: Any) -> Any:
        for i in range(2):
            with ht.layer(i):
                x = np.tanh(x)
        return x + 1

    def step(x: Any) -> Any:
        return ht.grad(lambda x: function(x).sum())(x)

    x = np.ones((2, 2))
    assert function(x).shape == (2, 2)  # outside a trace the marker does nothing
    t = ht.trace(function, (x,), ("x",))
    assert [e.layer for e in t.graph.eqns] == [0, 1, None, None]
    line = function.__code__.co_firstlineno
    assert [e.source for e in t.graph.eqns] == [
        f"test_trace_graph.py:{n}" for n in (line + 3, line + 3, line + 4, line + 4)
    ]
    backward = ht.trace(step, (x,), ("x",)).graph.eqns
    assert {e.layer for e in backward if e.phase == "backward" and e.op.name == "mul"} == {0, 1}


def test_unread_constants_are_dropped_and_values_are_computed_once() -> None:
    def function(x: Any) -> Any:
        unused = x + np.arange(3.0)
        del unused
        return np.exp(x) + np.exp(x), x * np.arange(4, 7.0), x * np.arange(4, 7.0)

    t = ht.trace(function, (np.ones((2, 3)),), ("x",))
    assert [leaf.path for leaf in t.inputs] == ["x", "captured/0"]
    assert [e.op.name for e in t.graph.eqns] == ["exp", "add", "broadcast", "mul"]
