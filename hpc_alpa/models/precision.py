"""Mixed precision: 16-bit copies of master weights, and the scale of a float16 loss.

Micikevicius et al. 2018. The state keeps the weights in the config's `dtype`, float32 say. Forward
and backward read copies of them in its `precision`, made once a step, so that what is gathered is
16-bit; products and activations are 16-bit, and what sums thousands of them (norms, softmax, the
loss) is float32 inside. The update is float32.

| precision | gradients summed in | because |
|---|---|---|
| float16, its loss scaled | float16 | 11 bits carry the sum over microbatches; half the bytes |
| bfloat16 | float32 | 8 bits lose what each of 256 microbatches adds |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc_alpa.errors import DataError
from hpc_alpa.ir import numpy_dtype
from hpc_alpa.pytree import tree_map

Tree = Any
# precision -> the dtypes that weights may be kept in, the usual one first
MASTERS: dict[str, tuple[str, ...]] = {
    "bfloat16": ("float32", "float64", "bfloat16"),
    "float16": ("float32", "float64", "float16"),
    "float32": ("float32", "float64"),
    "float64": ("float64",),
}
# In which dtype gradients are summed over microbatches and devices; others: that of the weights.
GRADIENTS = {"float16": "float16"}


def require_precision(model: str, precision: str | None, dtype: str) -> None:
    """Refuse a precision that is none, or that is wider than the weights.

    Raises:
        DataError: with both.
    """
    if precision is None:
        return
    if precision not in MASTERS:
        raise DataError(f"{model}: precision is {precision!r}, not {', '.join(MASTERS)}")
    if dtype not in MASTERS[precision]:
        raise DataError(
            f"{model}: precision {precision} needs weights in {' or '.join(MASTERS[precision])}, "
            f"and dtype is {dtype}; take dtype={MASTERS[precision][0]!r}"
        )


def cast(tree: Tree, dtype: str | None) -> Tree:
    """The floating leaves in a dtype; all as they are for None."""
    if dtype is None:
        return tree
    wanted = numpy_dtype(dtype)

    def one(x: Any) -> Any:
        integer = not hasattr(x, "dtype") or np.dtype(x.dtype).kind in "iub"
        return x if integer or x.dtype == wanted else x.astype(wanted)

    return tree_map(one, tree)


def widened(x: Any) -> Any:
    """A 16-bit value in float32, others as they are."""
    return x.astype(np.float32) if np.dtype(x.dtype).itemsize == 2 else x


@dataclass(frozen=True)
class LossScale:
    """How the scale of a float16 loss follows the gradients (Micikevicius et al. 2018, Sec. 3.2).

    The state keeps the scale, and the number of steps in a row that were finite. A step with a
    gradient that is not leaves weights, optimizer and step counter as they are.

    Attributes:
        initial: the first scale.
        interval: finite steps in a row after which it grows.
        growth, backoff: its factors after these, and after a step that is not finite.
        smallest: it does not fall below.
    """

    initial: float = 2.0**16
    interval: int = 2000
    growth: float = 2.0
    backoff: float = 0.5
    smallest: float = 1.0

    def __post_init__(self) -> None:
        ordered = 0 < self.backoff < 1 < self.growth and 0 < self.smallest <= self.initial
        if not ordered or self.interval < 1:
            raise DataError(
                f"{self}: needs backoff in (0, 1), growth above 1, an interval of at least 1 and "
                "0 < smallest <= initial"
            )

    def init(self) -> Tree:
        """Of a state at its first step."""
        return {"scale": np.float32(self.initial), "finite_steps": np.int32(0)}

    def update(self, state: Tree, finite: Any) -> Tree:
        """After a step; `finite` is a 0-d bool."""
        steps = state["finite_steps"] + np.int32(1)
        grows = steps >= np.int32(self.interval)
        scale, one = state["scale"], np.float32
        grown = np.where(grows, scale * one(self.growth), scale)
        backed_off = np.maximum(scale * one(self.backoff), one(self.smallest))
        return {
            "scale": np.where(finite, grown, backed_off),
            "finite_steps": np.where(np.logical_and(finite, ~grows), steps, np.int32(0)),
        }
