"""The reference interpreter that every transform, plan and kernel is tested against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hpc_alpa.errors import GraphError
from hpc_alpa.ir.graph import Eqn, Graph, Var
from hpc_alpa.ir.op import Call
from hpc_alpa.ir.types import numpy_dtype


def whole_call(e: Eqn) -> Call:
    """The call of an equation that runs unsplit."""
    rule = e.op.rule(e.input_types, e.output.type, e.params_dict)
    return Call.whole(e.params_dict, e.output.type, {f: 0 for f in rule.located})


def environment(graph: Graph, inputs: Sequence[Any]) -> dict[Var, np.ndarray]:
    """Every value of the graph, computed by the operators' references in plain NumPy."""
    if len(inputs) != len(graph.inputs):
        raise GraphError(f"the graph has {len(graph.inputs)} inputs, {len(inputs)} were given")
    env: dict[Var, np.ndarray] = {}
    for v, x in zip(graph.inputs, inputs, strict=True):
        a = np.asarray(x)
        if a.shape != v.type.shape:
            raise GraphError(f"input {graph.describe(v)} was given an array of shape {a.shape}")
        env[v] = a.astype(numpy_dtype(v.type.dtype), copy=False)
    for e in graph.eqns:
        env[e.output] = e.op.reference(whole_call(e), *(env[v] for v in e.inputs))
    return env


def evaluate(graph: Graph, inputs: Sequence[Any]) -> tuple[np.ndarray, ...]:
    """Run a graph with the operators' references; returns its outputs."""
    env = environment(graph, inputs)
    return tuple(env[v] for v in graph.outputs)
