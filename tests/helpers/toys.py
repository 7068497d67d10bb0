"""Small trainings of every model, and what every plan of them must show: one rank's numbers.

Run by tests on threads, and as a script under mpiexec:

    mpiexec -n 2 python tests/helpers/toys.py gpt-float16 dp2 2 out.npz
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc_alpa.api import ParallelStep, fetch, parallelize
from hpc_alpa.models import (
    SGD,
    AdamW,
    BERTConfig,
    GPTConfig,
    LossScale,
    MoEConfig,
    WideResNetConfig,
    adamw,
    bert,
    gpt,
    moe,
    sgd,
    wide_resnet,
)
from hpc_alpa.pytree import flatten
from tests.helpers.equality import cluster

ROWS, SEQUENCE, VOCABULARY = 16, 8, 32
SIZES: dict[str, Any] = {
    "layers": 2, "hidden": 16, "heads": 4, "sequence": SEQUENCE, "vocabulary": VOCABULARY,
}  # fmt: skip


@dataclass(frozen=True)
class Toy:
    """A training: `init(seed)` of its state, the step, and the batch of each step."""

    init: Callable[[Any], Any]
    step: Callable[..., Any]
    batch: Callable[[int], dict[str, np.ndarray]]


def text(k: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(k)
    tokens = rng.integers(0, VOCABULARY, (ROWS, SEQUENCE + 1)).astype("int32")
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}


def weighted_text(k: int) -> dict[str, np.ndarray]:
    """Rows of other lengths, every token with a weight; in step 2 one weight is not finite."""
    rng = np.random.default_rng(k)
    lengths = rng.integers(1, SEQUENCE + 1, (ROWS, 1))
    weights = rng.random((ROWS, SEQUENCE)) * (np.arange(SEQUENCE) < lengths)
    if k == 2:
        weights[5, 0] = np.inf
    return {**text(k), "weights": weights}


def sentences(k: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(k)
    made = text(k)
    segments = (np.arange(SEQUENCE) >= rng.integers(1, SEQUENCE, (ROWS, 1))).astype("int32")
    return {**made, "segments": segments, "masked": rng.random((ROWS, SEQUENCE)) < 0.3}


def images(k: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(k)
    made = rng.normal(size=(8, 16, 16, 3))
    return {"images": made, "labels": rng.integers(0, 4, 8).astype("int32")}


def _features() -> Toy:
    """Tied embeddings, weights of tokens, a scaled loss, a clipped norm, dropout."""
    config = GPTConfig(**SIZES, dropout=0.1, dtype="float64", tied=True)
    optimizer, scale = adamw(AdamW(1e-2)), LossScale(1024.0, interval=1)
    step = gpt.train_step(config, optimizer, 7, reduction="weighted", clip=0.6, loss_scale=scale)
    return Toy(gpt.init(config, optimizer, scale), step, weighted_text)


def _gpt(precision: str, tied: bool = False) -> Toy:
    config = GPTConfig(**SIZES, dropout=0.1, precision=precision, tied=tied)
    optimizer = sgd(SGD(0.5, momentum=0.9))
    options: dict[str, Any] = {"clip": 0.6}
    scale = LossScale(2.0**20, interval=3) if precision == "float16" else None
    step = gpt.train_step(config, optimizer, loss_scale=scale, **options)
    return Toy(gpt.init(config, optimizer, scale), step, text)


def _bert() -> Toy:
    config = BERTConfig(**SIZES, dropout=0.1, dtype="float64")
    optimizer = adamw(AdamW(1e-2))
    return Toy(bert.init(config, optimizer), bert.train_step(config, optimizer), sentences)


def _moe(dtype: str, feed_forward: int = 2) -> Toy:
    config = MoEConfig(**SIZES, dtype=dtype, experts=4, group=16, feed_forward=feed_forward)
    optimizer = adamw(AdamW(1e-2))
    return Toy(moe.init(config, optimizer), moe.train_step(config, optimizer), text)


def _wide_resnet() -> Toy:
    config = WideResNetConfig((1, 1), 4, 2, 4, dtype="float64")
    optimizer = sgd(SGD(0.1, momentum=0.9, nesterov=True))
    return Toy(
        wide_resnet.init(config, optimizer), wide_resnet.train_step(config, optimizer), images
    )


TOYS: dict[str, Callable[[], Toy]] = {  # alphabetical
    "bert": _bert,
    "features": _features,
    "gpt-bfloat16": functools.partial(_gpt, "bfloat16"),
    "gpt-float16": functools.partial(_gpt, "float16"),
    "gpt-float16-tied": functools.partial(_gpt, "float16", tied=True),
    "gpt-float32": functools.partial(_gpt, "float32"),
    "moe": functools.partial(_moe, "float64"),
    "moe-experts": functools.partial(_moe, "float64", feed_forward=48),
    "moe-float32": functools.partial(_moe, "float32"),
    "wide-resnet": _wide_resnet,
}


@dataclass
class Trained:
    """What a training did.

    Attributes:
        metrics: of each step, by name.
        states: by path, before the first step and after each.
    """

    metrics: list[dict[str, float]]
    states: list[dict[str, np.ndarray]]
    step: ParallelStep


def devices_of(method: str) -> int:
    """The devices that a method names; 4 where it does not."""
    found = [int(n) for n in "".join(c if c.isdigit() else " " for c in method).split()]
    named = method.startswith(("dp", "tp", "pp"))
    return int(np.prod(found)) if named else 4


def train(
    name: str, method: str, slots: int, *, steps: int = 2, backend: str = "local", **options: Any
) -> Trained:
    """Train a toy on threads, or under MPI with backend "host"."""
    toy = TOYS[name]()
    step = parallelize(
        toy.step,
        method=method,
        num_microbatches=slots,
        backend=backend,
        cluster=cluster(devices_of(method)),
        costs="analytic",
        **options,
    )
    state = step.create(toy.init, 3)
    metrics, states = [], [_leaves(state)]
    for k in range(steps):
        state, found = step(state, toy.batch(k))
        metrics.append({name: float(x) for name, x in found.items()})
        states.append(_leaves(state))
    return Trained(metrics, states, step)


def _leaves(state: Any) -> dict[str, np.ndarray]:
    leaves, tree = flatten(fetch(state))
    return dict(zip(tree.paths("state"), map(np.asarray, leaves), strict=True))


def nested(state: dict[str, np.ndarray]) -> Any:
    """A state by paths as a tree; numbered branches are lists."""
    made: Any = {}
    for path, x in state.items():
        *above, name = path.split("/")[1:]
        at = made
        for key in above:
            at = at.setdefault(key, {})
        at[name] = x
    return _with_lists(made)


def _with_lists(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    inner = {k: _with_lists(v) for k, v in tree.items()}
    if inner and all(k.isdigit() for k in inner):
        return [inner[str(k)] for k in range(len(inner))]
    return inner


@functools.cache
def one_rank(name: str, slots: int, steps: int = 2) -> Trained:
    return train(name, "dp1", slots, steps=steps)


def require_equal(found: Trained, want: Trained, rtol: float = 1e-10, atol: float = 1e-10) -> None:
    """Metrics and states of all steps; metrics that are not finite are so in both."""
    for k, (a, b) in enumerate(zip(found.metrics, want.metrics, strict=True)):
        assert a.keys() == b.keys()
        for name in b:
            # An infinity, and NaN where two of them met in another order of the sum.
            assert np.isfinite(a[name]) == np.isfinite(b[name]), (name, k, a, b)
            if np.isfinite(b[name]):
                np.testing.assert_allclose(a[name], b[name], rtol=rtol, err_msg=f"{name}, {k}")
    for k, (x, y) in enumerate(zip(found.states, want.states, strict=True)):
        assert x.keys() == y.keys()
        for path in y:
            assert x[path].dtype == y[path].dtype
            np.testing.assert_allclose(
                x[path].astype("float64"), y[path].astype("float64"), rtol=rtol, atol=atol,
                err_msg=f"{path} after step {k}",
            )  # fmt: skip


def main(arguments: list[str]) -> None:
    name, method, slots, out = arguments
    from hpc_alpa.runtime.launch import init

    world = init()
    found = train(name, method, int(slots), backend="host")
    if world.rank == 0:
        losses = np.array([m["loss"] for m in found.metrics])
        np.savez(out, losses=losses, **found.states[-1])  # type: ignore[arg-type]


if __name__ == "__main__":
    main(sys.argv[1:])
