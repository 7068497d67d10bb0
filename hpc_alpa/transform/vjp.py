"""Reverse mode: appends the equations of a gradient to a graph under construction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hpc_alpa.errors import TracingError
from hpc_alpa.ir.build import Builder
from hpc_alpa.ir.graph import Eqn, Var
from hpc_alpa.ir.types import TensorType


def gradient(b: Builder, eqns: Sequence[Eqn], loss: Var, wanted: Sequence[Var]) -> tuple[Var, ...]:
    """Gradient of a 0-d `loss` with respect to `wanted`, through `eqns` (those that made it).

    Every new equation is noted `backward`, with the forward value it came from as its origin.

    Raises:
        TracingError: when the loss is not a floating 0-d value.
    """
    if loss.type.shape or not loss.type.is_floating:
        raise TracingError(
            f"the gradient is taken of a 0-d floating loss, not of {loss.type}; "
            "reduce it with .sum() or .mean() first"
        )
    active = _active(eqns, wanted)
    cotangents: dict[Var, Var] = {}

    def accumulate(v: Var, ct: Var) -> None:
        if ct.type != v.type:
            ct = _fit(b, ct, v.type)
        cotangents[v] = b.add(cotangents[v], ct) if v in cotangents else ct

    with b.noted(phase="backward", origin=loss.id):
        if loss in active:
            cotangents[loss] = b.constant(1.0, loss.type.dtype)
        for e in reversed(eqns):
            if e.output not in cotangents or e.op.vjp is None:
                continue
            with b.noted(origin=e.output.id, layer=e.layer, source=e.source):
                parts = e.op.vjp(b, e, cotangents[e.output])
                for v, ct in zip(e.inputs, parts, strict=True):
                    if ct is not None and v in active:
                        accumulate(v, ct)
        zeros = {v: _zeros(b, v.type) for v in wanted if v not in cotangents}
    return tuple(cotangents.get(v) or zeros[v] for v in wanted)


def _active(eqns: Sequence[Eqn], wanted: Sequence[Var]) -> set[Var]:
    """Values that depend on what is differentiated, through operators that pass a gradient."""
    active = set(wanted)
    for e in eqns:
        floating = e.output.type.is_floating and e.op.vjp is not None
        if floating and any(v in active for v in e.inputs):
            active.add(e.output)
    return active


def _fit(b: Builder, ct: Var, type: TensorType) -> Var:
    """A 0-d operand was spread over the output: its cotangent is the sum; and the reverse."""
    if ct.type.ndim > type.ndim:
        ct = b.reduce_sum(ct, dims=tuple(range(ct.type.ndim)))
    elif ct.type.ndim < type.ndim:
        ct = b.broadcast(ct, type=type, dims=())
    return ct


def _zeros(b: Builder, type: TensorType) -> Any:
    return b.full(type=type, value=0.0)
