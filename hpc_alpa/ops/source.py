"""Operators without array operands: constants, counters and random values."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpc_alpa.errors import GraphError
from hpc_alpa.ir.op import Call, Params, Types, define
from hpc_alpa.ir.types import TensorType, numpy_dtype
from hpc_alpa.ops.movement import no_flops, wanted
from hpc_alpa.ops.rule import Rule, bind, names, side

KINDS = ("bits", "uniform", "normal")


def _full(c: Call) -> Any:
    return np.full(c.type.shape, c.params["value"], numpy_dtype(c.type.dtype))


def _full_rule(inputs: Types, output: TensorType, params: Params) -> Rule:
    return bind(f"-> {side(names(output.ndim))}", inputs, output)


def _infer_iota(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    out = wanted("iota", want)
    if not 0 <= params["dim"] < out.ndim:
        raise GraphError(f"iota of {out} counts along a dim below {out.ndim}, not {params['dim']}")
    return out


def _iota(c: Call) -> Any:
    d = c.params["dim"]
    count = np.arange(c.starts[d], c.starts[d] + c.type.shape[d]).astype(numpy_dtype(c.type.dtype))
    shape = [1] * c.type.ndim
    shape[d] = c.type.shape[d]
    return np.broadcast_to(count.reshape(shape), c.type.shape)


def _located_rule(inputs: Types, output: TensorType, params: Params) -> Rule:
    left = ", ".join("." for _ in inputs)
    right = side(x + "@" for x in names(output.ndim))
    return bind(f"{left} -> {right}", inputs, output)


def _infer_random(inputs: Types, params: Params, want: TensorType | None) -> TensorType:
    out = wanted("random_bits", want)
    if params["kind"] not in KINDS:
        raise GraphError(f"random_bits has kinds {', '.join(KINDS)}, not {params['kind']!r}")
    allowed = ("uint32", "uint64") if params["kind"] == "bits" else ("float32", "float64")
    if out.dtype not in allowed:
        raise GraphError(f"random {params['kind']} are {' or '.join(allowed)}, not {out.dtype}")
    for t in inputs:
        if t.shape or not t.dtype.startswith(("int", "uint")):
            raise GraphError(f"seed and step of random values are 0-d integers, not {t}")
    return out


def _random(c: Call, seed: Any, step: Any) -> Any:
    from hpc_alpa.kernels.reference.random import random

    return _fill(random, np.empty(c.type.shape, numpy_dtype(c.type.dtype)), c, seed, step)


def _random_kernel(backend: Any, c: Call, seed: Any, step: Any) -> Any:
    return _fill(
        backend.kernels["random"], backend.empty(c.type.shape, c.type.dtype), c, seed, step
    )


def _fill(random: Any, out: Any, c: Call, seed: Any, step: Any) -> Any:
    kind = c.params["kind"]
    if kind == "bits":
        kind = "bits32" if c.type.dtype == "uint32" else "bits64"
    random(kind, int(seed), int(step), c.params["key"], c.starts, c.extents, out=out)
    return out


define(
    "full",  # every element is `value`
    infer=lambda inputs, params, want: wanted("full", want),
    reference=_full,
    vjp=None,
    flops=no_flops,
    rule=_full_rule,
)
define(
    "iota",  # 0, 1, 2, ... along `dim`
    infer=_infer_iota,
    reference=_iota,
    vjp=None,
    flops=no_flops,
    rule=_located_rule,
)
define(
    # Keyed by (seed, step, key, index in the whole array): the same under every sharding.
    "random_bits",
    infer=_infer_random,
    reference=_random,
    vjp=None,
    flops=lambda inputs, output, params: 20.0 * output.size,
    rule=_located_rule,
    kernel=_random_kernel,
    cost="random",
)
