"""Equations at the border of the microbatch loop.

    enter       a value of the whole step, read in every slot; converted before it once a step
    slot        the rows of one slot of a value whose dim is split over time
    accumulate  the sum (or maximum) over the slots of a value that each slot has a term of
    stack       the rows of all slots, put together again

Inside the loop types are those of one slot.
"""

from __future__ import annotations

from typing import Any

from hpc_alpa.errors import GraphError
from hpc_alpa.ir.op import Call, Params, Types, define
from hpc_alpa.ir.types import TensorType
from hpc_alpa.ops.elementwise import elementwise_rule
from hpc_alpa.ops.movement import no_flops
from hpc_alpa.ops.rule import ALL, Rule, bind, names, side


def _slot_type(x: TensorType, params: Params) -> TensorType:
    dim, slots = params["dim"], params["slots"]
    if x.shape[dim] % slots:
        raise GraphError(f"dim {dim} of {x} does not divide into {slots} microbatches")
    return x.with_shape(tuple(n // slots if d == dim else n for d, n in enumerate(x.shape)))


def _stack_type(x: TensorType, params: Params) -> TensorType:
    dim, slots = params["dim"], params["slots"]
    return x.with_shape(tuple(n * slots if d == dim else n for d, n in enumerate(x.shape)))


def _time_rule(stacked: str) -> Any:
    """A device's rows are one run per slot, so to a device the slots are the minor factor."""

    def rule(inputs: Types, output: TensorType, params: Params) -> Rule:
        n = names(output.ndim)
        whole = side(f"({x} t^)" if d == params["dim"] else x for d, x in enumerate(n))
        sizes: tuple[tuple[str, int], ...] = (("t", params["slots"]),)
        few = output if stacked == "input" else inputs[0]
        sizes += tuple(zip(n, few.shape, strict=True))
        text = f"{whole} -> {side(n)}" if stacked == "input" else f"{side(n)} -> {whole}"
        return bind(text, inputs, output, ALL, ALL, sizes)

    return rule


def _single(c: Call, x: Any) -> Any:
    """The reference runs one slot only; the executor and the tests run the loop."""
    if c.params.get("slots", 1) != 1:
        raise GraphError(
            "a loop of several microbatches is run by the executor, not by a reference"
        )
    return x


def _same(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    return inputs[0]


for _name, _sums, _maxima in (
    ("accumulate", ALL, ()),
    ("accumulate_max", (), ALL),
    ("enter", ALL, ALL),
):
    define(
        _name,
        infer=_same,
        reference=_single,
        vjp=None,
        flops=no_flops,
        rule=elementwise_rule(_sums, _maxima),
        cost="view" if _name == "enter" else "elementwise",
        view=_name == "enter",
    )

define(
    "slot",
    infer=lambda inputs, params, want: _slot_type(inputs[0], params),
    reference=_single,
    vjp=None,
    flops=no_flops,
    rule=_time_rule("input"),
    cost="view",
    view=True,
)
define(
    "stack",
    infer=lambda inputs, params, want: _stack_type(inputs[0], params),
    reference=_single,
    vjp=None,
    flops=no_flops,
    rule=_time_rule("output"),
    cost="copy",
)
