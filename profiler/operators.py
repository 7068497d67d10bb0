"""Operators as the executor runs them: the row's kernel on the backend, else its reference.

Sizes run from one page to far beyond the caches; results are new arrays each time, as in a step,
and the last few are kept alive. Bytes are counted as `cost.Work` counts them: every operand once
and the result once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hpc_alpa.cost import parameters
from hpc_alpa.cost.classes import CLASSES
from hpc_alpa.ir.op import Call, op
from hpc_alpa.ir.types import TensorType, numpy_dtype
from hpc_alpa.profiler.arena import sets_of
from hpc_alpa.profiler.point import Point, busy_ranks, together
from hpc_alpa.profiler.setting import Setting

Types = tuple[TensorType, ...]
WIDTH = 256
"""Last dim of two-dimensional operands: hidden sizes of small models are 128 to 1024."""
KEYS = 64
"""Queries and keys of a softmax: sequences of small models are 32 to 256."""
KEPT = 4
"""Results alive at once: their memory is used again, as freed activations are in a step."""
LEVELS = {  # bytes of the largest operand: level
    2**12: 0, 2**18: 0, 2**22: 0,
    2**16: 1, 2**20: 1, 2**24: 1,
    2**14: 2, 2**25: 2, 2**26: 2,
}  # fmt: skip


@dataclass(frozen=True)
class Operation:
    """An operator at one size: what it takes, what it gives, and how it is run."""

    inputs: Types
    output: TensorType
    run: Callable[..., Any]

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.inputs) + self.output.nbytes


Make = Callable[[Any, int, str], Operation]
"""(backend, elements of the largest operand, dtype) -> the operation."""
Shapes = Callable[[int], Sequence[tuple[int, ...]]]
"""Shapes of the operands, from the elements of the largest."""


def row(name: str, shapes: Shapes, want: Any = None, **params: Any) -> Make:
    """The row `name` of the operator table; a shape that ends in -1 is an integer index."""

    def make(backend: Any, n: int, dtype: str) -> Operation:
        types = tuple(_type(shape, dtype) for shape in shapes(n))
        chosen = op(name)
        out = chosen.infer(types, params, want(types) if want else None)
        call = Call.whole(params, out, dict.fromkeys("vbk", 0))
        kernel = chosen.kernel
        if kernel is None:
            return Operation(types, out, lambda *arrays: chosen.reference(call, *arrays))
        return Operation(types, out, lambda *arrays: kernel(backend, call, *arrays))

    return make


def _type(shape: tuple[int, ...], dtype: str) -> TensorType:
    return TensorType(shape[:-1], "int64") if shape[-1:] == (-1,) else TensorType(shape, dtype)


def kernel(name: str, arrays: int, *scalars: float) -> Make:
    """A kernel over flat arrays of one shape, with scalars before `out`."""

    def make(backend: Any, n: int, dtype: str) -> Operation:
        run = backend.kernels[name]

        def call(*operands: Any) -> Any:
            out = backend.empty((n,), dtype)
            run(*operands, *scalars, out=out)
            return out

        flat = TensorType((n,), dtype)
        return Operation((flat,) * arrays, flat, call)

    return make


def _transposed(backend: Any, n: int, dtype: str) -> Operation:
    """Heads before rows, made contiguous: what attention does to its operands."""
    batch, length = max(1, n // 4096), min(32, n // 128)
    heads = TensorType((batch, length, 8, 16), dtype)
    out = heads.with_shape((batch, 8, length, 16))
    return Operation((heads,), out, lambda x: backend.contiguous(x.transpose(0, 2, 1, 3)))


def _random(backend: Any, n: int, dtype: str) -> Operation:
    out = TensorType((n,), dtype)
    make = row("random_bits", lambda n: [(-1,), (-1,)], lambda _: out, kind="uniform", key=1)
    return make(backend, n, dtype)


def flat(count: int) -> Shapes:
    return lambda n: [(n,)] * count


def rows(*operands: str) -> Shapes:
    """m: (rows, WIDTH); w: (WIDTH,); r: (rows,); i: an index per row; t: a table of 256 rows."""

    def shapes(n: int) -> Sequence[tuple[int, ...]]:
        r = max(1, n // WIDTH)
        table = {"m": (r, WIDTH), "w": (WIDTH,), "r": (r,), "i": (r, -1), "t": (256, WIDTH)}
        return [table[o] for o in operands]

    return shapes


def scores(count: int) -> Shapes:
    return lambda n: [(max(1, n // KEYS**2), min(KEYS, n // KEYS), KEYS)] * count


def _table_type(types: Types) -> TensorType:
    return types[0].with_shape((256, WIDTH))


def _flat_row(types: Types) -> TensorType:
    return types[0].with_shape((1, *types[0].shape))


EPS = {"eps": 1e-5}
SCALE = {"scale": 0.125}
CASES: tuple[tuple[str, str, Make], ...] = (  # class, variant, how it is made. Alphabetical
    ("adam_update", "", kernel("adam_update", 3, 1e-3, 1.0, 1.0, 1e-8, 0.0)),
    ("copy", "concatenate", row("concatenate", flat(2), dim=0)),
    ("copy", "transposed", _transposed),
    ("cross_entropy", "", row("cross_entropy", rows("m", "i"))),
    ("cross_entropy_grad", "", row("cross_entropy_grad", rows("m", "i", "r"))),
    ("elementwise", "add", row("add", flat(2))),
    ("elementwise", "scale", row("mul", lambda n: [(n,), ()])),
    ("ema", "", kernel("ema", 2, 0.9)),
    ("gather", "", row("gather", rows("t", "i"))),
    ("gelu", "", row("gelu", flat(1))),
    ("gelu_grad", "", row("gelu_grad", flat(2))),
    ("layer_norm", "", row("layer_norm", rows("m", "w", "w"), **EPS)),
    ("layer_norm_grad", "", row("layer_norm_grad", rows("m", "w", "m"), **EPS)),
    ("layer_norm_grad_scale", "", row("layer_norm_grad_scale", rows("m", "m"), **EPS)),
    ("random", "uniform", _random),
    ("reduce", "first", row("reduce_sum", rows("m"), dims=(0,))),
    ("reduce", "last", row("reduce_sum", rows("m"), dims=(1,))),
    ("scatter_add", "", row("scatter_add", rows("m", "i"), _table_type)),
    ("softmax", "causal", row("softmax", scores(1), causal=True, **SCALE)),
    ("softmax", "full", row("softmax", scores(1), causal=False, **SCALE)),
    ("softmax_grad", "", row("softmax_grad", scores(2), causal=True, **SCALE)),
    ("transcendental", "exp", row("exp", flat(1))),
    ("transcendental", "tanh", row("tanh", flat(1))),
    ("view", "", row("reshape", flat(1), _flat_row)),
)
assert {name for name, _, _ in CASES} | {"dot_general"} == set(CLASSES)


def points(setting: Setting, dtypes: Sequence[str]) -> Iterator[Point]:
    """A point per case, size, dtype and load."""
    for name, variant, make in CASES:
        for nbytes, level in LEVELS.items():
            if name == "view" and level:
                continue
            for order, dtype in enumerate(dtypes):
                operation = make(setting.backend, nbytes // numpy_dtype(dtype).itemsize, dtype)
                yield from under_loads(setting, name, variant, operation, level, order)


def under_loads(
    setting: Setting,
    name: str,
    variant: str,
    operation: Operation,
    level: int,
    order: int,
    **dims: int,
) -> Iterator[Point]:
    """The points that time `operation`, one per load.

    `order` is the place of the dtype among those asked for: the first is refined before the others.
    """
    for number, load in enumerate(setting.loads):
        values = parameters(
            "operators", dtype=operation.output.dtype, variant=variant, nbytes=operation.nbytes,
            threads=load.threads, busy=load.busy, clock=setting.clock_name(load), **dims,
        )  # fmt: skip
        yield Point(
            "operators",
            name,
            values,
            level + (1 if level and order else 0),
            busy_ranks(setting, load),
            together(load, lambda: prepared(operation), KEPT + 1),
            turn=order * len(setting.loads) + number,
        )


def prepared(operation: Operation) -> Callable[[int], None]:
    """The call with other operands each time, and its last results kept alive."""
    sets = sets_of(operation.inputs, operation.output.nbytes)
    kept: list[Any] = [None] * KEPT

    def call(i: int) -> None:
        kept[i % KEPT] = operation.run(*sets[i % len(sets)])

    return call
