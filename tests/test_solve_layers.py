"""Layer clustering: case L1, and enumeration."""

import itertools

import numpy as np
import pytest

from hpc_alpa.errors import InfeasibleError, PlanError
from hpc_alpa.plan.solve.layers import cluster, smallest_tolerance


@pytest.mark.parametrize("num_layers, ends", [(2, (6, 12)), (4, (3, 6, 9, 12))])
def test_l1(num_layers: int, ends: tuple[int, ...]) -> None:
    cuts = [10.0 if after in (3, 6, 9) else 100.0 for after in range(1, 12)]
    found = cluster([1.0] * 12, cuts, num_layers, 0.1)
    assert tuple(stop for _, stop in found.layers) == ends
    assert found.largest_nbytes == 10.0


def test_equals_enumeration() -> None:
    """The largest cut, then the total, then the sum of squared flops; and when there is none."""
    rng = np.random.default_rng(0)
    infeasible = 0
    for _ in range(300):
        num_operators = int(rng.integers(1, 9))
        num_layers = int(rng.integers(1, num_operators + 1))
        flops = rng.integers(0, 6, num_operators)
        cuts = rng.integers(0, 4, num_operators - 1)
        tolerance = float(rng.choice([0.0, 0.1, 0.3, 0.5, 1.0]))
        average = flops.sum() / num_layers
        best, least = None, np.inf
        for inner in itertools.combinations(range(1, num_operators), num_layers - 1):
            ends = [0, *inner, num_operators]
            work = [int(flops[a:b].sum()) for a, b in itertools.pairwise(ends)]
            least = min(least, max(work) / average - 1 if average else 0.0)
            if max(work) <= (1 + tolerance) * average * (1 + 1e-12):
                used = [int(cuts[k - 1]) for k in inner]
                key = (max(used, default=0), sum(used), sum(w * w for w in work))
                best = key if best is None else min(best, key)
        assert smallest_tolerance(flops.tolist(), num_layers) == pytest.approx(least, abs=1e-12)
        if best is None:
            infeasible += 1
            with pytest.raises(InfeasibleError, match="nearest fit has tolerance"):
                cluster(flops.tolist(), cuts.tolist(), num_layers, tolerance)
            continue
        found = cluster(flops.tolist(), cuts.tolist(), num_layers, tolerance)
        squares = sum(int(flops[a:b].sum()) ** 2 for a, b in found.layers)
        assert (found.largest_nbytes, found.total_nbytes, squares) == best
        assert [b for _, b in found.layers[:-1]] == [a for a, _ in found.layers[1:]]
    assert 50 < infeasible < 200


def test_the_needed_tolerance_is_enough() -> None:
    flops = np.random.default_rng(1).random(200).tolist()
    tolerance = smallest_tolerance(flops, 7)
    assert len(cluster(flops, [1.0] * 199, 7, tolerance).layers) == 7
    with pytest.raises(InfeasibleError):
        cluster(flops, [1.0] * 199, 7, 0.999 * tolerance)


def test_sizes_that_do_not_fit_are_named() -> None:
    with pytest.raises(PlanError, match="5 layers of 3 operators with 2 cut sizes"):
        cluster([1.0] * 3, [1.0] * 2, 5, 0.1)
