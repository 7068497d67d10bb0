"""pytree: flatten, unflatten, path names, static values, messages."""

from __future__ import annotations

import dataclasses
import enum
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from hpc_alpa.errors import DataError
from hpc_alpa.ir import TensorType
from hpc_alpa.pytree import TreeDef, flatten, require_same, static_field, tree_map

Moments = namedtuple("Moments", "m v")


class Mode(enum.Enum):
    TRAIN = 1
    TEST = 2


@dataclass(frozen=True)
class Config:
    width: int
    name: str = static_field(default="gpt", metadata={"unit": ""})
    heads: int = dataclasses.field(default=4, metadata={"static": True})


@dataclass
class State:
    params: dict
    step: int
    config: Config


def state() -> State:
    params = {"ffn": {"w2": np.ones(2), "w1": np.zeros((2, 2))}, "b": [np.ones(1), 3.5]}
    return State(params, 0, Config(7))


def test_paths_and_order() -> None:
    leaves, tree = flatten(state())
    assert tree.paths("state") == (
        "state/params/b/0", "state/params/b/1", "state/params/ffn/w1", "state/params/ffn/w2",
        "state/step", "state/config/width",
    )  # fmt: skip
    assert leaves[1] == 3.5 and leaves[4:] == (0, 7)
    assert tree.paths()[0] == "params/b/0"
    assert flatten(3.0)[1].paths("seed") == ("seed",)
    assert flatten({"m": 1, 2: (3,)})[1].paths("a") == ("a/2/0", "a/m")


def test_unflatten_rebuilds_every_container() -> None:
    tree: dict[str, Any] = {
        "list": [1, (2.0, None, "text")],
        "named": Moments(np.arange(3), [Mode.TEST, True]),
        "ordered": OrderedDict(b=1, a=2),
        "data": state(),
        "empty": [(), {}, []],
    }
    leaves, structure = flatten(tree)
    again = structure.unflatten(leaves)
    assert isinstance(again["named"], Moments) and isinstance(again["ordered"], OrderedDict)
    assert again["list"] == tree["list"] and again["empty"] == tree["empty"]
    assert again["named"].v == [Mode.TEST, True]
    assert again["data"].config == tree["data"].config
    assert flatten(again)[1] == structure and hash(flatten(again)[1]) == hash(structure)


def test_static_values_are_structure() -> None:
    assert flatten({"a": "x"})[1] != flatten({"a": "y"})[1]
    assert flatten([True])[1] != flatten([False])[1]
    assert flatten(Config(1, heads=1))[1] != flatten(Config(1, heads=True))[1]
    assert flatten(Config(1))[1] == flatten(Config(2))[1]
    assert flatten({"a": 1, "b": 2})[1] == flatten({"b": 5, "a": 4})[1]
    assert flatten([Mode.TRAIN, None])[1].statics("s") == (("s/0", Mode.TRAIN), ("s/1", None))
    with pytest.raises(DataError, match="c/name.*list.*no hash"):
        flatten(Config(1, name=[1]), "c")  # type: ignore[arg-type]


def test_descriptions_of_arrays_and_numpy_numbers_are_leaves() -> None:
    t = TensorType((2, 3), "float32")
    leaves, tree = flatten([t, np.float32(2), np.bool_(True), np.int64(1)])
    assert leaves[0] is t and tree.num_leaves == 4


def test_messages_name_the_leaf_and_both_sides() -> None:
    a = flatten({"params": {"w": 1.0, "mode": "a"}})[1]
    cases = [
        ({"params": {"w": 1.0, "mode": "b"}}, "state/params/mode.*'a' became.*'b'"),
        ({"params": {"w": [1.0], "mode": "a"}}, "state/params/w.*number became a list of 1"),
        ({"params": {"v": 1.0, "mode": "a"}}, "state/params: missing 'w' new 'v'"),
        ({"params": (1.0,)}, "state/params: a dict of 2 became a tuple of 1"),
        ([1.0], "state: a dict of 1 became a list of 1"),
    ]
    for other, message in cases:
        with pytest.raises(DataError, match=message):
            require_same(a, flatten(other)[1], "state")
    with pytest.raises(DataError, match=r"g/1: an array.*became the static value None"):
        tree_map(lambda x, y: x, [1, 2], [1, None], prefix="g")
    with pytest.raises(DataError, match="1 leaves do not fit a tree of 2"):
        flatten([1, 2])[1].unflatten([1])
    with pytest.raises(DataError, match="key 1.5 of type float"):
        flatten({1.5: 2})


def test_text_and_rebuilding_without_checks() -> None:
    assert str(flatten(state())[1]) == (
        "State(params={b: [*, *], ffn: {w1: *, w2: *}}, step=*, "
        "config=Config(width=*, name='gpt', heads=4))"
    )
    assert str(flatten((1,))[1]) == "(*,)"

    @dataclass(frozen=True, slots=True)
    class Checked:
        rate: float

        def __post_init__(self) -> None:
            if self.rate < 0:
                raise ValueError(self.rate)

    assert tree_map(lambda x: -x, Checked(1.0)).rate == -1.0


trees = st.recursive(
    st.one_of(st.integers(), st.floats(allow_nan=False), st.text(), st.booleans(), st.none()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
        st.builds(Moments, inner, inner),
    ),
    max_leaves=12,
)


@given(trees)
def test_round_trip(tree: object) -> None:
    leaves, structure = flatten(tree)
    assert structure.unflatten(leaves) == tree
    assert isinstance(structure, TreeDef) and len(structure.paths()) == len(leaves)
    assert tree_map(lambda x: x, tree) == tree
