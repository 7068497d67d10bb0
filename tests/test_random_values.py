"""hpc_alpa.random: keyed by (seed, step, name, index), the same traced and plain; moments."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import hpc_alpa.trace as ht
from hpc_alpa import random
from hpc_alpa.errors import TracingError
from hpc_alpa.kernels.reference.random import random as kernel
from tests.helpers.traced import require_same

MAKERS: dict[str, Any] = {  # alphabetical
    "bernoulli": random.bernoulli, "bits": random.bits, "normal": random.normal,
    "uniform": random.uniform,
}  # fmt: skip


@pytest.mark.parametrize("name", MAKERS)
def test_keys(name: str) -> None:
    make = MAKERS[name]

    def values(seed: int = 1, step: int = 0, label: str = "a") -> np.ndarray:
        made: np.ndarray = make((64, 8), seed=seed, step=step, name=label)
        return made

    first = values()
    np.testing.assert_array_equal(first, values())
    for other in (values(seed=2), values(step=1), values(label="b")):
        assert (first != other).any()
    assert (make(5, seed=1, name="a") == make((5,), seed=1, name="a")).all()


@pytest.mark.parametrize("name", MAKERS)
def test_traced_and_plain_agree(name: str) -> None:
    def function(seed: Any, step: Any) -> Any:
        made = MAKERS[name]
        return made((3, 4), seed=seed, step=step, name="x"), made((), seed=7, step=step, name="y")

    t = require_same(function, 3, 5)
    assert t.evaluate(3, 6)[0].shape == (3, 4)
    assert (t.evaluate(3, 6)[0] != t.evaluate(4, 6)[0]).any()
    require_same(function, np.uint32(3), np.int64(2))
    # Plain seeds inside a trace are equations too: the values may be large.
    large = ht.trace(lambda: MAKERS[name]((1000, 1000), seed=1, name="x"), (), ())
    assert [e.op.name for e in large.graph.eqns if e.op.name == "random_bits"] == ["random_bits"]
    assert not large.captured


def test_the_key_is_the_hash_of_the_name() -> None:
    assert random.stream_key("dropout/3") == random.stream_key("dropout/3") < 2**63
    assert random.stream_key("") == 0xE3B0C44298FC1C14 >> 1  # sha256 of nothing
    out = np.empty((2, 3), np.uint32)
    kernel("bits32", 4, 9, random.stream_key("x"), (0, 0), (2, 3), out=out)
    np.testing.assert_array_equal(random.bits((2, 3), seed=4, step=9, name="x"), out)


def test_moments_and_dtypes() -> None:
    u = random.uniform((200, 500), seed=0, name="u")
    n = random.normal((200, 500), seed=0, name="n", dtype=np.float64)
    assert u.dtype == np.float32 and 0 <= u.min() and u.max() < 1
    np.testing.assert_allclose([u.mean(), u.var()], [0.5, 1 / 12], atol=5e-3)
    assert n.dtype == np.float64
    np.testing.assert_allclose([n.mean(), n.var()], [0, 1], atol=2e-2)
    p = random.bernoulli((200, 500), 0.2, seed=0, name="p")
    assert p.dtype == bool and abs(p.mean() - 0.2) < 5e-3
    for dtype in (np.float16, ml_dtypes.bfloat16):
        assert random.normal(4, seed=0, name="n", dtype=dtype).dtype == dtype
        require_same(lambda s, d=dtype: random.uniform((2, 2), seed=s, name="n", dtype=d), 3)
    assert random.bits(4, seed=0, name="b", dtype=np.uint64).dtype == np.uint64


def test_dropout() -> None:
    x = np.ones((100, 100), np.float32)

    def drop(x: Any, step: Any) -> Any:
        return random.dropout(x, 0.25, seed=1, step=step, name="layer/0")

    y = drop(x, 3)
    assert y.dtype == np.float32 and abs((y == 0).mean() - 0.25) < 0.02
    np.testing.assert_allclose(y[y != 0], 1 / 0.75, rtol=1e-6)
    require_same(drop, x, 3)
    assert random.dropout(x, 0, seed=1, step=0, name="x") is x
    gradient = ht.grad(lambda x: drop(x, 3).sum())(x)
    np.testing.assert_array_equal(gradient, y)
    infinite = drop(np.full((4, 4), np.inf, np.float32), 3)
    assert not np.isnan(infinite).any()
    with pytest.raises(ValueError, match="the rate is 1"):
        random.dropout(x, 1, seed=1, step=0, name="x")


def test_errors() -> None:
    with pytest.raises(TracingError, match="named by a str"):
        random.normal(3, seed=0, name=3)  # type: ignore[arg-type]
    with pytest.raises(TracingError, match=r"random_bits at test_random_values.py:\d+"):
        random.normal(3, seed=0.5, name="x")
    with pytest.raises(TracingError, match=r"random_bits at test_random_values.py:\d+"):
        ht.trace(lambda s: random.bits(3, seed=s, name="x", dtype=np.int8), (1,), ("s",))
