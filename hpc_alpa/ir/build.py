"""`Builder`: appends equations, and reads as the operators' names: `b.mul(ct, y)`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hpc_alpa.errors import GraphError
from hpc_alpa.ir.graph import Eqn, Graph, Var, freeze
from hpc_alpa.ir.op import op
from hpc_alpa.ir.types import TensorType

Operand = Var | int | float | bool


class Builder:
    """Collects inputs and equations of one graph.

    Attributes:
        phase, origin, layer, source: notes that each new equation gets (see `Eqn`).
    """

    def __init__(self, first_id: int = 0) -> None:
        self.inputs: list[Var] = []
        self.eqns: list[Eqn] = []
        self.names: dict[int, str] = {}
        self.phase = "apply"
        self.origin: int | None = None
        self.layer: int | None = None
        self.source = ""
        self._next = first_id
        self._constants: dict[tuple[Any, ...], Var] = {}

    def new(self, type: TensorType) -> Var:
        """A value that nothing makes yet, with the next number."""
        self._next += 1
        return Var(self._next - 1, type)

    def input(self, type: TensorType, name: str = "") -> Var:
        """One more input of the graph."""
        v = self.new(type)
        self.inputs.append(v)
        if name:
            self.names[v.id] = name
        return v

    def constant(self, value: Any, dtype: str) -> Var:
        """A 0-d value, made once per graph."""
        value = np.asarray(value).item()
        key = (type(value), str(value), dtype)
        if key not in self._constants:
            with self.noted(phase="apply", origin=None, layer=None):
                self._constants[key] = self.emit("full", type=TensorType((), dtype), value=value)
        return self._constants[key]

    def emit(
        self, name: str, *inputs: Operand, type: TensorType | None = None, **params: Any
    ) -> Var:
        """Append one equation. Python numbers become 0-d constants of the last value's dtype.

        Args:
            type: the output's, where the operator is told it (`broadcast`, `reshape`, `full`).

        Raises:
            GraphError: the operands, their types or the parameters do not fit the operator.
        """
        row = op(name)
        # The last: the first operand of `select` is a mask.
        dtype = next((x.type.dtype for x in reversed(inputs) if isinstance(x, Var)), None)
        args = tuple(x if isinstance(x, Var) else self._literal(name, x, dtype) for x in inputs)
        out = self.new(row.output_type(tuple(v.type for v in args), params, type))
        self.eqns.append(
            Eqn(row, args, out, freeze(params), self.phase, self.origin, self.layer, self.source)
        )
        return out

    def _literal(self, name: str, x: Any, dtype: str | None) -> Var:
        if dtype is None:
            raise GraphError(f"{name} needs at least one value beside the number {x!r}")
        return self.constant(x, dtype)

    def __getattr__(self, name: str) -> Callable[..., Var]:
        if name.startswith("_"):
            raise AttributeError(name)
        op(name)
        return lambda *inputs, **params: self.emit(name, *inputs, **params)

    @contextlib.contextmanager
    def noted(self, **notes: Any) -> Iterator[None]:
        """Equations made inside get these notes."""
        before = {k: getattr(self, k) for k in notes}
        for k, v in notes.items():
            setattr(self, k, v)
        try:
            yield
        finally:
            for k, v in before.items():
                setattr(self, k, v)

    def build(self, outputs: tuple[Var, ...]) -> Graph:
        """The graph of what was collected."""
        return Graph(
            tuple(self.inputs), tuple(self.eqns), outputs, tuple(sorted(self.names.items()))
        )
