"""Random train steps on a batch of several leaves, as plain NumPy functions.

Each is a chain of layers and one way to reduce a loss from it; its aux values, its update and what
it prepares of the batch differ too. All keep their meaning under any number of microbatches.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hpc_alpa import nn
from hpc_alpa import random as draws
from hpc_alpa.ir import Eqn, Graph, Var
from hpc_alpa.step import FORWARD, StepGraph, split_batch
from hpc_alpa.trace import trace, value_and_grad

ROWS, LENGTH, HIDDEN, CLASSES = 8, 4, 8, 8
Layer = Callable[[Any, Any, int], Any]


@dataclass(frozen=True)
class Case:
    """A traced step with values of its inputs."""

    graph: Graph
    batch: frozenset[Var]
    values: tuple[np.ndarray, ...]
    renewed: dict[int, int]

    def split(self, num_microbatches: int) -> StepGraph:
        return split_batch(self.graph, self.batch, num_microbatches, self.renewed)


def _dense(p: Any, x: Any, k: int) -> Any:
    return x @ p["w"][k] + p["b"][k]


def _attention(p: Any, x: Any, k: int) -> Any:
    if np.ndim(x) == 2:
        return _dense(p, x, k)
    rows, length, hidden = np.shape(x)
    heads = (x @ p["w"][k]).reshape(rows, length, 2, hidden // 2).transpose(0, 2, 1, 3)
    mixed = nn.attention(heads, heads, heads, causal=True).transpose(0, 2, 1, 3)
    return x + mixed.reshape(rows, length, hidden)


LAYERS: dict[str, Layer] = {  # alphabetical
    "attention": _attention,
    "cumsum": lambda p, x, k: np.cumsum(x, axis=-1) * 0.1 + p["b"][k],
    "dense": _dense,
    "dropout": lambda p, x, k: draws.dropout(x, 0.3, seed=3, step=p["step"], name=f"drop{k}"),
    "gelu": lambda p, x, k: nn.gelu(x @ p["w"][k]),
    "layer_norm": lambda p, x, k: nn.layer_norm(x, p["b"][k] + 1.0, p["b"][k]),
    "maximum": lambda p, x, k: np.maximum(_dense(p, x, k), p["b"][k]),
    "noise": lambda p, x, k: x + draws.normal(
        np.shape(x), seed=5, step=p["step"], name=f"noise{k}", dtype="float64"
    ),
    "positions": lambda p, x, k: x * (0.1 * np.arange(float(np.shape(x)[-1]))) + p["b"][k],
    "residual": lambda p, x, k: x + np.tanh(_dense(p, x, k)),
    "row_max": lambda p, x, k: x - x.max(axis=-1, keepdims=True) + p["b"][k],
    "softmax": lambda p, x, k: nn.softmax(_dense(p, x, k)),
}  # fmt: skip


def _row_losses(x: Any, batch: Any) -> Any:
    """A loss for each row, (rows,)."""
    flat = x if np.ndim(x) == 2 else x.mean(axis=1)
    return nn.cross_entropy(flat, batch["label"])


LOSSES: dict[str, Callable[[Any, Any], Any]] = {  # alphabetical
    "cross_entropy": lambda x, batch: np.mean(_row_losses(x, batch)),
    "mean_square": lambda x, batch: np.mean(
        (x - batch["y"][:, 0].reshape(ROWS, *[1] * (np.ndim(x) - 1))) ** 2
    ),
    "sum_of_256": lambda x, batch: np.sum(x * x) / 256,
    "weighted": lambda x, batch: (
        np.sum(_row_losses(x, batch) * batch["mask"]) / np.sum(batch["mask"])
    ),
    "worst": lambda x, batch: np.mean(np.max(x, axis=-1)) + np.sum(batch["y"]) / 64,
}  # fmt: skip


def _prepared(kind: str, batch: Any) -> Any:
    """What a step does with its batch before the loss."""
    x = batch["tokens"] if kind == "tokens" else batch["x"]
    if kind == "centred":
        x = x - np.mean(batch["x"], axis=0)  # a sum over the batch, but of inputs alone
    return {**batch, "x": x}


def random_step(seed: int) -> Callable[[Any, Any], Any]:
    """A train step: (state, batch) -> (new state, metrics)."""
    rng = random.Random(seed)
    layers = rng.choices(sorted(LAYERS), k=rng.randint(1, 4))
    kind = rng.choice(["tokens", "long", "plain", "plain", "centred"])
    reduce = LOSSES[rng.choice(sorted(LOSSES))]
    penalty, tied, clipped = rng.random() < 0.4, rng.random() < 0.4, rng.random() < 0.4
    metrics = rng.sample(["rows", "largest", "log", "norm"], rng.randint(0, 3))

    def loss(p: Any, batch: Any) -> Any:
        x = batch["x"]
        if kind == "tokens":
            x = nn.embedding(p["table"], x)
        elif kind == "long":
            x = x[:, None, :] + p["table"][:LENGTH]
        for k, name in enumerate(layers):
            x = LAYERS[name](p, x, k)
        if tied:
            x = x @ p["table"].T
        total = reduce(x, batch)
        if penalty:
            total = total + 0.1 * np.sum(p["w"][0] ** 2)
        aux = {"rows": _row_losses(x, batch), "largest": np.max(x), "log": np.log(1 + total)}
        return total, {name: aux[name] for name in metrics if name in aux}

    def step(state: Any, batch: Any) -> Any:
        batch = _prepared(kind, batch)
        (total, aux), g = value_and_grad(loss, has_aux=True)(state, batch)
        rate = 0.1
        if clipped or "norm" in metrics:
            norm = np.sqrt(sum((x * x).sum() for x in (*g["w"], *g["b"], g["table"])))
            aux = {**aux, "norm": norm}
            rate = 0.1 / np.maximum(norm, 1.0) if clipped else rate
        new = {
            "w": [p - rate * d for p, d in zip(state["w"], g["w"])],
            "b": [p - rate * d for p, d in zip(state["b"], g["b"])],
            "table": state["table"] - rate * g["table"],
            "step": state["step"] + 1,
        }
        return new, {"loss": total, **aux}

    return step


def random_state(seed: int) -> Any:
    r = np.random.default_rng(seed)
    return {
        "w": [r.normal(size=(HIDDEN, HIDDEN)) / 3 for _ in range(4)],
        "b": [r.normal(size=HIDDEN) for _ in range(4)],
        "table": r.normal(size=(CLASSES, HIDDEN)),
        "step": 2,
    }


def random_batch(seed: int) -> Any:
    r = np.random.default_rng(1000 + seed)
    return {
        "x": r.normal(size=(ROWS, HIDDEN)),
        "y": r.normal(size=(ROWS, HIDDEN)),
        "label": r.integers(0, CLASSES, ROWS),
        "mask": (np.arange(ROWS) % 3 > 0) * 1.0,
        "tokens": r.integers(0, CLASSES, (ROWS, LENGTH)),
    }


def traced_case(step: Callable[..., Any], state: Any, batch: Any) -> Case:
    """Trace a step that returns the new state first, or alone."""
    from hpc_alpa.pytree import flatten

    traced = trace(step, (state, batch), ("state", "batch"), allow_float64=True)
    leaves = [*flatten(state)[0], *flatten(batch)[0], *traced.captured]
    count = len(flatten(state)[0])
    of_batch = [
        v
        for v, leaf in zip(traced.graph.inputs, traced.inputs)
        if leaf.argument == 1 and leaf.type.shape
    ]
    values = tuple(np.asarray(x) for x in leaves)
    return Case(traced.graph, frozenset(of_batch), values, {k: k for k in range(count)})


def random_case(seed: int) -> Case:
    return traced_case(random_step(seed), random_state(seed), random_batch(seed))


def marked_at_random(case: Case, seed: int) -> Case:
    """The case with a layer's number on every forward equation, in runs or in any order."""
    rng = random.Random(seed)
    forward = [e for e in case.graph.eqns if e.phase == FORWARD]
    count = rng.randint(1, 4)
    numbers: list[int | None] = [k * (count + 1) // len(forward) for k in range(len(forward))]
    if seed % 2:
        numbers = [rng.choice([None, *range(count)]) for _ in forward]
    layer = dict(zip((e.output.id for e in forward), numbers, strict=True))

    def marked(e: Eqn) -> Eqn:
        return replace(e, layer=layer.get(e.output.id if e.phase == FORWARD else e.origin or -1))

    graph = replace(case.graph, eqns=tuple(map(marked, case.graph.eqns)))
    return replace(case, graph=graph)
