"""The arguments of one call of a step: what a trace needs of them, and what each rank reads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hpc_alpa.ir.types import TensorType, numpy_dtype
from hpc_alpa.pytree import TreeDef, flatten, tree_map
from hpc_alpa.runtime.distributed import DistributedArray
from hpc_alpa.runtime.engine import Rows


@dataclass(frozen=True)
class Batch:
    """A batch of which each rank reads only its rows.

    Attributes:
        rows: number of rows of the whole batch.
        read: (indices of rows) -> the batch's structure with these rows.
    """

    rows: int
    read: Callable[[np.ndarray], Any]

    def example(self) -> Any:
        """Types of the whole batch, from no rows; from one where `read` cannot give none."""

        def whole(x: Any) -> Described:
            return Described((self.rows, *np.shape(x)[1:]), np.asarray(x).dtype)

        try:
            few = self.read(np.arange(0))
            described = all(np.shape(x)[:1] == (0,) for x in flatten(few, "batch")[0])
        except Exception:  # the user's function, which may stack rows: no rows are no array
            described = False
        return tree_map(whole, few if described else self.read(np.arange(1)))


@dataclass(frozen=True)
class Described:
    """A shape and a dtype, where a trace needs no values; `weak` stands for a Python number."""

    shape: tuple[int, ...]
    dtype: np.dtype
    weak: bool = False


def argument_names(count: int) -> tuple[str, ...]:
    """How messages call the arguments of a step."""
    return ("state", "batch", *(f"argument{k}" for k in range(2, count)))[:count]


@dataclass(frozen=True)
class Arguments:
    """The arguments of one call, flattened: the state first, the batch second.

    Attributes:
        parts: the leaves of each argument.
        trees: the structure of each argument.
        batch: the second argument as it was given.
    """

    parts: tuple[tuple[Any, ...], ...]
    trees: tuple[TreeDef, ...]
    batch: Any

    @classmethod
    def of(cls, state: Any, batch: Any, *others: Any) -> Arguments:
        """Flatten the arguments.

        Raises:
            DataError: a dict with keys that are neither str nor int, or an unhashable static value.
        """
        given = (state, batch.example() if isinstance(batch, Batch) else batch, *others)
        names = argument_names(len(given))
        flat = [flatten(x, name) for x, name in zip(given, names, strict=True)]
        return cls(tuple(part for part, _ in flat), tuple(tree for _, tree in flat), batch)

    @property
    def leaves(self) -> tuple[Any, ...]:
        """The leaves of all arguments: the step's inputs but for what it captures."""
        return tuple(leaf for part in self.parts for leaf in part)

    @cached_property
    def types(self) -> tuple[tuple[str, str], ...]:
        """Path and type of every leaf."""
        names = argument_names(len(self.parts))
        return tuple(
            (path, str(_type(leaf)))
            for part, tree, name in zip(self.parts, self.trees, names, strict=True)
            for path, leaf in zip(tree.paths(name), part, strict=True)
        )

    @property
    def signature(self) -> object:
        """What a plan depends on: two calls with equal signatures run the same programs."""
        return self.types, self.trees

    def examples(self) -> tuple[Any, ...]:
        """What a trace needs of the arguments: Python numbers, else shapes and dtypes."""
        return tuple(
            tree.unflatten([_example(x) for x in part])
            for part, tree in zip(self.parts, self.trees, strict=True)
        )

    def digest(self) -> str:
        """sha256 of the signature, and of the batch where every rank has all of it."""
        found = hashlib.sha256(repr(self.signature).encode())
        if not isinstance(self.batch, Batch):
            for x in self.parts[1]:
                found.update(np.ascontiguousarray(x).tobytes())
        return found.hexdigest()

    def row_readers(self) -> dict[int, Rows]:
        """For a `Batch`: position of each of its leaves -> the function that reads its rows."""
        batch = self.batch
        if not isinstance(batch, Batch):
            return {}
        first = len(self.parts[0])
        # The leaves of one rank's rows come from one call of the user's function.
        read: dict[bytes, tuple[Any, ...]] = {}

        def reader(k: int) -> Rows:
            def rows_of(rows: np.ndarray) -> np.ndarray:
                key = rows.tobytes()
                if key not in read:
                    read[key] = flatten(batch.read(rows), "batch")[0]
                return np.asarray(read[key][k])

            return rows_of

        return {first + k: reader(k) for k in range(len(self.parts[1]))}


def _type(leaf: Any) -> TensorType:
    if isinstance(leaf, DistributedArray):
        return leaf.type
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return TensorType(tuple(leaf.shape), np.dtype(leaf.dtype).name)
    return TensorType.of(leaf)


def _example(leaf: Any) -> Any:
    if isinstance(leaf, DistributedArray):
        return Described(leaf.type.shape, leaf.dtype, leaf.weak)
    if isinstance(leaf, (int, float, Described)):
        return leaf
    type = _type(leaf)
    return Described(type.shape, numpy_dtype(type.dtype))
