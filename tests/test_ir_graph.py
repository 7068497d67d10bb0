"""Graphs as values: text form, checker, builder, interpreter."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest

import hpc_alpa.ops  # noqa: F401  (fills the table)
from hpc_alpa.errors import GraphError
from hpc_alpa.ir import (
    TABLE,
    Builder,
    Call,
    Eqn,
    Graph,
    TensorType,
    Var,
    environment,
    evaluate,
    freeze,
    op,
    parse,
    verify,
)
from tests.helpers.random_graphs import random_graph

F4 = TensorType((4,), "float32")


def product() -> Graph:
    b = Builder()
    w = b.input(TensorType((4, 8), "float32"), "params/w")
    x = b.input(TensorType((2, 4), "float32"), "batch/x")
    b.source, b.phase = "mlp.py:12", "forward"
    return b.build((b.dot_general(x, w, equation="ab,bc->ac"),))


# --------------------------------------------------------------------------------------- text form
def test_a_graph_prints_in_the_documented_form() -> None:
    assert str(product()) == (
        'graph(%0:float32[4,8] "params/w", %1:float32[2,4] "batch/x") {\n'
        "  %2:float32[2,8] = dot_general(%1, %0) {equation='ab,bc->ac'}  # forward at mlp.py:12\n"
        "} -> (%2)"
    )


@pytest.mark.parametrize("seed", range(30))
def test_a_random_graph_prints_parses_and_verifies(seed: int) -> None:
    graph = verify(random_graph(seed, 12).graph)
    again = parse(str(graph))
    assert again == graph
    assert again.digest == graph.digest
    assert str(again) == str(graph)


@pytest.mark.parametrize(
    "value",
    [0, -1, True, 1.5, -0.0, 1e-30, math.inf, -math.inf, math.nan, np.float32(2), np.int64(3)],
)
def test_every_number_survives_the_text_form(value: float) -> None:
    b = Builder()
    graph = b.build((b.full(type=F4, value=value),))
    assert parse(str(graph)) == graph
    np.testing.assert_array_equal(evaluate(parse(str(graph)), [])[0], np.full(4, value, "float32"))


@pytest.mark.parametrize("name", ["plain", 'a "quoted" name', "back\\slash", "two\nlines", "ünï/0"])
def test_every_name_survives_the_text_form(name: str) -> None:
    b = Builder()
    x = b.input(F4, name)
    y = b.exp(x)
    b.names[y.id] = name + "'s image"
    b.input(F4, name + " again")
    graph = b.build((y,))
    assert parse(str(graph)) == graph
    assert graph.describe(x) == f"{name!r} (float32[4])"


def test_parameters_are_stored_in_one_form() -> None:
    one = freeze({"perm": [np.int64(1), 0], "axis": np.int32(1), "name": "x"})
    assert one == (("axis", 1), ("name", "x"), ("perm", (1, 0)))
    assert all(type(v) in (int, str, tuple) for _, v in one)
    assert freeze({"value": float("nan")}) == freeze({"value": np.float32("nan")})


def test_the_digest_leaves_out_lines_of_the_users_file() -> None:
    graph = product()
    moved = replace(graph, eqns=(replace(graph.eqns[0], source="mlp.py:99"),))
    assert moved != graph and moved.digest == graph.digest
    other = replace(graph, eqns=(replace(graph.eqns[0], phase="backward"),))
    assert other.digest != graph.digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "starts with"),
        ("graph() {\n  nonsense\n} -> ()", "not an equation: nonsense"),
        ("graph() {\n  %1:float32[2] = exp(%0)  # apply\n} -> (%1)", "%0 is used before"),
        ("graph(%0:float32[2]) {\n  %1:float32[2] = expp(%0)  # apply\n} -> (%1)", "mean exp"),
        ("graph() {\n  %1:float32[2] = full() {value=f(1)}  # apply\n} -> (%1)", "do not parse"),
        ("graph() {\n  %1:float32[-2] = full() {value=1}  # apply\n} -> (%1)", "not of the form"),
        ("graph(%0:float32[2]) {\n} -> (%7)", "%7 is used before"),
    ],
)
def test_text_that_is_no_graph_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        parse(text)


@pytest.mark.parametrize("type", [TensorType((), "float32"), TensorType((1, 20), "bool"), F4])
def test_types_print_and_parse(type: TensorType) -> None:
    assert TensorType.parse(str(type)) == type
    assert TensorType.of(np.zeros(type.shape, type.dtype)) == type


# ------------------------------------------------------------------------------------------ checker
def eqn(name: str, inputs: tuple[Var, ...], output: Var, **params: object) -> Eqn:
    return Eqn(op(name), inputs, output, freeze(params))


X, Y, Z = Var(0, F4), Var(1, F4), Var(2, F4)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (Graph((X, X), (), (X,)), "%0 is listed twice"),
        (Graph((X,), (eqn("exp", (Y,), Z),), (Z,)), "%1 .* used before it is made, in equation 0"),
        (Graph((X,), (eqn("exp", (X,), X),), (X,)), "%0 is assigned twice, in equation 0"),
        (
            Graph((X,), (eqn("exp", (X,), Var(1, TensorType((5,), "float32"))),), ()),
            r"the output is float32\[4\], not float32\[5\], in equation 0",
        ),
        (
            Graph((Var(0, TensorType((3,), "float32")),), (eqn("exp", (X,), Y),), (Y,)),
            "used before",
        ),
        (Graph((X,), (eqn("add", (X,), Y),), (Y,)), "add takes 2 operands, not 1, in equation 0"),
        (Graph((X,), (eqn("transpose", (X,), Y),), (Y,)), "transpose does not take .*perm.*equat"),
        (Graph((X,), (), (Y,)), "output %1 .* is not made"),
    ],
)
def test_the_checker_refuses_a_malformed_graph(graph: Graph, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        verify(graph)


# ------------------------------------------------------------------------------------------ builder
def test_the_builder_makes_each_constant_once_and_keeps_kinds_apart() -> None:
    b = Builder()
    assert b.constant(1, "float32") == b.constant(1, "float32")
    assert b.constant(1, "float32") != b.constant(1, "float64")
    assert b.constant(0.0, "float32") != b.constant(-0.0, "float32")


def test_numbers_become_constants_of_the_values_dtype() -> None:
    b = Builder()
    x = b.input(F4)
    mask = b.compare(x, 0, direction="gt")
    y = b.select(mask, 1.0, x)
    assert y.type == F4
    (out,) = evaluate(b.build((y,)), [np.array([-1, 2, -3, 4], "float32")])
    np.testing.assert_array_equal(out, [-1, 1, -3, 1])
    with pytest.raises(GraphError, match="add needs at least one value beside the number 1"):
        b.add(1, 2)


def test_notes_hold_inside_a_block_only() -> None:
    b = Builder()
    x = b.input(F4)
    with b.noted(phase="backward", origin=3, layer=1):
        b.exp(x)
    b.exp(x)
    assert [(e.phase, e.origin, e.layer) for e in b.eqns] == [
        ("backward", 3, 1),
        ("apply", None, None),
    ]


def test_unknown_operators_have_near_names() -> None:
    with pytest.raises(GraphError, match="no operator 'softmx'; did you mean softmax"):
        Builder().softmx()
    assert pickle.loads(pickle.dumps(op("exp"))) is TABLE["exp"]


# -------------------------------------------------------------------------------------- interpreter
def test_the_interpreter_checks_its_inputs() -> None:
    graph = product()
    with pytest.raises(GraphError, match="has 2 inputs, 1 were given"):
        evaluate(graph, [np.zeros((4, 8))])
    with pytest.raises(GraphError, match=r"'params/w' \(float32\[4,8\]\) .* shape \(8, 4\)"):
        evaluate(graph, [np.zeros((8, 4)), np.zeros((2, 4))])


def test_zero_dimensional_results_are_arrays() -> None:
    b = Builder()
    x = b.input(F4)
    total = b.reduce_sum(x, dims=(0,))
    values = (total, b.exp(total), b.compare(total, 0, direction="gt"), b.argmax(x, dim=0))
    for v, a in environment(b.build(values), [np.ones(4)]).items():
        assert isinstance(a, np.ndarray), v
        assert (a.shape, a.dtype.name) == (v.type.shape, v.type.dtype)


def test_readers_and_producers() -> None:
    b = Builder()
    x = b.input(F4)
    y = b.mul(x, x)
    z = b.add(y, x)
    graph = b.build((z,))
    assert [e.output for e in graph.readers[x]] == [y, z]
    assert graph.readers[z] == ()
    assert graph.producer[y].op.name == "mul"


def test_a_whole_call_makes_the_whole_output() -> None:
    call = Call.whole({"a": 1}, F4, {"v": 0})
    assert (call.starts, call.extents, call.type) == ((0,), (4,), F4)
