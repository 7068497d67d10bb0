"""Manual methods as restrictions of the same search: `dp2`, `tp4`, `pp2`, and their products.

    dp   the batch is split; parameters and their updates are whole on every device
    tp   Megatron: the weights of forward matrix products are split, and so are attention heads; the
         batch is not
    pp   stages, each on its own devices

What a method leaves open (where a layer norm's scale lies, when a gradient is reduced) the search
decides.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from hpc_alpa.errors import PlanError, ShardingError
from hpc_alpa.ir.graph import Eqn, Var
from hpc_alpa.ops.contraction import split_equation
from hpc_alpa.plan.intra_op import Restrictions
from hpc_alpa.sharding import ShardingSpec, Strategy, rule_of
from hpc_alpa.sharding.places import Groups, Place, places
from hpc_alpa.sharding.strategies import IDLE
from hpc_alpa.step import FORWARD, LOOP, StepGraph

_PART = re.compile(r"(dp|tp|pp)(\d+)")
AXIS_NAME = {"dp": "data", "tp": "tensor"}


@dataclass(frozen=True)
class Method:
    """Degrees of a manual method.

    Attributes:
        axes: (kind, size) of each mesh axis of a stage, `dp` first.
        stages: number of pipeline stages.
    """

    name: str
    axes: tuple[tuple[str, int], ...]
    stages: int

    @property
    def mesh_shape(self) -> tuple[int, ...]:
        return tuple(n for _, n in self.axes) or (1,)

    @property
    def axis_names(self) -> tuple[str, ...]:
        return tuple(AXIS_NAME[kind] for kind, _ in self.axes) or ("data",)

    @property
    def num_devices(self) -> int:
        return self.stages * math.prod(self.mesh_shape)


def parse_method(name: str) -> Method:
    """Read `dp2tp2pp2`; a kind may be missing, and the order does not matter.

    Raises:
        PlanError: another form, a kind twice, or a degree of 0.
    """
    parts = _PART.findall(name)
    if "".join(k + n for k, n in parts) != name or not parts:
        raise PlanError(
            f"there is no method {name!r}: use auto, or products of dpN, tpN and ppN such as dp2tp2"
        )
    degrees: dict[str, int] = {}
    for kind, n in parts:
        if kind in degrees or int(n) < 1:
            raise PlanError(
                f"method {name!r}: each of dp, tp, pp once, with a degree of at least 1"
            )
        degrees[kind] = int(n)
    stages = degrees.pop("pp", 1)
    axes = tuple((kind, degrees[kind]) for kind in ("dp", "tp") if degrees.get(kind, 1) > 1)
    return Method(name, axes, stages)


def restrictions(method: Method, step: StepGraph) -> Restrictions:
    """What the method leaves to choose from, on meshes of its axes."""
    made = Restrictions()
    for axis, (kind, size) in enumerate(method.axes):
        made = made & _KINDS[kind](axis, size, step)
    return made


def _data_parallel(axis: int, size: int, step: StepGraph) -> Restrictions:
    def strategy(e: Eqn, s: Strategy) -> bool:
        role = s.roles[axis]
        if e.phase in LOOP:
            return role == step.roles.get(e.output, IDLE)
        return role == IDLE or role[0] in "+>" or role in step.rows.factors[e.output]

    def where(v: Var, spec: ShardingSpec) -> bool:
        if v in step.batch:
            return axis in spec.dims[0]
        return axis not in spec.split_axes

    return Restrictions(strategy, where)


def _tensor_parallel(axis: int, size: int, step: StepGraph) -> Restrictions:
    weights = _from_parameters(step)
    whole = _whole_dims(step)

    def factors(e: Eqn) -> set[str]:
        """What a forward matrix product may be split along: the weight's dims, or the heads."""
        left, right, out = split_equation(e.params_dict["equation"])
        if e.inputs[1] in weights:
            allowed = set(right)
        elif e.inputs[0] in weights:
            allowed = set(left)
        else:
            return set(left) & set(right) & set(out)
        along = places(e)
        allowed = {f for f in allowed if whole.isdisjoint(along[f])}
        # A vocabulary that does not divide leaves its product whole; heads that do not divide
        # are an error.
        return allowed if _divides(e, allowed, size) else {IDLE}

    def strategy(e: Eqn, s: Strategy) -> bool:
        role = s.roles[axis]
        if e.phase == FORWARD and e.op.name == "dot_general":
            return role in factors(e) and role != step.roles.get(e.output, IDLE)
        if e.phase not in LOOP or role[0] in "+>-":
            return True
        batch = step.roles.get(e.output, IDLE)
        return role != batch and whole.isdisjoint(places(e)[role])

    def where(v: Var, spec: ShardingSpec) -> bool:
        return all(axis not in axes or (v, d) not in whole for d, axes in enumerate(spec.dims))

    products = [e for e in step.graph.eqns if e.phase == FORWARD and e.op.name == "dot_general"]
    if products and all(_divides(e, factors(e), size) is None for e in products):
        e = products[0]
        sizes = ", ".join(f"{f}={n}" for f, n in rule_of(e).sizes.items())
        raise ShardingError(
            f"tensor parallelism over {size} devices has nothing to split: dot_general at "
            f"{e.source or 'an unknown line'} ({rule_of(e)}, {sizes}), and every other product, "
            f"cannot be split, as no weight's dim is a multiple of {size}. Choose another number "
            "of devices, or method='auto'"
        )
    return Restrictions(strategy, where)


def _divides(e: Eqn, factors: Iterable[str], size: int) -> str | None:
    """A factor of an equation that so many devices can split."""
    sizes = rule_of(e).sizes
    return next((f for f in factors if sizes.get(f, 1) % size == 0), None)


def _whole_dims(step: StepGraph) -> frozenset[Place]:
    """Dims that Megatron never splits (Shoeybi et al. 2019, Sec. 3).

    Those of the batch's rows and of the positions of its tokens, and the width of the activations
    between its blocks, which a layer norm normalises.
    """
    along: Groups[Place] = Groups()
    inside = [e for e in step.graph.eqns if e.phase in LOOP or e.op.name == "enter"]
    for e in inside:
        for same in places(e).values():
            for place in same:
                along.join(place, same[0])
    positions = {v: 1 if v.type.is_floating else v.type.ndim for v in step.batch}
    kept = {along.find((v, d)) for v, n in positions.items() for d in range(n)}
    norms = [e.output for e in inside if e.op.name == "layer_norm"]
    kept |= {along.find((v, v.type.ndim - 1)) for v in norms}
    return frozenset(place for place in along.members() if along.find(place) in kept)


def _from_parameters(step: StepGraph) -> frozenset[Var]:
    """Values in the loop that are the state's, not computed from the batch."""
    found = {v for v in step.graph.inputs if v not in step.batch and v.type.shape}
    for e in step.graph.eqns:
        moves_only = e.op.name in ("cast", "enter", "reshape", "transpose")
        if moves_only and all(v in found for v in e.inputs):
            found.add(e.output)
    return frozenset(found)


_KINDS = {"dp": _data_parallel, "tp": _tensor_parallel}


def split_products(mesh: tuple[int, ...]) -> Restrictions:
    """Matrix products are split over every mesh axis, never repeated (Alpa, Sec. 4.1).

    For cost models that price communication alone, under which repeating everything would be free.
    """

    def strategy(e: Eqn, s: Strategy) -> bool:
        if e.op.name != "dot_general":
            return True
        pairs = zip(mesh, s.roles, strict=True)
        return all(n == 1 or r[0] not in "+>-" for n, r in pairs)

    return Restrictions(strategy)
