"""ZeRO: data parallelism without copies of what each device can ask the others for.

    zero1  optimizer state and updates are split; gradients are summed over the devices behind the
           loop, new parameters gathered once a step
    zero2  gradients too: reduce_scatter in every microbatch (with one microbatch there is no
           difference, and they share a message behind it)
    zero3  parameters too: gathered in the loop wherever they are read, never kept whole

A leaf whose dims do not divide stays whole. Rajbhandari et al. 2020, "ZeRO: Memory optimizations
toward training trillion parameter models", Sec. 5; zero1 reduces and gathers as in Sec. 7.2.1.
"""

from __future__ import annotations

from hpc_alpa.errors import ShardingError
from hpc_alpa.ir.graph import Eqn, Var
from hpc_alpa.plan.methods.data import data_parallel
from hpc_alpa.plan.methods.state import from_parameters, parameters, sizes_text, state, updated
from hpc_alpa.plan.restrictions import Restrictions
from hpc_alpa.sharding import ShardingSpec, Strategy, num_tiles, strategies
from hpc_alpa.step import BACKWARD, LOOP, PREPARE, StepGraph


def zero(level: int, axis: int, mesh: tuple[int, ...], step: StepGraph) -> Restrictions:
    """The data axis splits the state too.

    Raises:
        ShardingError: no dim of the state is a multiple of the devices of the axis.
    """
    data = data_parallel(axis, mesh, step)
    kept, held = state(step), parameters(step)
    entering, updates = from_parameters(step), updated(step)
    if not any(n % mesh[axis] == 0 for v in kept for n in v.type.shape):
        raise ShardingError(
            f"zero{level} has nothing to split over {mesh[axis]} devices: no dim of the state is "
            f"a multiple of {mesh[axis]} ({sizes_text(step, kept)}). Choose another number of "
            "devices, or method='auto'"
        )
    split_inputs = set(kept) if level == 3 else set(kept) - set(held)

    known: dict[tuple[Var, tuple[str, ...]], bool] = {}

    def divides(e: Eqn, others: tuple[str, ...]) -> bool:
        """Whether the axis could split the output of an equation, the other axes' roles kept."""
        at = (e.output, others)
        if at not in known:
            known[at] = any(
                axis in s.output.split_axes and _without(s.roles, axis) == others
                for s in strategies(e, mesh)
            )
        return known[at]

    def is_split(e: Eqn, s: Strategy) -> bool:
        if axis in s.output.split_axes:
            return True
        return data.strategy(e, s) and not divides(e, _without(s.roles, axis))

    def strategy(e: Eqn, s: Strategy) -> bool:
        if e.output in updates:
            return is_split(e, s)
        if e.phase in LOOP:
            gradient = e.phase == BACKWARD and e.op.name == "accumulate" and e.output.type.shape
            if not gradient or level == 1:
                return data.strategy(e, s)
            once = level == 2 and step.num_microbatches == 1
            return is_split(e, s) or (once and data.strategy(e, s))
        if e.phase == PREPARE:
            return is_split(e, s) if level == 3 and e.output in entering else data.strategy(e, s)
        return True

    def where(v: Var, spec: ShardingSpec) -> bool:
        if v not in split_inputs:
            return data.input(v, spec)
        pairs = zip(v.type.shape, spec.dims, strict=True)
        even = any(n % (num_tiles(axes, mesh) * mesh[axis]) == 0 for n, axes in pairs)
        return axis in spec.split_axes or not even

    return Restrictions(strategy, where, lambda v: level < 3 or v not in entering)


def _without(roles: tuple[str, ...], axis: int) -> tuple[str, ...]:
    return roles[:axis] + roles[axis + 1 :]
