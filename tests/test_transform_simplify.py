"""Merging, dropping and expanding keep what a graph computes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hpc_alpa.errors import GraphError
from hpc_alpa.ir import Builder, TensorType, evaluate, verify
from hpc_alpa.transform import drop_dead, merge_equal, simplify
from hpc_alpa.transform.expand import expanded
from tests.helpers.random_graphs import random_graph

F4 = TensorType((4,), "float64")


@pytest.mark.parametrize("seed", range(20))
def test_simplifying_keeps_the_outputs(seed: int) -> None:
    drawn = random_graph(seed, 12)
    few = replace(drawn.graph, outputs=drawn.graph.outputs[-2:])
    simple = verify(simplify(few))
    assert len(simple.eqns) <= len(few.eqns)
    assert simplify(simple) == simple
    for a, b in zip(evaluate(few, drawn.arrays), evaluate(simple, drawn.arrays), strict=True):
        np.testing.assert_array_equal(a, b)


def test_equal_equations_merge_within_a_phase_only() -> None:
    b = Builder()
    x = b.input(F4)
    one, two = b.exp(x), b.exp(x)
    with b.noted(phase="backward"):
        three = b.exp(x)
    y = b.add(b.add(one, two), three)
    merged = merge_equal(b.build((y,)))
    assert [e.op.name for e in merged.eqns] == ["exp", "exp", "add", "add"]
    assert {e.phase for e in merged.eqns if e.op.name == "exp"} == {"apply", "backward"}


def test_equations_with_other_parameters_or_types_do_not_merge() -> None:
    b = Builder()
    x = b.input(TensorType((4, 4), "float64"))
    values = (
        b.transpose(x, perm=(0, 1)),
        b.transpose(x, perm=(1, 0)),
        b.full(type=F4, value=1.0),
        b.full(type=F4.with_dtype("float32"), value=1.0),
    )
    assert len(merge_equal(b.build(values)).eqns) == 4


def test_dead_equations_are_dropped_and_inputs_stay() -> None:
    b = Builder()
    x, unused = b.input(F4), b.input(F4)
    b.exp(unused)
    y = b.tanh(x)
    graph = drop_dead(b.build((y,)))
    assert [e.output for e in graph.eqns] == [y]
    assert graph.inputs == (x, unused)


def test_an_expansion_keeps_the_notes_and_takes_each_operand_once() -> None:
    b = Builder()
    x = b.input(TensorType((2, 4), "float64"))
    with b.noted(phase="backward", origin=7, layer=3, source="a.py:1"):
        b.softmax_grad(x, x, scale=1.0, causal=False)
    graph = expanded(b.eqns[-1])
    assert len(graph.inputs) == 2
    notes = {(e.phase, e.origin, e.layer) for e in graph.eqns if e.inputs}
    assert notes == {("backward", 7, 3)}
    with pytest.raises(GraphError, match="exp stands for no graph"):
        b.exp(x)
        expanded(b.eqns[-1])
