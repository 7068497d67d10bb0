"""`trace`: run a function on traced arrays, twice, and keep the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

import hpc_alpa.ops  # noqa: F401  fills the operator table
from hpc_alpa.errors import DataError, TracingError
from hpc_alpa.ir import Graph, Var, verify
from hpc_alpa.ir.text import format_eqn
from hpc_alpa.pytree import TreeDef, flatten
from hpc_alpa.trace.array import TracedArray
from hpc_alpa.trace.protocol import HANDLERS
from hpc_alpa.trace.recording import CAPTURED_LIMIT, Recording, recording
from hpc_alpa.trace.traced import InputLeaf, OutputLeaf, Signature, Traced, leaf_type
from hpc_alpa.transform.simplify import drop_dead, merge_equal

Function = Callable[..., Any]


def trace(
    function: Function,
    args: tuple[Any, ...],
    names: tuple[str, ...],
    *,
    allow_float64: bool = False,
) -> Traced:
    """The graph of `function(*args)`.

    Args:
        args: trees of example values: arrays, numbers, or anything with a shape and a dtype.
        names: a name for each argument, the first part of its leaves' paths: ("state", "batch").
        allow_float64: let a 16- or 32-bit traced value become float64 implicitly, as NumPy does.

    Raises:
        TracingError: for what a graph cannot hold, with file, line and what to write instead; also
            when two traces differ (np.random, time, a counter).
    """
    signature = Signature.of(args, names)
    first, second = (record(function, signature, allow_float64, CAPTURED_LIMIT) for _ in range(2))
    _require_same(first, second)
    return first


def record(
    function: Function, signature: Signature, allow_float64: bool, captured_limit: int | None
) -> Traced:
    """Trace once."""
    made = Recording(HANDLERS, allow_float64, captured_limit)
    arrays: Iterator[TracedArray] = iter(
        [
            TracedArray(made, made.builder.input(leaf.type, leaf.path), leaf.weak)
            for leaf in signature.leaves
        ]
    )
    args = [
        tree.unflatten(next(arrays) for _ in range(tree.num_leaves)) for tree in signature.trees
    ]
    with recording(made):
        result = function(*args)
        out_tree, outputs, values = _outputs(made, result)
    return _finish(made, signature, out_tree, outputs, values)


def _outputs(made: Recording, result: Any) -> tuple[TreeDef, tuple[OutputLeaf, ...], list[Var]]:
    """Structure, types and values of a result; numbers and plain arrays become constants."""
    try:
        leaves, out_tree = flatten(result, "the result")
    except DataError as error:
        raise TracingError(str(error)) from error
    described, values = [], []
    for path, leaf in zip(out_tree.paths(), leaves):
        if isinstance(leaf, TracedArray):
            x, weak = made.own(leaf), leaf.weak
        else:
            weak = leaf_type(leaf, path or "the result")[1]
            x = made.lift(leaf)
        described.append(OutputLeaf(path, x.type, weak))
        values.append(x.value)
    return out_tree, tuple(described), values


def _finish(
    made: Recording,
    signature: Signature,
    out_tree: TreeDef,
    outputs: tuple[OutputLeaf, ...],
    values: list[Var],
) -> Traced:
    """Simplify, and follow the loss and the gradients to what they have become."""
    d = made.differentiated
    followed = (d.loss, *d.wanted, *d.gradients) if d else ()
    graph = merge_equal(_renamed(made.builder.build((*values, *followed)), made.renamed))
    kept = graph.outputs[: len(values)]
    followed = graph.outputs[len(values) :]
    graph = drop_dead(replace(graph, outputs=kept))
    graph, captured = _without_unread(graph, made.captured)
    verify(graph)
    inputs = (
        *signature.leaves,
        *(InputLeaf(f"captured/{k}", v.type) for k, v in enumerate(captured)),
    )
    names = tuple((v.id, leaf.path) for v, leaf in zip(graph.inputs, inputs))
    traced = Traced(
        replace(graph, names=names), signature, out_tree, inputs, outputs,
        tuple(made.captured[v] for v in captured),
    )  # fmt: skip
    if d is None:
        return traced
    alive = set(graph.values())
    ids = [v.id if v in alive else None for v in followed]
    num = len(d.wanted)
    return replace(
        traced,
        loss=ids[0],
        differentiated=tuple(v.id for v in followed[1 : num + 1]),
        gradients=tuple(ids[num + 1 :]),
    )


def _renamed(graph: Graph, names: dict[Var, Var]) -> Graph:
    """Replace the values that stand for others."""

    def follow(v: Var) -> Var:
        while v in names:
            v = names[v]
        return v

    eqns = tuple(replace(e, inputs=tuple(map(follow, e.inputs))) for e in graph.eqns)
    return replace(graph, eqns=eqns, outputs=tuple(map(follow, graph.outputs)))


def _without_unread(graph: Graph, captured: dict[Var, np.ndarray]) -> tuple[Graph, tuple[Var, ...]]:
    """Drop the captured inputs that nothing reads; the others come after the arguments."""
    read = {v for e in graph.eqns for v in e.inputs} | set(graph.outputs)
    kept = tuple(v for v in captured if v in read)
    arguments = tuple(v for v in graph.inputs if v not in captured)
    return replace(graph, inputs=(*arguments, *kept)), kept


def _require_same(first: Traced, second: Traced) -> None:
    if first.digest == second.digest:
        return
    where = _first_difference(first, second)
    raise TracingError(
        f"the function gives another graph when it is traced again: {where}. np.random, time or a "
        "counter makes such values once, while tracing: use hpc_alpa.random, or pass the value as "
        "an argument"
    )


def _first_difference(first: Traced, second: Traced) -> str:
    for a, b in zip(first.graph.eqns, second.graph.eqns):
        if format_eqn(a, sources=False) != format_eqn(b, sources=False):
            return f"{a} became {b}"
    for k, (x, y) in enumerate(zip(first.captured, second.captured)):
        if not np.array_equal(x, y):
            return f"the values of the plain array captured/{k}, {_readers(first, k)}, changed"
    if first.out_tree != second.out_tree:
        return f"the result, {first.out_tree}, became {second.out_tree}"
    return f"{len(first.graph.eqns)} equations became {len(second.graph.eqns)}"


def _readers(traced: Traced, k: int) -> str:
    v = traced.graph.inputs[len(traced.signature.leaves) + k]
    lines: Sequence[str] = [e.source for e in traced.graph.readers[v] if e.source]
    return f"read at {lines[0]}" if lines else "a result"
