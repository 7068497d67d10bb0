"""Specs that the user fixes, as restrictions of the search."""

from __future__ import annotations

from collections.abc import Mapping

from hpc_alpa.errors import PlanError, ShardingError
from hpc_alpa.ir.graph import Graph, Var
from hpc_alpa.plan.intra_op import Restrictions
from hpc_alpa.sharding import ShardingSpec


def pinned(
    graph: Graph, pins: Mapping[str, str | Mapping[int, int]], mesh: tuple[int, ...]
) -> Restrictions:
    """Restrictions from `{name: "S0R"}` or `{name: {dim: mesh axis}}`.

    A name is an input's path; `params/w1` also means every input whose path ends in it.

    A mesh axis of one device splits nothing, so a pin to it is met by every spec.

    Raises:
        PlanError: no input has the name.
        ShardingError: the spec does not fit the value.
    """
    wanted: dict[Var, str | Mapping[int, int]] = {}
    for name, spec in pins.items():
        found = [v for v in graph.inputs if _is(graph.name_of.get(v.id, ""), name)]
        if not found:
            known = ", ".join(graph.name_of.get(v.id, "") for v in graph.inputs[:6])
            raise PlanError(f"pin {name!r} names no input of the step; inputs are {known}, ...")
        for v in found:
            _fits(v, name, spec)
            wanted[v] = spec

    def allowed(v: Var, spec: ShardingSpec) -> bool:
        pin = wanted.get(v)
        if pin is None:
            return True
        if isinstance(pin, str):
            return str(spec) == pin
        return all(
            axis < len(mesh) and (mesh[axis] == 1 or axis in spec.dims[dim])
            for dim, axis in pin.items()
        )

    return Restrictions(input=allowed)


def _is(path: str, name: str) -> bool:
    return path == name or path.endswith("/" + name)


def _fits(v: Var, name: str, pin: str | Mapping[int, int]) -> None:
    if isinstance(pin, str):
        spec = ShardingSpec.parse(pin)
        if len(spec.dims) != v.type.ndim or spec.partial:
            raise ShardingError(
                f"pin {name!r}: spec {pin} has {len(spec.dims)} dims, the value is {v.type}; "
                "an input has one letter per dim and is not partial"
            )
    elif any(not 0 <= d < v.type.ndim for d in pin):
        raise ShardingError(f"pin {name!r}: dims {sorted(pin)} do not all exist in {v.type}")
