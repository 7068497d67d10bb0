"""Stars: what they cost, their least entries against the table over all nodes, how they part."""

import numpy as np
import pytest

from hpc_alpa.plan.solve.contract import Factor
from hpc_alpa.plan.solve.messages import Messages
from hpc_alpa.plan.solve.pairwise import Pairwise
from hpc_alpa.plan.solve.problem import FloatArray
from hpc_alpa.plan.solve.shares import Shared
from hpc_alpa.plan.solve.stars import MOST_READERS, Star


def random_star(seed: int) -> Star:
    """Two to four readers, some of one class, with forbidden conversions and free ones."""
    rng = np.random.default_rng(seed)
    made, wanted = rng.integers(1, 5, 2).tolist()
    conversion = rng.random((made, wanted)) * (rng.random((made, wanted)) < 0.7)
    conversion[rng.random(conversion.shape) < 0.15] = np.inf
    sizes = rng.integers(1, 5, int(rng.integers(3, 6))).tolist()
    needed = tuple(
        (node, (rng.integers(0, wanted, size),)) for node, size in enumerate(sizes[1:], start=1)
    )
    star = Star.of(Shared(0, rng.integers(0, made, sizes[0]), conversion, needed))
    assert star is not None
    star.charge = [rng.normal(size=size) for size in sizes]
    return star


def dense(factor: Factor, sizes: list[int]) -> FloatArray:
    """The table with one dim for each node in order."""
    assert sorted(factor.scope) == list(range(len(sizes)))
    return factor.seconds.transpose(np.argsort(factor.scope))


def test_seconds_are_those_of_the_table_and_of_the_parts() -> None:
    num_pairs = num_stars = 0
    for seed in range(150):
        star = random_star(seed)
        sizes = [len(classes) for classes in star.classes]
        table = dense(star.factor(), sizes)
        program = Pairwise([np.zeros(size) for size in sizes], [{} for _ in sizes])
        program.add_star(star)
        num_pairs += sum(map(len, program.pair)) // 2
        num_stars += len(program.stars)
        messages = Messages(program, range(len(sizes)))
        for choices in np.ndindex(*sizes):
            expected = star.conversion[
                star.classes[0][choices[0]],
                sorted({int(c[x]) for c, x in zip(star.classes[1:], choices[1:], strict=True)}),
            ].sum() + sum(charge[x] for charge, x in zip(star.charge, choices, strict=True))
            assert star.seconds(choices) == pytest.approx(expected)
            assert table[choices] == pytest.approx(expected)
            assert program.seconds(choices) == pytest.approx(expected)
            assert messages.seconds(np.array(choices)) == pytest.approx(expected)
    assert num_pairs > 50 and num_stars > 50


def test_the_bound_of_a_star_is_its_least_entry_and_above_it_are_its_marginals() -> None:
    checked = 0
    for seed in range(150):
        star = random_star(seed)
        sizes = [len(classes) for classes in star.classes]
        cost = [np.random.default_rng(seed + 1).random(size) for size in sizes]
        table = dense(star.factor(), sizes)
        for dim, seconds in enumerate(cost):
            table = table + np.expand_dims(seconds, [d for d in range(len(sizes)) if d != dim])
        program = Pairwise(list(cost), [{} for _ in sizes])
        program.stars.append(star)  # whole, as it does not come apart
        messages = Messages(program, range(len(sizes)))
        for forward in (True, False):
            messages.run(forward)
        bound, above = messages.bound()
        assert bound == pytest.approx(table.min())
        if not np.isfinite(bound):
            continue
        parts = np.split(bound + above, messages.start[1:-1])
        for dim, part in enumerate(parts):
            least = table.min(axis=tuple(d for d in range(len(sizes)) if d != dim))
            assert (part <= least + 1e-9).all()
        assert messages.objective() == pytest.approx(bound)  # the way back ends in an optimum
        checked += 1
    assert checked > 100


def test_what_no_star_can_say_is_none() -> None:
    one = np.zeros(2, np.int64)
    table = np.ones((1, 1))
    twice = Shared(0, one, table, ((1, (one, one)), (2, (one,))))
    itself = Shared(0, one, table, ((0, (one,)), (2, (one,))))
    many = Shared(0, one, table, tuple((v, (one,)) for v in range(1, MOST_READERS + 2)))
    assert Star.of(twice) is Star.of(itself) is Star.of(many) is None
