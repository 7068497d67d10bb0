"""Nested dicts, lists, tuples and dataclasses of leaves, and the structure left without them.

    leaves, tree = flatten({"ffn": {"w1": a, "w2": b}, "name": "adam"})
    tree.paths("params")       ('params/ffn/w1', 'params/ffn/w2')
    str(tree)                  {ffn: {w1: *, w2: *}, name: 'adam'}

A leaf is anything with a shape and a dtype, any number, and whatever else is not a container.
Static, part of the structure, are str, bool, None, enum members and dataclass fields marked by
`static_field`: a change of one is a change of structure. Keys of a dict are sorted: insertion
order does not matter.
"""

from __future__ import annotations

import dataclasses
import enum
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hpc_alpa.errors import DataError


def static_field(**options: Any) -> Any:
    """A dataclass field whose value belongs to the structure; options as `dataclasses.field`."""
    metadata = {**options.pop("metadata", {}), "static": True}
    return dataclasses.field(**options, metadata=metadata)


@dataclass(frozen=True)
class Leaf:
    """The place of a leaf, written `*`."""

    def __str__(self) -> str:
        return "*"


@dataclass(frozen=True)
class Static:
    """A value that belongs to the structure; must be hashable."""

    value: Any
    # 1 == True == 1.0, but they are different static values.
    kind: type

    def __str__(self) -> str:
        return repr(self.value)


@dataclass(frozen=True)
class Node:
    """A container: its type, and for each key (dict), index or field its subtree."""

    kind: type
    keys: tuple[Any, ...]
    children: tuple[Structure, ...]

    def __str__(self) -> str:
        inner = list(map(str, self.children))
        if self.kind in (dict, OrderedDict):
            return "{" + ", ".join(f"{k}: {c}" for k, c in zip(self.keys, inner)) + "}"
        if self.kind is list:
            return f"[{', '.join(inner)}]"
        if self.kind is tuple:
            return f"({', '.join(inner)}{',' if len(inner) == 1 else ''})"
        return f"{self.kind.__name__}({', '.join(f'{k}={c}' for k, c in zip(self.keys, inner))})"


Structure = Leaf | Static | Node
_DICTS = (dict, OrderedDict)


@dataclass(frozen=True)
class TreeDef:
    """The structure of a tree without its leaves: prints, compares and hashes."""

    root: Structure

    def __str__(self) -> str:
        return str(self.root)

    @property
    def num_leaves(self) -> int:
        return sum(1 for _ in _walk(self.root, "", Leaf))

    def paths(self, prefix: str = "") -> tuple[str, ...]:
        """A name for each leaf, in order: `params/ffn/w1`, `state/0/m`."""
        return tuple(path for path, _ in _walk(self.root, prefix, Leaf))

    def statics(self, prefix: str = "") -> tuple[tuple[str, Any], ...]:
        """Path and value of each static value, in order."""
        return tuple((path, s.value) for path, s in _walk(self.root, prefix, Static))

    def difference(self, other: TreeDef, prefix: str = "") -> str | None:
        """Where and how `other` differs first, for a message; None if they are equal."""
        return _difference(self.root, other.root, prefix)

    def unflatten(self, leaves: Iterable[Any]) -> Any:
        """The tree with these leaves. Dataclasses are rebuilt without `__post_init__`.

        Raises:
            DataError: when there are more or fewer leaves than places.
        """
        values = list(leaves)
        if len(values) != self.num_leaves:
            raise DataError(
                f"{len(values)} leaves do not fit a tree of {self.num_leaves}: {self}; "
                "flatten a tree of the same structure"
            )
        return _build(self.root, iter(values))


def _walk(node: Structure, path: str, wanted: type) -> Iterator[tuple[str, Any]]:
    if isinstance(node, wanted):
        yield path, node
    if isinstance(node, Node):
        for key, child in zip(node.keys, node.children):
            yield from _walk(child, f"{path}/{key}" if path else str(key), wanted)


def is_dataclass_value(x: Any) -> bool:
    """An instance (not a class) of a dataclass."""
    return dataclasses.is_dataclass(x) and not isinstance(x, type)


def _is_array(x: Any) -> bool:
    """Before containers: a description of an array may itself be a tuple or a dataclass."""
    return hasattr(x, "shape") and hasattr(x, "dtype")


def flatten(tree: Any, prefix: str = "") -> tuple[tuple[Any, ...], TreeDef]:
    """The leaves of a tree in order, and its structure. `prefix` is for messages only.

    Raises:
        DataError: a dict with keys that are neither str nor int, or an unhashable static value.
    """
    leaves: list[Any] = []
    root = _flatten(tree, prefix, leaves)
    return tuple(leaves), TreeDef(root)


def _flatten(x: Any, path: str, leaves: list[Any]) -> Structure:
    if x is None or isinstance(x, (str, bool, enum.Enum)):
        return _static(x, path)
    if not _is_array(x):
        if isinstance(x, dict):
            keys = _sorted_keys(x, path)
            plain = OrderedDict if isinstance(x, OrderedDict) else dict
            return _node(plain, keys, [x[k] for k in keys], path, leaves)
        if isinstance(x, tuple) and hasattr(x, "_fields"):
            return _node(type(x), x._fields, x, path, leaves)
        if isinstance(x, (list, tuple)):
            kind = list if isinstance(x, list) else tuple
            return _node(kind, tuple(range(len(x))), x, path, leaves)
        if is_dataclass_value(x):
            return _dataclass(x, path, leaves)
    leaves.append(x)
    return Leaf()


def _node(
    kind: type, keys: tuple[Any, ...], values: Sequence[Any], path: str, leaves: list[Any]
) -> Node:
    children = tuple(_flatten(v, f"{path}/{k}", leaves) for k, v in zip(keys, values))
    return Node(kind, keys, children)


def _dataclass(x: Any, path: str, leaves: list[Any]) -> Node:
    children = []
    for f in dataclasses.fields(x):
        value, inner = getattr(x, f.name), f"{path}/{f.name}"
        static = f.metadata.get("static", False)
        children.append(_static(value, inner) if static else _flatten(value, inner, leaves))
    return Node(type(x), tuple(f.name for f in dataclasses.fields(x)), tuple(children))


def _static(value: Any, path: str) -> Static:
    try:
        hash(value)
    except TypeError:
        raise DataError(
            f"the static field {path!r} holds a {type(value).__name__}, which has no hash; "
            "make it a tuple or a frozen dataclass, or do not mark it static"
        ) from None
    return Static(value, type(value))


def _sorted_keys(x: dict[Any, Any], path: str) -> tuple[Any, ...]:
    bad = [k for k in x if not isinstance(k, (str, int))]
    if bad:
        raise DataError(
            f"the dict {path!r} has the key {bad[0]!r} of type {type(bad[0]).__name__}; "
            "keys are str or int, because they name the leaves"
        )
    return tuple(sorted(x, key=lambda k: (isinstance(k, str), k)))


def _build(node: Structure, leaves: Iterator[Any]) -> Any:
    if isinstance(node, Leaf):
        return next(leaves)
    if isinstance(node, Static):
        return node.value
    children = [_build(c, leaves) for c in node.children]
    if node.kind in _DICTS:
        return node.kind(zip(node.keys, children))
    if node.kind in (list, tuple):
        return node.kind(children)
    if dataclasses.is_dataclass(node.kind):
        # Not by the constructor: its checks are for values, and a leaf may be a traced array here.
        made = object.__new__(node.kind)
        for key, child in zip(node.keys, children):
            object.__setattr__(made, key, child)
        return made
    return node.kind(*children)


def _difference(a: Structure, b: Structure, path: str) -> str | None:
    if a == b:
        return None
    here = path or "the tree"
    if isinstance(a, Node) and isinstance(b, Node) and a.kind is b.kind:
        missing = [k for k in a.keys if k not in b.keys]
        added = [k for k in b.keys if k not in a.keys]
        if missing or added:
            return f"{here}: {_keys('missing', missing)}{_keys('new', added)}".rstrip(" ")
        for key, x, y in zip(a.keys, a.children, b.children):
            found = _difference(x, y, f"{path}/{key}" if path else str(key))
            if found:
                return found
    return f"{here}: {_kind(a)} became {_kind(b)}"


def _keys(word: str, keys: list[Any]) -> str:
    return f"{word} {', '.join(map(repr, keys))} " if keys else ""


def _kind(node: Structure) -> str:
    if isinstance(node, Leaf):
        return "an array or a number"
    if isinstance(node, Static):
        return f"the static value {node.value!r}"
    return f"a {node.kind.__name__} of {len(node.keys)}"


def require_same(expected: TreeDef, found: TreeDef, prefix: str = "") -> None:
    """Raise `DataError` with the path and both sides unless two structures are equal."""
    difference = expected.difference(found, prefix)
    if difference:
        raise DataError(f"two trees have different structures, at {difference}")


def tree_map(function: Callable[..., Any], tree: Any, *others: Any, prefix: str = "") -> Any:
    """The tree of `function(leaf, *leaves at the same place of the others)`.

    Raises:
        DataError: when a structure differs from the first, with the path and both sides.
    """
    leaves, structure = flatten(tree, prefix)
    rest = []
    for other in others:
        other_leaves, other_structure = flatten(other, prefix)
        require_same(structure, other_structure, prefix)
        rest.append(other_leaves)
    return structure.unflatten(function(*args) for args in zip(leaves, *rest))
