"""The choices of a plan, in the numbers of its choice program, and assignments made like them.

A solver that is asked for another plan may change what costs nothing to change. `LikeOwn.turn`
gives such choices back, so that what still differs is what has to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from hpc_alpa.errors import PlanError
from hpc_alpa.plan.intra_op import IntraOp
from hpc_alpa.plan.plan import StagePlan
from hpc_alpa.plan.solve.problem import Assignment, Problem, evaluate, holdable_copies, leaders

EQUAL = 1e-9  # relative difference of seconds or bytes that is none
MOST_SINGLE = 100  # choices that are turned back one by one


def chosen(program: IntraOp, problem: Problem, made: StagePlan) -> Assignment:
    """The choices that a stage's plan has made, as the program numbers them.

    Args:
        program: of the plan's stage, mesh and restrictions; `problem` is what it has made.

    Raises:
        PlanError: the program does not have one of them: the plan was made with other pins, by
            another method, or by hand.
    """
    graph = program.stage.graph
    ways = [[str(s) for s in specs] for specs in program.input_specs]
    ways += [[str(s) for s in found] for found in program.equation_strategies]
    ways += [[str(s) for s in specs] for specs in program.output_specs]
    names = [graph.describe(v) for v in graph.values()]
    names += [f"output {k}" for k in range(len(graph.outputs))]
    taken = (*made.inputs, *made.strategies, *made.outputs)
    if len(taken) != len(ways):
        raise PlanError(f"the plan's stage has {len(taken)} choices, this step's has {len(ways)}")
    choices = []
    for name, known, text in zip(names, ways, taken, strict=True):
        if text not in known:
            raise PlanError(
                f"the plan has {name} as {text}, which is no choice here; there are "
                f"{', '.join(known[:6])}: it was made with other pins, or by another method"
            )
        choices.append(known.index(text))
    number = {value.producer: k for k, value in enumerate(problem.values)}
    held = [
        (number[node], [str(t) for t in program.forms[number[node]].targets].index(spec))
        for node, spec in made.held
    ]
    return Assignment(tuple(choices), frozenset(held))


def peak(program: IntraOp, assignment: Assignment) -> float:
    """Bytes that a device holds at most."""
    return float(program.live.profile(assignment).max())


class LikeOwn:
    """Assignments beside a plan's own one.

    Args:
        problem: what `program.problem()` has returned last.
        own: the plan's assignment.
        node: whose choice is another one, with all that it is tied to.
    """

    def __init__(self, program: IntraOp, problem: Problem, own: Assignment, node: int) -> None:
        self.program, self.problem, self.own = program, problem, own
        self.leader = leaders(problem).tolist()
        self.start = self.leader[node]

    def holding(self, choices: Sequence[int], more: Assignment | None = None) -> Assignment:
        """These choices, with the copies held of every value of which the plan holds one.

        Args:
            more: holds copies of other values too.
        """
        values = {k for k, _ in (*self.own.held, *(more.held if more is not None else ()))}
        copies = holdable_copies(self.problem, choices)
        return Assignment(tuple(choices), frozenset((k, t) for k, t, _ in copies if k in values))

    def turn(self, found: Assignment) -> Assignment:
        """The assignment with the plan's own choices wherever they cost and hold no more.

        First all that is as far away from the node as possible, or farther, at once: choices along
        a chain can only be turned together. Then one by one, the farthest first.
        """
        pairs = zip(self.own.choices, found.choices, strict=True)
        different = {self.leader[n] for n, (a, b) in enumerate(pairs) if a != b} - {self.start}
        far = len(self.leader)  # of what nothing connects
        for nearest in sorted({self.steps_away.get(n, far) for n in different}):
            some = {n for n in different if self.steps_away.get(n, far) >= nearest}
            tried = self._unless_dearer(found, some)
            if tried is not None:
                found, different = tried, different - some
                break
        for n in sorted(different, key=lambda n: -self.steps_away.get(n, far))[:MOST_SINGLE]:
            found = self._unless_dearer(found, {n}) or found
        return found

    def _unless_dearer(self, found: Assignment, some: set[int]) -> Assignment | None:
        pairs = enumerate(zip(self.own.choices, found.choices, strict=True))
        tried = self.holding([a if self.leader[n] in some else b for n, (a, b) in pairs], found)
        before = evaluate(self.problem, found).objective
        if not evaluate(self.problem, tried).objective <= before * (1 + EQUAL):
            return None
        most = max(peak(self.program, found), self.program.memory or 0.0)
        return tried if peak(self.program, tried) <= most * (1 + EQUAL) else None

    @cached_property
    def steps_away(self) -> Mapping[int, int]:
        """How many values lie between the node and each other free one."""
        near: dict[int, set[int]] = {}
        for value in self.problem.values:
            ends = {self.leader[n] for n in (value.producer, *(r.node for r in value.readers))}
            for n in ends:
                near.setdefault(n, set()).update(ends)
        found, front = {self.start: 0}, [self.start]
        for at in front:
            for n in sorted(near.get(at, set()) - found.keys()):
                found[n] = found[at] + 1
                front.append(n)
        return found
