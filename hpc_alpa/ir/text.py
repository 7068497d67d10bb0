"""The text form of graphs.

graph(%0:float32[4,8] "params/w", %1:float32[2,4] "batch/x") {
  %2:float32[2,8] = dot_general(%1, %0) {equation='ab,bc->ac'}  # forward mlp.py:12
} -> (%2)
"""

from __future__ import annotations

import ast
import json
import math
import re

from hpc_alpa.errors import GraphError
from hpc_alpa.ir.graph import Eqn, Graph, Var
from hpc_alpa.ir.op import op
from hpc_alpa.ir.types import TensorType

_EQN = re.compile(
    r"^\s*%(\d+):(\S+) = (\w+)\(([^)]*)\)(?: \{(.*)\})?  # (\w+)"
    r"(?: of %(\d+))?(?: layer (\d+))?(?: at (.*))?$"
)
_NAME = r'"(?:[^"\\]|\\.)*"'
_INPUT = re.compile(rf"%(\d+):([a-z0-9]+\[[0-9,]*\])(?: ({_NAME}))?")
_NAMED = re.compile(rf"^\s*%(\d+) is ({_NAME})$")


def format_eqn(e: Eqn, sources: bool = True) -> str:
    """One line; `sources` adds the line of the user's file."""
    params = ", ".join(f"{k}={_literal(v)}" for k, v in e.params)
    notes = e.phase
    notes += f" of %{e.origin}" if e.origin is not None else ""
    notes += f" layer {e.layer}" if e.layer is not None else ""
    notes += f" at {e.source}" if e.source and sources else ""
    args = ", ".join(map(str, e.inputs))
    body = f"{e.output}:{e.output.type} = {e.op.name}({args})" + (
        f" {{{params}}}" if params else ""
    )
    return f"{body}  # {notes}"


def _literal(value: object) -> str:
    if isinstance(value, tuple):
        return "(" + "".join(f"{_literal(v)}, " for v in value).removesuffix(" ") + ")"
    # The literal 1e999 reads back as infinity; `inf` would be a name.
    return repr(value).replace("inf", "1e999") if isinstance(value, float) else repr(value)


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)


def format_graph(g: Graph, sources: bool = True) -> str:
    """The form that `parse` reads; `sources` adds the lines of the user's file."""

    def show(v: Var) -> str:
        name = g.name_of.get(v.id)
        return f"{v}:{v.type}" + (f" {_quoted(name)}" if name else "")

    head = "graph(" + ", ".join(map(show, g.inputs)) + ") {"
    inputs = {v.id for v in g.inputs}
    named = [f"  %{i} is {_quoted(n)}" for i, n in g.names if i not in inputs]
    lines = [f"  {format_eqn(e, sources)}" for e in g.eqns]
    return "\n".join([head, *lines, *named, "} -> (" + ", ".join(map(str, g.outputs)) + ")"])


def parse(text: str) -> Graph:
    """Read the form that `str(graph)` prints; raises `GraphError` with the line."""
    lines = text.strip().splitlines()
    if len(lines) < 2 or not lines[0].startswith("graph(") or not lines[-1].startswith("} -> ("):
        raise GraphError("a graph starts with 'graph(' and ends with '} -> (...)'")
    values: dict[int, Var] = {}
    names: list[tuple[int, str]] = []
    inputs = []
    for number, type_text, name in _INPUT.findall(lines[0]):
        values[int(number)] = Var(int(number), TensorType.parse(type_text))
        inputs.append(values[int(number)])
        if name:
            names.append((int(number), json.loads(name)))

    def find(word: str, line: str) -> Var:
        try:
            return values[int(word.strip().lstrip("%"))]
        except (KeyError, ValueError):
            raise GraphError(
                f"{word.strip()} is used before it is made, in: {line.strip()}"
            ) from None

    eqns = []
    for line in lines[1:-1]:
        if match := _NAMED.match(line):
            names.append((int(match[1]), json.loads(match[2])))
            continue
        match = _EQN.match(line)
        if match is None:
            raise GraphError(f"not an equation: {line.strip()}")
        number, type_text, name, args, params, phase, origin, layer, source = match.groups()
        out = Var(int(number), TensorType.parse(type_text))
        eqns.append(
            Eqn(
                op(name),
                tuple(find(w, line) for w in args.split(",") if w.strip()),
                out,
                _parse_params(params or "", line),
                phase,
                None if origin is None else int(origin),
                None if layer is None else int(layer),
                source or "",
            )
        )
        values[out.id] = out
    outputs = tuple(find(w, lines[-1]) for w in lines[-1][6:-1].split(",") if w.strip())
    return Graph(tuple(inputs), tuple(eqns), outputs, tuple(sorted(names)))


def _parse_params(text: str, line: str) -> tuple[tuple[str, object], ...]:
    if not text:
        return ()
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        assert isinstance(call, ast.Call)
        return tuple((k.arg or "", _value(k.value)) for k in call.keywords)
    except (SyntaxError, ValueError):
        raise GraphError(f"parameters do not parse, in: {line.strip()}") from None


def _value(node: ast.expr) -> object:
    if isinstance(node, ast.Name) and node.id == "nan":
        return math.nan
    if isinstance(node, ast.Tuple):
        return tuple(map(_value, node.elts))
    return ast.literal_eval(node)
