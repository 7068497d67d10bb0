"""Why a value lies as it does: what every other choice would cost, all else free to follow.

An alternative is the same choice program with one node's choice given (`Forced`), solved anew; so
its seconds are those of the best plan that has it, with a proven bound, and not of a bad plan that
nobody would make. What it changes is read off the two assignments. Of what changes for nothing, as
much as possible is turned back first, so that a reader sees what the choice itself brings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np

from hpc_alpa.errors import PlanError
from hpc_alpa.plan.changes import Change, Conversion, conversions, difference, value_name
from hpc_alpa.plan.excluded import Excluded, excluded
from hpc_alpa.plan.intra_op import IntraOp
from hpc_alpa.plan.likeness import EQUAL, LikeOwn, peak
from hpc_alpa.plan.solve.options import Clock, Options
from hpc_alpa.plan.solve.problem import (
    Assignment,
    Problem,
    evaluate,
    leaders,
)

# The last digits of a choice that was not made are worth no integer program.
OPTIONS = Options(relative_gap=1e-3, seconds=60.0)


@dataclass(frozen=True)
class Alternative:
    """One choice of the node, and the best plan that has it.

    Attributes:
        choice: a spec, or an equation's roles with the specs of operands and output.
        roles: of an equation, else "".
        spec: how the value lies under it.
        chosen: it is the plan's own.
        alone: seconds with all else as in the plan; None where a conversion is forbidden.
        alone_bytes: that a device would hold at most; it may be more than there is.
        seconds: of the best plan with it; None where none was found, `why_not` says why.
        bound: no plan with it takes less.
        nbytes: that a device holds at most.
        changes: values whose specs change beside this one.
        comes, goes: conversions by messages that the plan does not have, and those that it has.
    """

    choice: str
    roles: str
    spec: str
    chosen: bool
    alone: float | None
    alone_bytes: float | None = None
    seconds: float | None = None
    bound: float | None = None
    nbytes: float | None = None
    changes: tuple[Change, ...] = ()
    comes: tuple[Conversion, ...] = ()
    goes: tuple[Conversion, ...] = ()
    why_not: str = ""


@dataclass(frozen=True)
class Limit:
    """The point of the step at which most is held, against the limit.

    Attributes:
        binds: a cheaper plan would hold more than the limit.
        seconds: what the limit costs: the plan's seconds less those of the best without a limit.
        seconds_per_byte: of that, per byte by which the best without a limit holds more.
    """

    point: str
    nbytes: float
    limit: float
    binds: bool
    seconds: float
    seconds_per_byte: float


@dataclass(frozen=True)
class Why:
    """Why a value lies as it does.

    Attributes:
        value: its name and type.
        made_by: the operator and the user's line, or "" for an input.
        spec, choice: how it lies, and the choice that makes it so.
        with_it: values that make the same choice: equal layers, what updates one parameter.
        seconds: of the plan's stage, by the choice program's own count.
        alternatives: the plan's own choice first, then by rising seconds.
        memory: None where there is no limit.
    """

    value: str
    made_by: str
    spec: str
    choice: str
    with_it: tuple[str, ...]
    seconds: float
    alternatives: tuple[Alternative, ...]
    excluded: tuple[Excluded, ...]
    memory: Limit | None


@dataclass
class Forced(IntraOp):
    """A choice program in which one node's choice is given, with that of all that it is tied to."""

    node: int = 0
    choice: int = 0

    @classmethod
    def of(cls, program: IntraOp, node: int, choice: int) -> Forced:
        """The same stage, mesh, restrictions and memory."""
        names = [f.name for f in fields(IntraOp) if not f.name.startswith("_")]
        return cls(**{n: getattr(program, n) for n in names}, node=node, choice=choice)

    def problem(self) -> Problem:
        made = super().problem()
        costs = list(made.costs)
        other = np.arange(len(costs[self.node])) != self.choice
        costs[self.node] = np.where(other, np.inf, costs[self.node])
        self._made = replace(made, costs=tuple(costs))
        return self._made


def why(
    program: IntraOp,
    assignment: Assignment,
    node: int,
    options: Options | None = None,
    num_solved: int | None = None,
) -> Why:
    """Why a node's value lies as it does in an assignment.

    Args:
        program: after `problem()`; its memory is the limit of every alternative.
        node: an input of the stage's graph, or one of its equations (after the inputs).
        options: when to stop; `seconds` are for all alternatives together.
        num_solved: at most so many alternatives are solved, those first that cost least alone.
    """
    return _Question(program, assignment, node, options or OPTIONS).answer(num_solved)


class _Question:
    def __init__(
        self, program: IntraOp, assignment: Assignment, node: int, options: Options
    ) -> None:
        self.program, self.assignment, self.node = program, assignment, node
        self.options, self.clock = options, Clock(options.seconds)
        self.problem = program.problem()
        leader = leaders(self.problem)
        self.group = np.flatnonzero(leader == leader[node])
        self.like_own = LikeOwn(program, self.problem, assignment, node)
        self.seconds = evaluate(self.problem, assignment).objective
        self.mine = assignment.choices[node]
        self.values = tuple(program.stage.graph.values())

    def answer(self, num_solved: int | None) -> Why:
        alone = [self.cost(self.alone(i))[0] for i in range(len(self.problem.costs[self.node]))]
        nearest = sorted(range(len(alone)), key=lambda i: (alone[i] is None, alone[i] or 0.0))
        nearest.remove(self.mine)
        found = [self.own()]
        for rank, i in enumerate(nearest):
            found.append(self.alternative(i, num_solved is None or rank < num_solved))
        found[1:] = sorted(found[1:], key=_dearness)
        graph = self.program.stage.graph
        k = self.node - len(graph.inputs)
        others = [int(n) for n in self.group if n != self.node and n < len(self.values)]
        return Why(
            graph.describe(self.values[self.node]),
            f"{graph.eqns[k].op.name} {graph.eqns[k].source}".strip() if k >= 0 else "",
            found[0].spec,
            found[0].choice,
            tuple(value_name(self.program, n) for n in others),
            self.seconds,
            tuple(found),
            excluded(self.program, self.node),
            self.limit(),
        )

    # --------------------------------------------------------------------------------- texts
    def texts(self, i: int) -> tuple[str, str, str]:
        """A choice in words, its roles, and the spec of the value."""
        k = self.node - len(self.program.input_specs)
        if k < 0:
            spec = str(self.program.input_specs[self.node][i])
            return spec, "", spec
        s = self.program.equation_strategies[k][i]
        operands = ", ".join(map(str, s.inputs))
        return f"{s}: {operands} -> {s.output}", str(s), str(s.output)

    # --------------------------------------------------------------------------- alternatives
    def alone(self, i: int) -> Assignment:
        """The plan with this choice, all else as it is."""
        choices = list(self.assignment.choices)
        for n in self.group:
            choices[n] = i
        return self.like_own.holding(choices)

    def cost(self, assignment: Assignment) -> tuple[float | None, float | None]:
        """Seconds, and the bytes that a device holds at most; None where it is forbidden."""
        seconds = evaluate(self.problem, assignment).objective
        return (seconds, peak(self.program, assignment)) if np.isfinite(seconds) else (None, None)

    def own(self) -> Alternative:
        cost = self.cost(self.assignment)
        return Alternative(*self.texts(self.mine), True, *cost, self.seconds, None, cost[1])

    def alternative(self, i: int, asked: bool) -> Alternative:
        alone = self.alone(i)
        made = Alternative(*self.texts(i), False, *self.cost(alone))
        if not asked or self.clock.left == 0.0:
            reason = "others are nearer" if not asked else "no time was left"
            return replace(made, why_not=f"not solved: {reason}")
        forced = Forced.of(self.program, self.node, i)
        try:
            solution = forced.solve(replace(self.options, seconds=self.clock.left))
        except PlanError as error:  # nothing fits, or no time
            return replace(made, why_not=str(error))
        found = solution.assignment
        if made.alone is not None and made.alone < evaluate(self.problem, found).objective:
            if self.fits(alone):
                found = alone
        found = self.like_own.turn(found)
        comes, goes = difference(
            conversions(self.program, self.problem, self.assignment),
            conversions(self.program, self.problem, found),
        )
        return replace(
            made,
            seconds=evaluate(self.problem, found).objective,
            bound=solution.bound,
            nbytes=peak(self.program, found),
            changes=tuple(self.changes(found)),
            comes=comes,
            goes=goes,
        )

    def fits(self, assignment: Assignment) -> bool:
        memory = self.program.memory
        return memory is None or peak(self.program, assignment) <= memory * (1 + EQUAL)

    def changes(self, other: Assignment) -> Iterator[Change]:
        mine = set(self.group.tolist())
        for n in range(len(self.values)):
            made = self.program.produced(n)
            before, after = made[self.assignment.choices[n]], made[other.choices[n]]
            if before != after and n not in mine:
                yield Change(value_name(self.program, n), str(before), str(after))

    # ---------------------------------------------------------------------------------- memory
    def limit(self) -> Limit | None:
        memory = self.program.memory
        if memory is None:
            return None
        live = self.program.live
        profile = live.profile(self.assignment)
        point, most = int(profile.argmax()), float(profile.max())
        free = replace(self.program, memory=None)
        try:
            loose = free.solve(replace(self.options, seconds=max(1.0, self.clock.left)))
        except PlanError:  # no time
            return Limit(live.points[point], most, memory, False, 0.0, 0.0)
        held = peak(self.program, loose.assignment)
        binds = held > memory and loose.objective < self.seconds * (1 - EQUAL)
        saved = self.seconds - loose.objective if binds else 0.0
        each = saved / (held - most) if binds and held > most else 0.0
        return Limit(live.points[point], most, memory, binds, saved, each)


def _dearness(a: Alternative) -> tuple[bool, float, bool, float]:
    return a.seconds is None, a.seconds or 0.0, a.alone is None, a.alone or 0.0
