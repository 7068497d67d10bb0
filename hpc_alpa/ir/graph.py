"""`Var`, `Eqn`, `Graph`: typed single-assignment equations, each with exactly one output.

A graph prints, parses (`parse(str(graph)) == graph`, see `ir.text`), compares and hashes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from hpc_alpa.ir.op import Op
from hpc_alpa.ir.types import TensorType


@dataclass(frozen=True, slots=True)
class Var:
    """A value of a graph, written `%7`."""

    id: int
    type: TensorType

    def __str__(self) -> str:
        return f"%{self.id}"


@dataclass(frozen=True, slots=True)
class Eqn:
    """`output = op(inputs, params)`.

    Attributes:
        phase: `forward` (inside a differentiated loss), `backward` (made by reverse mode), `apply`
            (everything else).
        origin: id of the forward value that a backward equation was derived from; None otherwise.
        layer: number of a user's layer marker, or None.
        source: `file.py:88` of the user's line, or "".
    """

    op: Op
    inputs: tuple[Var, ...]
    output: Var
    params: tuple[tuple[str, Any], ...] = ()
    phase: str = "apply"
    origin: int | None = None
    layer: int | None = None
    source: str = ""

    @property
    def input_types(self) -> tuple[TensorType, ...]:
        return tuple(v.type for v in self.inputs)

    @property
    def params_dict(self) -> dict[str, Any]:
        return dict(self.params)

    def __str__(self) -> str:
        from hpc_alpa.ir.text import format_eqn

        return format_eqn(self)


def freeze(params: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Parameters in the order and with the hashable values that an `Eqn` stores."""
    return tuple((k, _frozen(params[k])) for k in sorted(params))


def _frozen(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(map(_frozen, value))
    # NumPy's numbers would print as `np.int64(1)`; one NaN object, so that it equals itself.
    value = value.item() if isinstance(value, np.generic) else value
    return math.nan if isinstance(value, float) and math.isnan(value) else value


@dataclass(frozen=True)
class Graph:
    """Equations in an order in which they can run.

    Attributes:
        names: a name for inputs and for values that the user named, `params/ffn/w1`, by var id.
    """

    inputs: tuple[Var, ...]
    eqns: tuple[Eqn, ...]
    outputs: tuple[Var, ...]
    names: tuple[tuple[int, str], ...] = field(default=())

    @cached_property
    def producer(self) -> dict[Var, Eqn]:
        """The equation that makes each value that is not an input."""
        return {e.output: e for e in self.eqns}

    @cached_property
    def readers(self) -> dict[Var, tuple[Eqn, ...]]:
        """The equations that read each value, in order; outputs of the graph do not count."""
        found: dict[Var, list[Eqn]] = {v: [] for v in self.values()}
        for e in self.eqns:
            for v in dict.fromkeys(e.inputs):
                found[v].append(e)
        return {v: tuple(es) for v, es in found.items()}

    @cached_property
    def name_of(self) -> dict[int, str]:
        """`names` by var id."""
        return dict(self.names)

    def describe(self, v: Var) -> str:
        """How a message calls a value: its name and type, or its number and type."""
        name = self.name_of.get(v.id)
        return f"{name!r} ({v.type})" if name else f"{v} ({v.type})"

    def values(self) -> Iterable[Var]:
        """Inputs, then outputs of equations, in order."""
        yield from self.inputs
        for e in self.eqns:
            yield e.output

    @cached_property
    def digest(self) -> str:
        """sha256 of what the graph computes; lines of the user's file do not count."""
        from hpc_alpa.ir.text import format_graph

        return hashlib.sha256(format_graph(self, sources=False).encode()).hexdigest()

    def __str__(self) -> str:
        from hpc_alpa.ir.text import format_graph

        return format_graph(self)
