"""`Traced`: the graph of a function, with the trees and the types of what goes in and comes out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hpc_alpa.errors import DataError, TracingError
from hpc_alpa.ir import Graph, TensorType, evaluate
from hpc_alpa.pytree import TreeDef, flatten
from hpc_alpa.trace.dtypes import is_python_number
from hpc_alpa.trace.recording import DTYPES


@dataclass(frozen=True)
class InputLeaf:
    """One input of a graph.

    Attributes:
        path: `state/params/w`, or `captured/0` for an array that the function held.
        weak: a Python number, which adopts the dtype of what it meets.
        argument: index of the argument that it is part of; None for a captured array.
    """

    path: str
    type: TensorType
    weak: bool = False
    argument: int | None = None


@dataclass(frozen=True)
class OutputLeaf:
    """One output of a graph; `weak` as for inputs: such a result is a Python number again."""

    path: str
    type: TensorType
    weak: bool = False


@dataclass(frozen=True)
class Signature:
    """What a graph depends on: structures with their static values, shapes, dtypes; not numbers."""

    names: tuple[str, ...]
    trees: tuple[TreeDef, ...]
    leaves: tuple[InputLeaf, ...]

    @classmethod
    def of(cls, args: Sequence[Any], names: Sequence[str]) -> Signature:
        """The signature of example values.

        Raises:
            TracingError: for an argument that is neither array, number nor static.
        """
        if len(args) != len(names):
            raise TracingError(
                f"{len(args)} arguments, but {len(names)} names {tuple(names)}; name each argument"
            )
        trees, leaves = [], []
        for k, (arg, name) in enumerate(zip(args, names)):
            values, tree = flatten(arg, name)
            trees.append(tree)
            for path, value in zip(tree.paths(name), values):
                leaves.append(InputLeaf(path, *leaf_type(value, path), k))
        return cls(tuple(names), tuple(trees), tuple(leaves))

    def difference(self, other: Signature) -> str | None:
        """What of `other` is different first, for a message; None if the same graph serves both."""
        for name, a, b in zip(self.names, self.trees, other.trees):
            if found := a.difference(b, name):
                return found
        for x, y in zip(self.leaves, other.leaves):
            if x != y:
                return f"{x.path}: {_kind(x)} became {_kind(y)}"
        return None if self == other else "the number of arguments"


def _kind(leaf: InputLeaf) -> str:
    return f"{'a Python number ' if leaf.weak else ''}{leaf.type}"


def leaf_type(value: Any, path: str) -> tuple[TensorType, bool]:
    """Type of a leaf, and whether it is weak: an array, a number, or a description of an array."""
    if is_python_number(value):
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise TracingError(f"{path!r} is {value}, which does not fit int64")
        return TensorType((), "float64" if isinstance(value, float) else "int64"), True
    if not (hasattr(value, "shape") and hasattr(value, "dtype")):
        if not hasattr(value, "__array__") and not isinstance(value, complex):
            raise TracingError(
                f"{path!r} is a {type(value).__name__}: arguments and results are arrays, numbers "
                "and static values (str, bool, None, enum members, dataclass fields marked by "
                "hpc_alpa.static_field) in dicts, lists, tuples and dataclasses"
            )
        value = np.asarray(value)
    name = str(value.dtype)
    if name not in DTYPES:
        raise TracingError(f"{path!r} has dtype {name}; traced values are {', '.join(DTYPES)}")
    shape = tuple(int(n) for n in value.shape)
    return TensorType(shape, name), bool(getattr(value, "weak", False))


@dataclass(frozen=True, eq=False)
class Traced:
    """A traced function. Compares and hashes by `digest`.

    Attributes:
        graph: simplified and verified; its inputs are named by their paths.
        signature: names, structures and types of the arguments.
        out_tree: structure of the result, with its static values.
        inputs, outputs: one entry for each of the graph's, in order; captured arrays come last.
        captured: values of the inputs `captured/0`, `captured/1`, ...
        differentiated: ids of the values with respect to which `value_and_grad` differentiated.
        loss: id of the loss; None without a gradient, or when nothing reads it.
        gradients: id of the gradient of each of `differentiated`; None when nothing reads it.
    """

    graph: Graph
    signature: Signature
    out_tree: TreeDef
    inputs: tuple[InputLeaf, ...]
    outputs: tuple[OutputLeaf, ...]
    captured: tuple[np.ndarray, ...] = ()
    differentiated: tuple[int, ...] = ()
    loss: int | None = None
    gradients: tuple[int | None, ...] = ()

    @property
    def in_trees(self) -> tuple[TreeDef, ...]:
        """The structure of each argument."""
        return self.signature.trees

    @property
    def statics(self) -> tuple[tuple[str, Any], ...]:
        """Path and value of each static value in the arguments."""
        named = zip(self.signature.names, self.signature.trees)
        return tuple(s for name, tree in named for s in tree.statics(name))

    @cached_property
    def digest(self) -> str:
        """sha256 of the graph, the trees, and the captured values."""
        made = hashlib.sha256(self.graph.digest.encode())
        notes = (
            self.signature.names, tuple(map(str, self.in_trees)), str(self.out_tree), self.inputs,
            self.outputs, self.differentiated, self.loss, self.gradients,
        )  # fmt: skip
        made.update(repr(notes).encode())
        for array in self.captured:
            made.update(array.tobytes())
        return made.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Traced) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def flatten(self, *args: Any) -> tuple[Any, ...]:
        """The values of the graph's inputs, in order, captured arrays included.

        Raises:
            DataError: for arguments of another signature; says which leaf, and both sides.
        """
        difference = self.signature.difference(Signature.of(args, self.signature.names))
        if difference:
            raise DataError(f"the arguments do not fit the traced function, at {difference}")
        return (*(leaf for arg in args for leaf in flatten(arg)[0]), *self.captured)

    def unflatten(self, outputs: Sequence[Any]) -> Any:
        """The result's tree with these values of the graph's outputs."""
        return self.out_tree.unflatten(outputs)

    def evaluate(self, *args: Any) -> Any:
        """Run on plain arrays with the reference interpreter; weak results are Python numbers."""
        made = evaluate(self.graph, self.flatten(*args))
        leaves = [
            a.item() if leaf.weak else np.asarray(a)[()] for a, leaf in zip(made, self.outputs)
        ]
        return self.unflatten(leaves)
