"""Random graphs of the operators, half of them with gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hpc_alpa.ir import TensorType, Var
from hpc_alpa.transform import gradient
from tests.helpers.random_equations import CLASSES, Drawing, Drawn, reshapes

# A grower takes a value of the pool and gives new ones, or none where its shape does not fit.
Grow = Callable[[Drawing, Var, list[Var]], list[Var]]


def _like(d: Drawing, v: Var, pool: list[Var]) -> Var:
    """A value of the same shape; now and then a 0-d one."""
    shapes = (v.type.shape,) if d.rng.random() < 0.8 else (v.type.shape, ())
    return d.rng.choice([w for w in pool if w.type.shape in shapes])


def _grow_binary(d: Drawing, v: Var, pool: list[Var]) -> list[Var]:
    pair = [v, _like(d, v, pool)]
    d.rng.shuffle(pair)
    return [d.b.emit(d.rng.choice(["add", "add", "max", "min", "mul", "sub"]), *pair)]


def _grow_unary(d: Drawing, v: Var, pool: list[Var]) -> list[Var]:
    b = d.b
    name = d.rng.choice(
        ["cumsum", "div", "erf", "exp", "gelu", "gelu", "log", "neg", "pow"]
        + ["rsqrt", "scale", "sqrt", "tanh"]
    )
    if name == "exp":
        return [b.exp(b.tanh(v))]
    if name in ("log", "rsqrt", "sqrt", "pow", "div"):
        positive = b.add(b.mul(v, v), 1.0)
        if name == "pow":
            return [b.pow(positive, d.rng.choice([0.5, -1.5]))]
        return [b.div(_like(d, v, pool), positive) if name == "div" else b.emit(name, positive)]
    if name == "scale":
        return [b.mul(v, d.rng.choice([0.5, -0.5, 2.0]))]
    if name == "cumsum":
        return [b.cumsum(v, dim=d.rng.randrange(v.type.ndim))] if v.type.ndim else []
    return [b.emit(name, v)]


def _grow_reduce(d: Drawing, v: Var, pool: list[Var]) -> list[Var]:
    name = d.rng.choice(["reduce_sum", "reduce_sum", "reduce_max", "reduce_max", "reduce_min"])
    return [d.b.emit(name, v, dims=d.some_dims(v.type.ndim))] if v.type.ndim else []


def _grow_broadcast(d: Drawing, v: Var, pool: list[Var]) -> list[Var]:
    shape = v.type.shape
    if len(shape) > 2:
        return []
    at = d.rng.randint(0, len(shape))
    stretched = tuple(d.rng.choice([1, 4]) if n == 1 else n for n in shape)
    target = (*stretched[:at], d.extent(), *stretched[at:])
    dims = tuple(k for k in range(len(target)) if k != at)
    return [d.b.broadcast(v, type=v.type.with_shape(target), dims=dims)]


def _grow_reshape(d: Drawing, v: Var, pool: list[Var]) -> list[Var]:
    target = reshapes(d.rng, v.type.size, d.rng.randint(1, 3))
    return [d.b.reshape(v, type=v.type.with_shape(target))]


def _grow_transpose(d: Drawing, v: Var, pool: list[Var]) -> list[Var]:
    return [d.b.transpose(v, perm=tuple(d.rng.sample(range(v.type.ndim), v.type.ndim)))]


def _grow_window(d: Drawing, v: Var, pool: list[Var]) -> list[Var]:
    shape = v.type.shape
    starts = tuple(d.rng.randrange(n) if d.rng.random() < 0.5 else 0 for n in shape)
    inner = tuple(d.rng.randint(1, n - s) if s else n for n, s in zip(shape, starts, strict=True))
    part = d.b.slice(v, type=v.type.with_shape(inner), starts=starts)
    return [part, d.b.pad(part, type=v.type, starts=starts)]


def _grow_concatenate(d: Drawing, v: Var, pool: list[Var]) -> list[Var]:
    if not v.type.ndim:
        return []
    dim = d.rng.randrange(v.type.ndim)

    def fits(w: Var) -> bool:
        shapes = zip(w.type.shape, v.type.shape, strict=True)
        return w.type.ndim == v.type.ndim and all(
            k == dim or m == n for k, (m, n) in enumerate(shapes)
        )

    others = [w for w in pool if w.type.ndim == v.type.ndim and fits(w)]
    return [d.b.concatenate(v, *d.rng.choices(others, k=d.rng.choice([1, 1, 2])), dim=dim)]


def _grow_dot(d: Drawing, v: Var, pool: list[Var]) -> list[Var]:
    letters = "abcdef"[: v.type.ndim]
    contracted = d.rng.sample(letters, d.rng.randint(0, len(letters)))
    batch = [x for x in letters if x not in contracted and d.rng.random() < 0.4]
    extents = dict(zip(letters, v.type.shape, strict=True))
    w = d.input((*(extents[x] for x in contracted + batch), 4))
    out = [x for x in letters if x not in contracted] + ["w"]
    d.rng.shuffle(out)
    equation = f"{letters},{''.join(contracted + batch)}w->{''.join(out)}"
    y = d.b.dot_general(v, w, equation=equation)
    return [d.b.tanh(y) if d.rng.random() < 0.5 else y]


def _grow_index(d: Drawing, v: Var, pool: list[Var]) -> list[Var]:
    b, shape = d.b, v.type.shape
    if len(shape) == 2 and shape[1] == CLASSES and d.rng.random() < 0.7:
        labels = d.input(shape[:1], "index")
        return [b.emit(d.rng.choice(["pick", "cross_entropy"]), v, labels)]
    if len(shape) > 1 and d.rng.random() < 0.5:
        indices = d.input(shape[:-1], "index")
        return [b.scatter_add(v, indices, type=v.type.with_shape((CLASSES, shape[-1])))]
    if len(shape) == 1 and d.rng.random() < 0.5:
        return [b.unpick(v, d.input(shape, "index"), type=v.type.with_shape((*shape, CLASSES)))]
    return [b.gather(d.input((CLASSES, d.extent())), d.input(d.shape(1, 2), "index"))]


def _grow_top_k(d: Drawing, v: Var, pool: list[Var]) -> list[Var]:
    if not v.type.ndim:
        return []
    return [d.b.pick(v, d.b.top_k(v, k=d.rng.randint(1, min(3, v.type.shape[-1]))))]


def _sliding(d: Drawing, spatial: tuple[int, ...]) -> tuple[tuple[int, ...], dict[str, Any]]:
    """A window that fits, with its strides and padding: tiling, with as many windows, or any."""
    rows = []
    for n in spatial:
        k, kind = d.rng.choice([1, 2, 3]), d.rng.choice(["any", "same", "same", "tiling"])
        if kind == "tiling" and n % k == 0:
            rows.append((k, k, (0, 0)))
        elif kind == "same":
            stride = 2 if k == 3 and n % 2 == 0 and d.rng.random() < 0.5 else 1
            before = d.rng.randint(0, k - stride)
            rows.append((k, stride, (before, k - stride - before)))
        else:
            k = min(k, n)
            rows.append((k, d.rng.randint(1, 2), (d.rng.randrange(k), d.rng.randrange(k))))
    window, strides, paddings = zip(*rows, strict=True)
    return tuple(window), {"strides": strides, "padding": paddings}


def _grow_windows(d: Drawing, v: Var, pool: list[Var]) -> list[Var]:
    shape = (*(1,) * (3 - v.type.ndim), *v.type.shape)
    x = d.b.reshape(v, type=v.type.with_shape(shape))
    window, params = _sliding(d, shape[1:-1])
    if d.rng.random() < 0.5:
        kind = d.rng.choice(["max", "sum"])
        return [d.b.pool(x, kind=kind, window=window, **params)]
    groups = d.rng.choice([g for g in (1, 1, 2, shape[-1]) if shape[-1] % g == 0])
    w = d.input((*window, shape[-1] // groups, 2 * groups))
    y = d.b.conv(x, w, **params)
    return [d.b.tanh(y) if d.rng.random() < 0.5 else y]


def _grow_cross_entropy(d: Drawing, v: Var, pool: list[Var]) -> list[Var]:
    b, shape = d.b, v.type.shape
    if not shape:
        return []
    rows = v.type.size // shape[-1]
    x = b.reshape(v, type=v.type.with_shape((rows, shape[-1])))
    logits = b.dot_general(x, d.input((shape[-1], CLASSES)), equation="ab,bc->ac")
    return [b.cross_entropy(logits, d.input((rows,), "index"))]


def _uniform(d: Drawing, type: TensorType) -> Var:
    b, key = d.b, d.rng.randrange(4)
    seed, step = (b.constant(k, "int64") for k in (3, d.rng.randrange(3)))
    return b.random_bits(seed, step, type=type, kind="uniform", key=key)


def _grow_select(d: Drawing, v: Var, pool: list[Var]) -> list[Var]:
    b, shape = d.b, v.type.shape
    kind = d.rng.choice(["causal", "dropout", "values"])
    if kind == "causal" and len(shape) > 1:
        counts = [b.iota(type=v.type.with_dtype("int64"), dim=k) for k in (0, 1)]
        mask = b.compare(*counts, direction="ge")
    elif kind == "values":
        mask = b.compare(_like(d, v, pool), v, direction=d.rng.choice(["gt", "le"]))
    else:
        mask = b.compare(_uniform(d, v.type), 0.4, direction="ge")
    return [b.select(mask, v, d.rng.choice([0.0, _like(d, v, pool)]))]


def _grow_source(d: Drawing, v: Var, pool: list[Var]) -> list[Var]:
    b = d.b
    if v.type.ndim and d.rng.random() < 0.5:
        return [b.add(v, b.mul(b.iota(type=v.type, dim=d.rng.randrange(v.type.ndim)), 0.1))]
    return [b.mul(v, _uniform(d, v.type))]


def _grow_cast(d: Drawing, v: Var, pool: list[Var]) -> list[Var]:
    return [d.b.cast(d.b.cast(v, dtype="float32"), dtype="float64")]


def _grow_fused(d: Drawing, v: Var, pool: list[Var]) -> list[Var]:
    shape = v.type.shape
    if not shape:
        return []
    if d.rng.random() < 0.5 and shape[-1] > 1:
        scale, bias = (d.input(shape[-1:]) for _ in range(2))
        return [d.b.layer_norm(v, scale, bias, eps=1e-5)]
    return [d.b.softmax(v, scale=0.5, causal=len(shape) > 1 and d.rng.random() < 0.5)]


def _grow_experts(d: Drawing, v: Var, pool: list[Var]) -> list[Var]:
    b, shape = d.b, (*(1,) * (3 - v.type.ndim), *v.type.shape)
    x = b.reshape(v, type=v.type.with_shape(shape))
    experts, places = (d.input((*shape[:2], 2), "index") for _ in range(2))
    places_of = v.type.with_shape((shape[0], CLASSES, 4, shape[2]))
    taken = b.dispatch(x, experts, places, type=places_of)
    weights = d.input((*shape[:2], 2))
    return [b.combine(b.tanh(taken), experts, places, weights)]


def _grow_batch_norm(d: Drawing, v: Var, pool: list[Var]) -> list[Var]:
    b, shape = d.b, v.type.shape
    if len(shape) < 2:
        return []
    x, count = b.tanh(v), v.type.size // shape[-1]
    statistics = b.batch_statistics(b.batch_moments(x), count=count)
    scale, bias = (d.input(shape[-1:]) for _ in range(2))
    return [b.batch_norm(x, statistics, scale, bias, eps=0.1)]


def _grow_stop(d: Drawing, v: Var, pool: list[Var]) -> list[Var]:
    return [d.b.stop_gradient(v)]


GROWERS: tuple[tuple[Grow, int], ...] = (  # and how often they are taken
    (_grow_binary, 4),
    (_grow_unary, 5),
    (_grow_reduce, 4),
    (_grow_broadcast, 2),
    (_grow_reshape, 2),
    (_grow_transpose, 1),
    (_grow_window, 1),
    (_grow_concatenate, 1),
    (_grow_dot, 4),
    (_grow_index, 3),
    (_grow_cross_entropy, 1),
    (_grow_top_k, 1),
    (_grow_windows, 3),
    (_grow_select, 2),
    (_grow_source, 1),
    (_grow_cast, 1),
    (_grow_fused, 4),
    (_grow_batch_norm, 1),
    (_grow_experts, 1),
    (_grow_stop, 1),
)
_LARGEST = 600


def random_graph(seed: int, num_equations: int) -> Drawn:
    """A random graph; every second seed has the gradients of a loss too.

    Every value made is an output, so that simplifying keeps it, and a mesh compares it.
    """
    d = Drawing(seed)
    pool = [d.input(d.shape(0 if k else 1)) for k in range(3)]
    growers, weights = zip(*GROWERS, strict=True)
    while len(d.b.eqns) < num_equations:
        v = d.rng.choice(pool[-6:])
        if v.type.size > _LARGEST:
            new = [d.b.reduce_sum(v, dims=(0,))]
        else:
            new = d.rng.choices(growers, weights)[0](d, v, pool)
        pool += [w for w in new if w.type.dtype == "float64"]
    outputs = list(pool)
    if seed % 2:
        total = d.b.constant(0.0, "float64")
        for v in pool[-3:]:
            part = d.b.reduce_sum(d.b.tanh(v), dims=tuple(range(v.type.ndim)))
            total = d.b.add(total, part)
        wanted = [v for v in d.b.inputs if v.type.is_floating]
        outputs += gradient(d.b, tuple(d.b.eqns), total, wanted)
    return d.drawn(*dict.fromkeys(outputs))
