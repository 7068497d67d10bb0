"""The first road: pairs are the program, reductions and pruning lose nothing, bounds hold."""

import math

import numpy as np
import pytest

from hpc_alpa.errors import InfeasibleError
from hpc_alpa.plan.solve import enumerate as brute_force
from hpc_alpa.plan.solve import highs, prune, solver
from hpc_alpa.plan.solve.chains import Chains
from hpc_alpa.plan.solve.messages import Messages
from hpc_alpa.plan.solve.pairwise import Pairwise, pairwise
from hpc_alpa.plan.solve.presolve import reduce
from hpc_alpa.plan.solve.problem import Problem, Reader, Value, complete, evaluate
from tests.helpers.choice_programs import random_problem


def small_problem(seed: int, most_nodes: int = 5) -> Problem | None:
    """Presolved; None where forbidden conversions leave nothing."""
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, rows=False, most_readers=1 + seed % 5, most_nodes=most_nodes)
    try:
        return reduce(problem).problem
    except InfeasibleError:
        return None


def shared_problem(seed: int) -> Problem:
    """Values with two to four readers, which share conversions; some are forbidden."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 4, 6)
    values = []
    for producer in range(3):
        made, wanted = rng.integers(1, 4, 2).tolist()
        conversion = rng.random((made, wanted)) * (rng.random((made, wanted)) < 0.8)
        conversion[rng.random(conversion.shape) < 0.05] = np.inf
        others = rng.permutation(np.delete(np.arange(6), producer))
        readers = tuple(
            Reader(node, rng.integers(0, wanted, sizes[node]))
            for node in others[: int(rng.integers(2, 5))].tolist()
        )
        values.append(Value(producer, rng.integers(0, made, sizes[producer]), readers, conversion))
    return Problem(tuple(rng.random(size) for size in sizes), tuple(values))


def problem_of(seed: int, stars: bool) -> Problem | None:
    """Of few shared conversions, or of many."""
    return shared_problem(seed) if stars else small_problem(seed)


def grid(side: int, num_choices: int, rng: np.random.Generator, forbidden: float) -> Problem:
    """A square of nodes, each reading its neighbours: too wide for exact elimination."""
    node = np.arange(side * side).reshape(side, side)
    pairs = [*zip(node[:, :-1].flat, node[:, 1:].flat, strict=True)]
    pairs += zip(node[:-1].flat, node[1:].flat, strict=True)
    values = []
    for a, b in pairs:
        conversion = rng.random((num_choices, num_choices))
        conversion[rng.random(conversion.shape) < forbidden] = np.inf
        np.fill_diagonal(conversion, 0.0)
        choices = np.arange(num_choices)
        values.append(Value(int(a), choices, (Reader(int(b), choices),), conversion))
    return Problem(tuple(3 * rng.random((side * side, num_choices))), tuple(values))


def completed(program: Pairwise, num_nodes: int, choices: tuple[int, ...]) -> float:
    """Seconds of the choices of the first nodes, with every cell at its best."""
    cells = np.ndindex(*(len(cost) for cost in program.node[num_nodes:]))
    return min(program.seconds([*choices, *cell]) for cell in cells)


@pytest.mark.parametrize("stars", [False, True], ids=["cells", "stars"])
def test_pairs_are_the_program(stars: bool) -> None:
    cells = found = 0
    for seed in range(120):
        problem = problem_of(seed, stars)
        if problem is None:
            continue
        program = pairwise(problem, stars)
        if len(program.node) > len(problem.costs) + 8:
            continue
        cells += len(program.node) - len(problem.costs)
        found += len(program.stars)
        for choices in np.ndindex(*(len(cost) for cost in problem.costs)):
            expected = evaluate(problem, complete(problem, choices)).objective
            assert completed(program, len(problem.costs), choices) == pytest.approx(expected)
    assert cells > 25 or found > 25


@pytest.mark.parametrize("stars", [False, True], ids=["cells", "stars"])
def test_messages_bound_every_choice_and_change_no_objective(stars: bool) -> None:
    checked = 0
    for seed in range(60):
        problem = problem_of(seed, stars)
        if problem is None:
            continue
        program = pairwise(problem, stars)
        size = len(problem.costs)
        least = [np.full(len(cost), np.inf) for cost in problem.costs]
        for assignment in brute_force.assignments(problem):
            objective = evaluate(problem, assignment).objective
            for v, choice in enumerate(assignment.choices):
                least[v][choice] = min(least[v][choice], objective)
        messages = Messages(program, range(len(program.node)))
        for _ in range(3):
            messages.run(forward=True)
            assert messages.objective() >= min(map(min, least)) - 1e-9
            messages.run(forward=False)
        bound, above = messages.bound()
        if not math.isfinite(bound):
            assert not np.isfinite(np.concatenate(least)).any()
            continue
        parts = np.split(above, messages.start[1:-1])[:size]
        for part, expected in zip(parts, least, strict=True):
            assert (bound + part <= expected + 1e-9).all()
        choices = messages.choices.tolist()
        before = program.seconds(choices)
        messages.apply()
        assert program.seconds(choices) == pytest.approx(before)
        checked += 1
    assert checked > 30


def test_reduced_chains_expand_to_the_same_objective() -> None:
    eliminated = 0
    for seed in range(60):
        problem = small_problem(seed, most_nodes=8) if seed % 4 else shared_problem(seed)
        if problem is None:
            continue
        program = pairwise(problem, seed % 2 == 0)
        whole = pairwise(problem, seed % 2 == 0)
        chains = Chains(program)
        chains.reduce()
        eliminated += len(whole.node) - len(chains.left)
        choices = [int(program.node[v].argmin()) for v in chains.left]
        every = np.zeros(len(program.node), np.int64)
        every[chains.left] = choices
        expected = program.constant + sum(float(program.node[v][every[v]]) for v in chains.left)
        expected += sum(
            float(program.pair[v][a][every[v], every[a]])
            for v in chains.left
            for a in program.pair[v]
            if v < a
        )
        expected += sum(star.seconds(every.tolist()) for star in program.stars)
        if math.isfinite(expected):
            assert whole.seconds(chains.expand(choices).tolist()) == pytest.approx(expected)
    assert eliminated > 200


def test_what_is_left_after_pruning_costs_what_it_did() -> None:
    """Messages move costs into pairs and stars, stars come apart: no choice costs anything else."""
    apart = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        problem = shared_problem(seed)
        chains, whole = Chains(pairwise(problem, stars=True)), pairwise(problem, stars=True)
        chains.reduce()
        program = chains.program
        for _ in range(2):
            before = len(program.stars)
            messages = Messages(program, chains.left)
            messages.run(forward=True)
            messages.run(forward=False)
            messages.apply()
            alive = [rng.random(len(program.node[v])) < 0.7 for v in chains.left]
            for mask in alive:
                mask[rng.integers(len(mask))] = True
            chains.restrict(alive)
            chains.reduce()
            apart += before - len(program.stars)
        again = Messages(program, chains.left)
        choices = np.array([rng.integers(len(program.node[v])) for v in chains.left], np.int64)
        expected = whole.seconds(chains.expand(choices.tolist()).tolist())
        if math.isfinite(expected):
            assert again.seconds(choices) == pytest.approx(expected)
    assert apart > 10


@pytest.mark.parametrize("stars", [False, True], ids=["pairs", "stars"])
@pytest.mark.parametrize("entries", [0, 2**24], ids=["messages", "elimination"])
def test_search_equals_enumeration(
    entries: int, stars: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune, "_ENTRIES", entries)
    proven = infeasible = 0
    for seed in range(120):
        problem = problem_of(seed, stars)
        if problem is None:
            continue
        best = brute_force.best(problem)
        found = prune.search(problem, 1e-9, 5.0)
        if best is None:
            assert found.best is None
            infeasible += found.bound == np.inf
            continue
        assert found.bound <= best[0] + 1e-9
        if found.best is None:
            assert entries == 0
            continue
        objective = evaluate(problem, found.best).objective
        assert objective >= best[0] - 1e-9
        if found.bound >= objective - 1e-9:
            assert objective == pytest.approx(best[0], abs=1e-8)
            proven += 1
        for mask, choice in zip(found.alive, best[1].choices, strict=True):
            assert mask[choice] or objective == pytest.approx(best[0])
    assert proven >= (60 if entries == 0 else 80)


def test_a_gap_is_closed_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages that stop below the optimum go on with only a part of the gap to look into."""
    monkeypatch.setattr(prune, "_ENTRIES", 0)
    gained = proven = 0
    for seed in (3, 6, 8):
        problem = grid(8, 4, np.random.default_rng(seed), 0.1)
        found = prune.search(problem, 1e-9, 5.0)
        with monkeypatch.context() as patch:
            patch.setattr(prune, "_FIRST_PART", 0.0)
            alone = prune.search(problem, 1e-9, 5.0)
        best = highs.solve(problem).objective
        assert alone.best is not None and found.best is not None
        objective = evaluate(problem, found.best).objective
        assert alone.bound <= found.bound + 1e-9 <= best + 2e-9 * best
        assert best <= objective + 1e-9 <= evaluate(problem, alone.best).objective + 2e-9
        gained += found.bound > alone.bound + 1e-9
        proven += found.bound >= objective - 1e-9 and alone.bound < found.bound - 1e-9
    assert gained >= 2 and proven >= 1


@pytest.mark.parametrize("forbidden", [0.0, 0.1])
def test_wide_programs_equal_the_integer_program(forbidden: float) -> None:
    """Seven by seven, six choices: messages and pruning, and HiGHS for what they leave."""
    for seed in range(3):
        problem = grid(7, 6, np.random.default_rng(seed), forbidden)
        solution = solver.solve(problem)
        assert solution.status == "optimal"
        assert solution.objective == pytest.approx(highs.solve(problem).objective, rel=1e-6)
        assert {"presolve", "messages"} <= solution.phases.keys()
        assert solution.seconds == pytest.approx(sum(solution.phases.values()))
