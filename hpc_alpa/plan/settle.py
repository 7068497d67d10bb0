"""Of the plans that cost the same, the one that is better in what the problem does not price."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from hpc_alpa.ir.graph import Graph, Var
from hpc_alpa.plan.solve.problem import (
    Assignment,
    Evaluation,
    Problem,
    complete,
    evaluate,
    leaders,
)
from hpc_alpa.sharding import ShardingSpec, Strategy

Specs = Sequence[Sequence[ShardingSpec]]
Strategies = Sequence[Sequence[Strategy]]


def settle(
    problem: Problem, graph: Graph, inputs: Specs, strategies: Strategies, found: Assignment
) -> Assignment:
    """An assignment that costs and holds no more.

    Sums of the loop are converted behind it, not in it: there they share a bucket (`lower.bucket`).
    Inputs lie as split as they are read: a free slice of a whole batch would have every device read
    all of it.

    Args:
        problem: nodes are the graph's inputs, its equations, then others.
        inputs, strategies: what the choices of these nodes mean.
    """
    leader = leaders(problem).tolist()
    best = evaluate(problem, found)
    later = _sums_as_they_are(graph, inputs, strategies, found.choices)
    tried: set[object] = set()  # equal layers ask for the same change

    def attempt(group: Mapping[int, int]) -> None:
        nonlocal found, best
        changes = {leader[node]: i for node, i in group.items()}
        if (key := frozenset(changes.items())) not in tried:
            tried.add(key)
            choices = [changes.get(leader[node], i) for node, i in enumerate(found.choices)]
            found, best = _unless_dearer(problem, found, best, tuple(choices))

    for group in [later, *({node: i} for node, i in later.items())]:
        attempt(group)
    for group in _inputs_as_read(graph, inputs, strategies, found.choices):
        attempt(group)
    return found


def _sums_as_they_are(
    graph: Graph, inputs: Specs, strategies: Strategies, choices: Sequence[int]
) -> dict[int, int]:
    """Choices under which each accumulator lies as what it sums."""
    n = len(inputs)
    have = {v: specs[choices[k]] for k, (v, specs) in enumerate(zip(graph.inputs, inputs))}
    for k, (e, ways) in enumerate(zip(graph.eqns, strategies, strict=True)):
        have[e.output] = ways[choices[n + k]].output
    wanted: dict[int, int] = {}
    for k, (e, ways) in enumerate(zip(graph.eqns, strategies, strict=True)):
        if e.op.name in ("accumulate", "accumulate_max"):
            needs = [s.inputs[0] for s in ways]
            if have[e.inputs[0]] in needs:
                wanted[n + k] = needs.index(have[e.inputs[0]])
    return wanted


def _inputs_as_read(
    graph: Graph, inputs: Specs, strategies: Strategies, choices: Sequence[int]
) -> Iterator[dict[int, int]]:
    """For each input that is read in smaller tiles, the choices under which it lies so."""
    n = len(inputs)
    at = {e.output: k for k, e in enumerate(graph.eqns)}

    def needs(v: Var, have: ShardingSpec) -> list[ShardingSpec]:
        """Specs that split what `have` splits and more, the smallest tiles first."""
        found = {
            strategies[at[e.output]][choices[n + at[e.output]]].inputs[k]
            for e in graph.readers[v]
            for k, u in enumerate(e.inputs)
            if u == v
        }
        more = [s for s in found if {*s.split_axes} > {*have.split_axes} and not s.partial]
        return sorted(more, key=lambda s: (-len(s.split_axes), str(s)))

    for node, v in enumerate(graph.inputs):
        specs = list(inputs[node])
        for need in needs(v, specs[choices[node]]):
            if need in specs:
                yield {node: specs.index(need)}
        for e in graph.readers[v]:
            k = at[e.output]
            if e.op.name not in ("enter", "slot"):
                continue
            for need in needs(e.output, strategies[k][choices[n + k]].output):
                for i, s in enumerate(strategies[k]):
                    if s.output == need and s.inputs[0] in specs:
                        yield {n + k: i, node: specs.index(s.inputs[0])}


def _unless_dearer(
    problem: Problem, found: Assignment, best: Evaluation, choices: tuple[int, ...]
) -> tuple[Assignment, Evaluation]:
    """The assignment of other choices, where it costs and holds no more."""
    if choices == found.choices:
        return found, best
    tried = complete(problem, choices, found.held)
    value = evaluate(problem, tried)
    fits = all(
        n <= max(row.limit, before)
        for row, n, before in zip(problem.rows, value.memory, best.memory, strict=True)
    )
    cheap = value.objective <= best.objective * (1 + 1e-9)
    return (tried, value) if fits and cheap else (found, best)
