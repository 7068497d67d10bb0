"""`value_and_grad` and `grad`, in a trace and on plain arrays."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from hpc_alpa.errors import TracingError
from hpc_alpa.pytree import TreeDef, flatten
from hpc_alpa.trace.array import TracedArray
from hpc_alpa.trace.dtypes import is_weak
from hpc_alpa.trace.position import position
from hpc_alpa.trace.recording import Differentiated, Recording, current
from hpc_alpa.trace.traced import Signature
from hpc_alpa.trace.tracing import record
from hpc_alpa.transform.vjp import gradient

Function = Callable[..., Any]


def value_and_grad(
    loss: Function, argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Function:
    """A function of the same arguments that returns `(loss, gradient)`.

    The gradient has the structure of argument `argnums` (a tuple of them for several). Floating
    leaves get theirs, integer leaves zeros, static values stay. With `has_aux` the loss function
    returns `(loss, aux)`, and the new one `((loss, aux), gradient)`. On plain arrays, outside a
    step, it runs by the reference interpreter.

    Raises:
        TracingError: a loss that is not a 0-d floating value, or a second gradient in one step.
    """
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    @functools.wraps(loss)
    def run(*args: Any, **kwargs: Any) -> Any:
        _require_arguments(numbers, args)
        trace = current()
        if trace is None:
            value, gradients = _on_plain_arrays(loss, numbers, has_aux, args, kwargs)
        else:
            value, gradients = _in_trace(trace, loss, numbers, has_aux, args, kwargs)
        return value, gradients[0] if isinstance(argnums, int) else tuple(gradients)

    return run


def grad(loss: Function, argnums: int | Sequence[int] = 0, has_aux: bool = False) -> Function:
    """As `value_and_grad`, and returns the gradient alone, or `(gradient, aux)`."""
    both = value_and_grad(loss, argnums, has_aux)

    @functools.wraps(loss)
    def run(*args: Any, **kwargs: Any) -> Any:
        value, gradients = both(*args, **kwargs)
        return (gradients, value[1]) if has_aux else gradients

    return run


def _require_arguments(numbers: Sequence[int], args: Sequence[Any]) -> None:
    for n in numbers:
        if not 0 <= n < len(args):
            raise TracingError(
                f"value_and_grad differentiates argument {n} of {len(args)} positional arguments; "
                "pass it by position"
            )


def _in_trace(
    trace: Recording,
    loss: Function,
    numbers: Sequence[int],
    has_aux: bool,
    args: Sequence[Any],
    kwargs: dict[str, Any],
) -> tuple[Any, list[Any]]:
    source = position()
    if trace.gradient_source is not None:
        raise TracingError(
            f"a second value_and_grad at {source}: a step differentiates one loss, here at "
            f"{trace.gradient_source}; add the losses and differentiate the sum"
        )
    trace.gradient_source = source
    chosen: list[list[TracedArray]] = []
    trees: list[TreeDef] = []
    for n in numbers:
        leaves, tree = flatten(args[n], f"argument {n}")
        chosen.append([_fresh(trace, leaf) for leaf in leaves])
        trees.append(tree)
    wanted = [x.value for leaves in chosen for x in leaves if x.type.is_floating]
    if not wanted:
        raise TracingError(f"value_and_grad at {source}: no leaf of argument {numbers} is floating")
    inner = list(args)
    for n, fresh, tree in zip(numbers, chosen, trees):
        inner[n] = tree.unflatten(fresh)
    builder = trace.builder
    start = len(builder.eqns)
    with builder.noted(phase="forward"):
        result = loss(*inner, **kwargs)
        value = trace.lift(_loss_of(result, has_aux, source))
    if value.shape or not value.type.is_floating:
        raise TracingError(
            f"value_and_grad at {source}: the loss is a {value.type}; reduce it to one floating "
            "number with .mean() or .sum()"
        )
    gradients = gradient(builder, builder.eqns[start:], value.value, wanted)
    trace.differentiated = Differentiated(value.value, tuple(wanted), gradients)
    found = dict(zip(wanted, gradients))
    made = [
        tree.unflatten(_gradient_of(trace, x, found) for x in leaves)
        for leaves, tree in zip(chosen, trees)
    ]
    return (value, result[1]) if has_aux else value, made


def _fresh(trace: Recording, leaf: Any) -> TracedArray:
    """A floating leaf gets a value of its own: other uses of the same value stay constant."""
    x = TracedArray(trace, trace.lift(leaf).value, is_weak(leaf))
    if not x.type.is_floating:
        return x
    v = trace.builder.new(x.type)
    trace.renamed[v] = x.value
    return TracedArray(trace, v, x.weak)


def _loss_of(result: Any, has_aux: bool, source: str) -> Any:
    if not has_aux:
        if isinstance(result, (tuple, list, dict)):
            raise TracingError(
                f"value_and_grad at {source}: the function returns a {type(result).__name__}, not "
                "a loss; pass has_aux=True for (loss, aux)"
            )
        return result
    if not isinstance(result, tuple) or len(result) != 2:
        raise TracingError(f"value_and_grad at {source}: with has_aux return (loss, aux)")
    return result[0]


def _gradient_of(trace: Recording, x: TracedArray, found: dict[Any, Any]) -> TracedArray:
    if x.value not in found:
        return TracedArray(trace, trace.full(x.shape, 0, x.type.dtype).value, x.weak)
    return TracedArray(trace, found[x.value], x.weak)


def _on_plain_arrays(
    loss: Function,
    numbers: Sequence[int],
    has_aux: bool,
    args: Sequence[Any],
    kwargs: dict[str, Any],
) -> tuple[Any, list[Any]]:
    """Trace the chosen arguments alone; the others stay plain, and may be anything."""

    def step(*chosen: Any) -> tuple[Any, list[Any]]:
        inner = list(args)
        for n, arg in zip(numbers, chosen):
            inner[n] = arg
        trace = current()
        assert trace is not None
        return _in_trace(trace, loss, numbers, has_aux, inner, kwargs)

    chosen = tuple(args[n] for n in numbers)
    signature = Signature.of(chosen, tuple(f"argument {n}" for n in numbers))
    value, gradients = record(step, signature, True, None).evaluate(*chosen)
    return value, list(gradients)
