"""Products summed over shared dims, as `dot_general`: `contract` and NumPy's functions by it.

Dims are labelled; a label in both operands and not in the output is contracted, one in a single
operand and not in the output is summed before, a unit dim that meets a longer one is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_index, normalize_axis_tuple

from hpc_alpa.errors import TracingError
from hpc_alpa.trace.array import TracedArray
from hpc_alpa.trace.dtypes import (
    common_dtype,
    descriptor,
    loop_dtypes,
    require_no_promotion,
)
from hpc_alpa.trace.recording import Recording, recording_of
from hpc_alpa.trace.shapes import broadcast_along, reshape_to, spread, transpose_to

Labels = Sequence[Hashable]
LETTERS = "abcdefghijklmnopqrstuvwxyz"


# -------------------------------------------------------------------------------- labelled products
def contract(x: TracedArray, xs: Labels, y: TracedArray, ys: Labels, out: Labels) -> TracedArray:
    """Sum of x * y over the labels that are not in `out`; both of one dtype."""
    if x.type.dtype == "bool":  # true where any product is
        counted = contract(x.recording.lift(x, "int64"), xs, x.recording.lift(y, "int64"), ys, out)
        return x.recording.lift(counted, "bool")
    x, xs, y, ys = *_without_units(x, xs, y, ys), *_without_units(y, ys, x, xs)
    x, xs = _summed(x, xs, {*ys, *out})
    y, ys = _summed(y, ys, {*xs, *out})
    if all(label in out for label in (*xs, *ys)):
        return _product(x, xs, y, ys, out)
    x, xs, y, ys = *_untransposed(x, xs), *_untransposed(y, ys)
    order = list(dict.fromkeys((*xs, *ys)))
    if len(order) > len(LETTERS):
        raise TracingError(f"a contraction of {len(order)} dims; {len(LETTERS)} have letters")
    letter = dict(zip(order, LETTERS))
    present = [label for label in out if label in letter]
    equation = f"{_text(xs, letter)},{_text(ys, letter)}->{_text(present, letter)}"
    made = x.recording.emit("dot_general", x, y, equation=equation)
    return _with_units(made, present, out)


def _text(labels: Labels, letter: dict[Hashable, str]) -> str:
    return "".join(letter[label] for label in labels)


def _without_units(
    x: TracedArray, xs: Labels, y: TracedArray, ys: Labels
) -> tuple[TracedArray, Labels]:
    """Leave out the unit dims of x whose label has more elements in y."""
    extents = dict(zip(ys, y.shape))
    kept = [k for k, label in enumerate(xs) if x.shape[k] != 1 or extents.get(label, 1) == 1]
    return reshape_to(x, [x.shape[k] for k in kept]), [xs[k] for k in kept]


def _untransposed(x: TracedArray, xs: Labels) -> tuple[TracedArray, Labels]:
    """The array before a transpose, with its labels: the equation says the order."""
    e = x.recording.producer(x)
    if e is None or e.op.name != "transpose":
        return x, xs
    labels = dict(zip(e.params_dict["perm"], xs))
    return TracedArray(x.recording, e.inputs[0]), [labels[d] for d in range(x.ndim)]


def _summed(x: TracedArray, xs: Labels, needed: set[Hashable]) -> tuple[TracedArray, Labels]:
    axes = tuple(k for k, label in enumerate(xs) if label not in needed)
    if not axes:
        return x, xs
    op = "reduce_max" if x.type.dtype == "bool" else "reduce_sum"
    return x.recording.emit(op, x, dims=axes), [c for c in xs if c in needed]


def _with_units(x: TracedArray, xs: Labels, out: Labels) -> TracedArray:
    extents = dict(zip(xs, x.shape))
    return reshape_to(x, [extents.get(label, 1) for label in out])


def _product(x: TracedArray, xs: Labels, y: TracedArray, ys: Labels, out: Labels) -> TracedArray:
    """Nothing is contracted: an elementwise product."""
    extents = {**dict(zip(xs, x.shape)), **dict(zip(ys, y.shape))}

    def aligned(v: TracedArray, labels: Labels) -> TracedArray:
        order = [label for label in out if label in labels]
        v = transpose_to(v, [list(labels).index(label) for label in order])
        if not order:
            return v
        return broadcast_along(v, [extents[c] for c in out], [list(out).index(c) for c in order])

    x, y = spread([aligned(x, xs), aligned(y, ys)])
    made = x.recording.emit("mul", x, y)
    return made if made.ndim == len(out) else broadcast_along(made, [extents[c] for c in out], ())


# ------------------------------------------------------------------------------------------ einsum
def einsum(
    *operands: Any, out: None = None, optimize: Any = False, dtype: Any = None
) -> TracedArray:
    if not operands or not isinstance(operands[0], str):
        raise TracingError("np.einsum: write the equation as a string, 'ab,bc->ac'")
    equation, arrays = operands[0].replace(" ", ""), operands[1:]
    arrays = tuple(x if isinstance(x, TracedArray) else np.asarray(x) for x in arrays)
    trace = recording_of(*arrays)
    result = np.dtype(dtype) if dtype is not None else common_dtype(arrays)
    if dtype is None:
        require_no_promotion(trace, "einsum", arrays, result)
    xs = [trace.lift(x, result) for x in arrays]
    labels, target = parse_equation(equation, [x.ndim for x in xs])
    made, made_labels = xs[0], tuple(labels[0])
    if len(xs) == 1:
        made, kept = _summed(made, made_labels, set(target))
        return transpose_to(made, [list(kept).index(c) for c in target])
    for k in range(1, len(xs)):
        later = {c for ls in labels[k + 1 :] for c in ls} | set(target)
        open_labels = tuple(c for c in dict.fromkeys((*made_labels, *labels[k])) if c in later)
        wanted = tuple(target) if k == len(xs) - 1 else open_labels
        made, made_labels = contract(made, made_labels, xs[k], labels[k], wanted), wanted
    return made


def parse_equation(equation: str, ndims: Sequence[int]) -> tuple[list[list[Hashable]], Labels]:
    """Labels of each operand and of the output; an ellipsis' dims are numbers, from the right."""
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if len(terms) != len(ndims):
        raise ValueError(f"einsum {equation!r} has {len(terms)} operands, not {len(ndims)}")
    hidden = [n - len(t.replace("...", "")) for t, n in zip(terms, ndims)]
    labels = [_expand(t, h, equation) for t, h in zip(terms, hidden)]
    most = max((h for t, h in zip(terms, hidden) if "..." in t), default=0)
    if arrow:
        return labels, _expand(right, most if "..." in right else 0, equation)
    every = [c for ls in labels for c in ls]
    once = sorted(c for c in every if isinstance(c, str) and every.count(c) == 1)
    return labels, [*range(-most, 0), *once]


def _expand(term: str, hidden: int, equation: str) -> list[Hashable]:
    head, dots, tail = term.partition("...")
    if hidden < 0 or (hidden and not dots):
        raise ValueError(f"einsum {equation!r}: the term {term!r} does not fit its operand")
    labels: list[Hashable] = [*head, *range(-hidden, 0), *tail]
    if len(set(labels)) != len(labels):
        raise TracingError(f"np.einsum {equation!r}: a letter twice in {term!r} has no operator")
    return labels


# ------------------------------------------------------------------------ functions by their labels
def _matmul_labels(n: int, m: int) -> tuple[Labels, Labels, Labels]:
    if n == 0 or m == 0:
        raise ValueError("matmul takes no 0-d operands; use *")
    batch = list(range(-max(n, m, 2) + 2, 0))
    xs: list[Hashable] = [*batch[len(batch) - max(n - 2, 0) :], *(["i"] if n > 1 else []), "k"]
    ys: list[Hashable] = [*batch[len(batch) - max(m - 2, 0) :], "k", *(["j"] if m > 1 else [])]
    return xs, ys, [*batch, *(["i"] if n > 1 else []), *(["j"] if m > 1 else [])]


def _dot_labels(n: int, m: int) -> tuple[Labels, Labels, Labels]:
    if n == 0 or m == 0:
        return [("x", d) for d in range(n)], [("y", d) for d in range(m)], [
            *(("x", d) for d in range(n)), *(("y", d) for d in range(m))
        ]  # fmt: skip
    xs: list[Hashable] = [*(("x", d) for d in range(n - 1)), "k"]
    ys: list[Hashable] = [("y", d) for d in range(m)]
    ys[max(m - 2, 0)] = "k"
    return xs, ys, [c for c in (*xs, *ys) if c != "k"]


def _inner_labels(n: int, m: int) -> tuple[Labels, Labels, Labels]:
    xs: list[Hashable] = [("x", d) for d in range(n)]
    ys: list[Hashable] = [("y", d) for d in range(m)]
    if n and m:
        xs[-1] = ys[-1] = "k"
    return xs, ys, [c for c in (*xs, *ys) if c != "k"]


def _vecdot_labels(n: int, m: int) -> tuple[Labels, Labels, Labels]:
    batch = list(range(-max(n, m) + 1, 0))
    return [*batch[len(batch) - n + 1 :], "k"], [*batch[len(batch) - m + 1 :], "k"], batch


def _outer_labels(n: int, m: int) -> tuple[Labels, Labels, Labels]:
    return ["i"], ["j"], ["i", "j"]


Labelling = Callable[[int, int], tuple[Labels, Labels, Labels]]


def _ufunc(ufunc: np.ufunc, labelling: Labelling) -> Callable[..., TracedArray]:
    def row(trace: Recording, a: Any, b: Any, dtype: Any = None) -> TracedArray:
        operands = [x if isinstance(x, TracedArray) else np.asarray(x) for x in (a, b)]
        descriptors = tuple(descriptor(x) for x in operands)
        dtypes = loop_dtypes(ufunc, descriptors, None if dtype is None else np.dtype(dtype))
        if dtype is None:
            require_no_promotion(trace, ufunc.__name__, operands, dtypes[-1])
        return _labelled([trace.lift(x, d) for x, d in zip(operands, dtypes)], labelling)

    return row


def _labelled(operands: Sequence[TracedArray], labelling: Labelling) -> TracedArray:
    x, y = operands
    xs, ys, out = labelling(x.ndim, y.ndim)
    _require_fit(x, xs, y, ys)
    return contract(x, xs, y, ys, out)


def _require_fit(x: TracedArray, xs: Labels, y: TracedArray, ys: Labels) -> None:
    extents = dict(zip(xs, x.shape))
    for label, n in zip(ys, y.shape):
        m = extents.get(label, n)
        # Only batch dims, which are numbers, may stretch.
        if m != n and not (isinstance(label, int) and 1 in (m, n)):
            raise ValueError(f"{x.type} and {y.type} do not fit: extents {m} and {n}")


def _function(name: str, labelling: Labelling, flat: bool = False) -> Callable[..., TracedArray]:
    def row(a: Any, b: Any, out: None = None) -> TracedArray:
        arrays = [x if isinstance(x, TracedArray) else np.asarray(x) for x in (a, b)]
        trace, dtype = recording_of(a, b), common_dtype(arrays)
        require_no_promotion(trace, name, arrays, dtype)
        xs = [trace.lift(x, dtype) for x in arrays]
        return _labelled([reshape_to(x, (x.size,)) if flat else x for x in xs], labelling)

    return row


def tensordot(a: Any, b: Any, axes: Any = 2) -> TracedArray:
    n, m = np.ndim(a), np.ndim(b)
    if isinstance(axes, int):
        axes = (tuple(range(n - axes, n)), tuple(range(axes)))
    left, right = normalize_axis_tuple(axes[0], n), normalize_axis_tuple(axes[1], m)
    if len(left) != len(right):
        raise ValueError(f"tensordot over {len(left)} and {len(right)} dims")
    xs: list[Hashable] = [("x", d) for d in range(n)]
    ys: list[Hashable] = [("y", d) for d in range(m)]
    for k, (i, j) in enumerate(zip(left, right)):
        xs[i] = ys[j] = ("k", k)
    contracted = {xs[i] for i in left}
    out = [c for c in (*xs, *ys) if c not in contracted]
    return _function("tensordot", lambda n, m: (xs, ys, out))(a, b)


def vecdot(x1: Any, x2: Any, /, *, axis: int = -1) -> TracedArray:
    d, e = normalize_axis_index(axis, np.ndim(x1)), normalize_axis_index(axis, np.ndim(x2))
    return _function("vecdot", _vecdot_labels)(np.moveaxis(x1, d, -1), np.moveaxis(x2, e, -1))


# alphabetical
UFUNCS: dict[np.ufunc, Callable[..., TracedArray]] = {
    getattr(np, name): _ufunc(getattr(np, name), labelling)
    for name, labelling in {"matmul": _matmul_labels, "vecdot": _vecdot_labels}.items()
}

ROWS: dict[str, Callable[..., TracedArray]] = {  # alphabetical
    "dot": _function("dot", _dot_labels),
    "einsum": einsum,
    "inner": _function("inner", _inner_labels),
    "linalg.matmul": lambda x1, x2, /: np.matmul(x1, x2),
    "linalg.outer": lambda x1, x2, /: _function("outer", _outer_labels)(x1, x2),
    "linalg.tensordot": lambda x1, x2, /, *, axes=2: tensordot(x1, x2, axes),
    "linalg.vecdot": vecdot,
    "outer": _function("outer", _outer_labels, flat=True),
    "tensordot": tensordot,
    "vdot": _function("vdot", _inner_labels, flat=True),
}
